"""TensorRT engines from an export, built and measured on the device that will run them.

``python -m frami_edge_export.tensorrt FOLDER`` needs NumPy, onnxruntime, frami-edge-runtime and the
device's own TensorRT 10.3 to 11.4, neither torch nor onnx, and runs on Python 3.10 (JetPack 6).
Exit codes: 0 ok, 1 known error, 2 usage, 3 an engine failed its check. No GPU has run this yet.

Shape legend: N clips, B batch, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from frami_edge_export.bench import Latency, interleaved
from frami_edge_export.engine import (
    PRECISIONS,
    BuildError,
    EngineOptions,
    EngineSource,
    Seconds,
    TensorRTUnavailable,
    build_engine,
    count_layers,
    load_tensorrt,
    mel_frames,
    profile_for,
    read_bundle,
)
from frami_edge_export.errors import ExportError
from frami_edge_export.parity import Array, Array64, Comparison, cpu_session, run_trunk
from frami_edge_runtime import doctor
from frami_edge_runtime.backends import Backend, open_backend
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import HEAD_INPUT
from frami_edge_runtime.pooling import mean_std
from frami_edge_runtime.tensorrt import EngineCard, read_plan_version, sidecar_path, write_sidecar

log = logging.getLogger("frami_edge")

ENGINES_REPORT: Final = "engine_report.json"
CLIPS: Final = 256
TOLERANCES: Final = {"fp32": 1e-3, "fp16": 2e-2}
"""Largest |difference| of the logits per unit of the largest, at least 1."""
MIN_SQNR_DB: Final = 20.0
"""Limit for int8, whose values may fall on either side of the edge between two steps."""
MIN_AGREEMENT: Final = 0.95
"""Share of test mels on which an engine must predict the class of its ONNX file. Random mels are
closer to the borders between classes than sounds: on them an int8 ONNX file of 32 dB predicts the
class of fp32 on 94 to 98 %."""
TIE: Final = 1.03
"""Two medians within 3 % are the same: the more precise engine then wins."""


@dataclass(frozen=True)
class EngineArtifact:
    """One engine, built and measured on this device."""

    path: str
    """File name; its sidecar is ``path + ".json"``."""
    precision: str
    card: EngineCard
    """The contents of the sidecar."""
    build_s: float
    timing_cache: str
    p50_ms: float = 0.0
    """Median of a call on 1 s of audio, copies to and from the GPU included."""
    p95_ms: float = 0.0
    chunk_p50_ms: float = 0.0
    """Median of a call that gives one trunk frame, the smallest streaming step."""
    max_abs_difference: float = 0.0
    """Largest |engine - its ONNX file| of the logits."""
    agreement: float = 0.0
    """Share of test mels with the class of its ONNX file."""
    sqnr_db: float | None = None
    """Logits against its ONNX file, dB; None without any difference."""
    passed: bool = False
    """Parity holds."""
    speedup: float | None = None
    """The fp32 engine's median over this one's, from the same interleaved rounds."""
    verdict: str = ""
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the engine file."""
        return self.card.engine_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, without the sidecar's model and head."""
        card = self.card
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["card"]
        return values | {
            "bytes": self.bytes,
            "sha256": card.engine_sha256,
            "onnx": card.onnx_name,
            "layers": card.layers,
            "profile": card.profile,
        }


@dataclass(frozen=True)
class EngineReport:
    """All engines that were built here; `to_dict` is ``engine_report.json``."""

    name: str
    engines: tuple[EngineArtifact, ...]
    recommended: str
    """File name; empty where none passed."""
    reason: str
    device: dict[str, Any]
    failures: dict[str, str] = field(default_factory=dict)
    """By precision: why an engine could not be built, while others could."""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Every engine was built and passed."""
        return not self.failures and all(engine.passed for engine in self.engines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = dataclasses.asdict(replace(self, engines=()))
        engines = [engine.to_dict() for engine in self.engines]
        return {"schema": 1, "ok": self.ok, **values, "engines": engines}


def judge(engines: Sequence[EngineArtifact]) -> tuple[tuple[EngineArtifact, ...], str, str]:
    """Give every engine its verdict and recommend the fastest that agrees with its ONNX file.

    Returns:
        The engines with verdicts, the recommended file's name ("" where none passed), the reason.
    """
    fit = [e for e in engines if e.passed]
    fastest = min((e.p50_ms for e in fit), default=0.0)
    level = [e for e in fit if e.p50_ms <= fastest * TIE]
    best = min(level, key=lambda e: PRECISIONS.index(e.precision), default=None)
    judged = []
    for e in engines:
        if not e.passed or best is None:
            verdict = "not recommended: it does not answer as its ONNX file does"
        elif e is best:
            verdict = "recommended"
        elif e.p50_ms <= best.p50_ms * TIE:
            verdict = f"as fast as {best.path}, and less precise"
        else:
            verdict = f"{e.p50_ms / best.p50_ms:.2f}x the time of {best.path}"
        judged.append(replace(e, verdict=verdict))
    if best is None:
        return tuple(judged), "", "No engine answers as its ONNX file does: use the ONNX files."
    reason = f"{best.path} answers as its ONNX file does and is fastest here."
    return tuple(judged), best.path, reason


def plausible_mels(spec: MelSpec, count: int = CLIPS, seed: int = 0) -> Array:
    """Mels for a device without a bank: (N, 1, M, T) of 1 s between the front end's limits.

    A slow random walk over bands and time, each clip at its own level: not sound, but of the range
    and the smoothness of one, so that every layer works where it does in use.
    """
    rng = np.random.default_rng(seed)
    frames = max(8, spec.frames(spec.sample_rate))
    walk = rng.standard_normal((count, 1, spec.n_mels, frames))
    for axis in (2, 3):
        walk = np.cumsum(walk, axis=axis) / np.sqrt(np.arange(1, walk.shape[axis] + 1)).reshape(
            [-1 if i == axis else 1 for i in range(4)]
        )
    walk += rng.standard_normal((count, 1, 1, 1))
    share = 1 / (1 + np.exp(-walk))
    low, high = spec.floor[None, None, :, None], spec.ceiling[None, None, :, None]
    mels: Array = (low + (high - low) * share).astype(np.float32)
    return mels


def device_facts() -> dict[str, str | None]:
    """``gpu``, ``driver`` and ``jetpack`` (L4T release), as nvidia-smi or a Jetson reports them."""
    query = "--query-gpu=name,driver_version"
    out, problem = doctor.run("nvidia-smi", query, "--format=csv,noheader", limit_s=20)
    gpu, _, driver = ("" if problem else out).partition("\n")[0].partition(",")
    release = doctor.l4t_release()
    return {
        "gpu": doctor.jetson_board() or gpu.strip(),
        "driver": driver.strip(),
        "jetpack": f"L4T {release}" if release else None,
    }


def rebuild(
    folder: Path,
    *,
    out_dir: Path | None = None,
    options: EngineOptions | None = None,
    mels: Array | None = None,
) -> EngineReport:
    """Build, compare and time engines from a folder of ``frami-edge export``, on the device.

    Writes ``{name}.{precision}.engine`` with its ``.json`` sidecar, ``engine_report.json`` and the
    timing cache. Everything is built and measured in a hidden folder first; each file then replaces
    its predecessor. An engine that fails does not stop the others.

    Args:
        folder: Holds ``export_report.json`` and its ONNX files.
        out_dir: Folder for the engines; None: ``folder``.
        options: What to build.
        mels: (N, 1, M, T) normalised log-mels to compare on, such as a bank's hold-out; None:
            `plausible_mels`.

    Raises:
        ExportError: The folder is not such an export, or cannot be written to.
        TensorRTUnavailable: There is no TensorRT, or no usable NVIDIA driver.
        BuildError: No engine could be built.
    """
    options, out_dir = options or EngineOptions(), out_dir or folder
    name, sources, notes = read_bundle(folder, options.precisions)
    trt, sm = load_tensorrt()
    device = {"tensorrt": str(trt.__version__), "sm": sm, **device_facts()}
    cache = out_dir / f"timing-{trt.__version__}-sm{sm.replace('.', '')}.cache"
    stage: Path | None = None
    loaded: dict[str, Backend] = {}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".engines-", dir=out_dir))
        built: dict[str, tuple[EngineArtifact, EngineSource]] = {}
        failures: dict[str, str] = {}
        for source in sources:
            precision = source.precision
            if precision in built:
                continue
            log.info("Building %s from %s; minutes on a small device.", precision, source.name)
            try:
                engine = _build(source, stage, name, options, device, trt, cache)
                loaded[precision] = open_backend(stage / engine.path, "tensorrt")
            except TensorRTUnavailable:
                raise
            except FramiEdgeError as error:
                failures[precision] = error.message
                continue
            if instead := failures.pop(precision, ""):
                engine = replace(engine, notes=(f"Built from {source.name}: {instead}",))
            built[precision] = (engine, source)
        if not built:
            raise BuildError(
                f"No engine could be built: {' '.join(dict.fromkeys(failures.values()))}",
                fix="The ONNX files run in ONNX Runtime as they are.",
            )
        log.info("Comparing with the ONNX files and timing.")
        info = sources[0].info
        second = _latencies(loaded, mel_frames(info, 1.0))
        chunk = _latencies(loaded, info.receptive_field)  # one trunk frame
        mels = plausible_mels(info.mel) if mels is None else mels
        measured = [
            _measured(engine, source, loaded[precision], second, chunk, mels)
            for precision, (engine, source) in built.items()
        ]
        engines, recommended, reason = judge(measured)
        report = EngineReport(name, engines, recommended, reason, device, failures, tuple(notes))
        text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
        (stage / ENGINES_REPORT).write_text(text, encoding="utf-8")
        for engine in engines:
            for path in (stage / engine.path, sidecar_path(stage / engine.path)):
                os.replace(path, out_dir / path.name)
        os.replace(stage / ENGINES_REPORT, out_dir / ENGINES_REPORT)
        return report
    except OSError as error:
        raise ExportError(
            f"Cannot write the engines to {out_dir}: {error.strerror or error}.",
            fix="Choose a folder that you may write to, with room for the engines: --out.",
        ) from None
    finally:
        for backend in loaded.values():
            backend.close()
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _build(
    source: EngineSource,
    stage: Path,
    name: str,
    options: EngineOptions,
    device: dict[str, Any],
    trt: Any,
    cache: Path,
) -> EngineArtifact:
    start = time.perf_counter()
    profile = profile_for(source.info, options)
    plan, state = build_engine(source, profile, trt, cache)
    seconds = round(time.perf_counter() - start, 3)
    card = EngineCard(
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        onnx_name=source.name,
        onnx_sha256=hashlib.sha256(source.data).hexdigest(),
        tensorrt=".".join(map(str, read_plan_version(plan))),
        precision=source.precision,
        sm=device["sm"],
        gpu=device["gpu"],
        driver=device["driver"],
        jetpack=device["jetpack"],
        profile=profile,
        layers=count_layers(trt, plan),
        model=source.model,
        head_onnx=source.head_onnx,
        created=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    )
    file = f"{name}.{source.precision}.engine"
    (stage / file).write_bytes(plan)
    write_sidecar(stage / file, card)
    return EngineArtifact(file, source.precision, card, seconds, state)


def _latencies(engines: dict[str, Backend], frames: int) -> dict[str, Latency]:
    def call(engine: Backend) -> Callable[[], object]:
        clip = plausible_mels(engine.info.mel, 1)
        x = clip[..., np.arange(min(frames, engine.max_mel_frames)) % clip.shape[3]]
        return lambda: engine.frames(x)

    calls = {name: call(engine) for name, engine in engines.items()}
    return interleaved(calls, budget_s=1.0, max_rounds=2000)


def _measured(
    engine: EngineArtifact,
    source: EngineSource,
    backend: Backend,
    second: dict[str, Latency],
    chunk: dict[str, Latency],
    mels_N1MT: Array,
) -> EngineArtifact:
    """Compare an engine with its ONNX file on mels cut to one call, and add its latency."""
    info = source.info
    around = ((0, 0), (0, 0), (0, 0), (info.context.left, info.context.right))
    x = np.pad(mels_N1MT, around, constant_values=info.context.value)
    x = np.ascontiguousarray(x[..., : backend.max_mel_frames])
    # In float as TensorRT computes Q/DQ, not in this CPU's integer kernels.
    frames = run_trunk(cpu_session(source.data, exact=True), x)
    head = cpu_session(base64.b64decode(source.head_onnx))
    pooled = mean_std(frames, info.pooling.eps).astype(np.float32)
    expected_NK: Array64 = head.run(None, {HEAD_INPUT: pooled})[0].astype(np.float64)
    rows = [mean_std(backend.frames(x[i : i + 1]), info.pooling.eps) for i in range(len(x))]
    found_NK = backend.logits(np.concatenate(rows).astype(np.float32)).astype(np.float64)
    finite = bool(np.isfinite(found_NK).all())
    found = Comparison.of(expected_NK, np.nan_to_num(found_NK))
    if engine.precision in TOLERANCES:
        scaled = found.max_abs_difference / max(1.0, float(abs(expected_NK).max()))
        close = scaled <= TOLERANCES[engine.precision]
    else:
        close = found.sqnr_db is None or found.sqnr_db >= MIN_SQNR_DB
    own, fp32 = second[engine.precision], second.get("fp32")
    return replace(
        engine,
        p50_ms=own.p50_ms,
        p95_ms=own.p95_ms,
        chunk_p50_ms=chunk[engine.precision].p50_ms,
        max_abs_difference=found.max_abs_difference,
        agreement=found.agreement,
        sqnr_db=found.sqnr_db,
        passed=finite and close and found.agreement >= MIN_AGREEMENT,
        speedup=None if fp32 is None else fp32.p50_ms / own.p50_ms,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print a table or JSON, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m frami_edge_export.tensorrt",
        description="Build TensorRT engines from a folder of frami-edge export, on this device.",
        epilog="example: python -m frami_edge_export.tensorrt export/ --seconds 0:1:10",
    )
    parser.add_argument("folder", type=Path, help="holds export_report.json and the ONNX files")
    parser.add_argument("--out", type=Path, help="folder for the engines; default: the same")
    parser.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="repeatable; default: all three"
    )
    parser.add_argument(
        "--seconds", metavar="MIN:OPT:MAX", help="audio in one call; default: what streams need"
    )
    parser.add_argument("--batch", type=int, default=8, help="most streams in one call")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        options = EngineOptions(
            seconds=Seconds.parse(args.seconds) if args.seconds else None,
            batch=args.batch,
            precisions=tuple(args.precision or PRECISIONS),
        )
        report = rebuild(args.folder, out_dir=args.out, options=options)
    except FramiEdgeError as error:
        print(error.message, error.fix, sep="\n", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report.to_dict(), allow_nan=False) if args.json else table(report))
    return 0 if report.ok else 3


def table(report: EngineReport) -> str:
    """The report as plain text: a device has no rich."""
    lines = [
        f"{'engine':32}{'kB':>7}{'1 s, ms':>10}{'1 frame':>10}{'agree':>8}  int8 conv  verdict"
    ]
    for e in report.engines:
        layers = e.card.layers or {}
        int8 = f"{layers.get('int8_convolutions', '?')}/{layers.get('convolutions', '?')}"
        lines.append(
            f"{e.path:32}{e.bytes / 1e3:7.0f}{e.p50_ms:10.3f}{e.chunk_p50_ms:10.3f}"
            f"{e.agreement:8.1%}  {int8:9}  {e.verdict}"
        )
    lines += [f"{precision}: {why}" for precision, why in report.failures.items()]
    return "\n".join([*lines, *report.notes, report.reason])


if __name__ == "__main__":
    sys.exit(main())
