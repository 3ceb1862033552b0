"""ONNX files in, engines out: built, looked into, compared with their ONNX files and timed here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frami_edge_export.errors import ExportError
from frami_edge_export.tensorrt import measure
from frami_edge_export.tensorrt.available import load_tensorrt
from frami_edge_export.tensorrt.builder import build_engine
from frami_edge_export.tensorrt.bundle import EngineSource, read_bundle
from frami_edge_export.tensorrt.device_facts import DeviceFacts, device_facts
from frami_edge_export.tensorrt.errors import (
    ON_THE_DEVICE,
    BuildError,
    ParseError,
    TensorRTUnavailable,
)
from frami_edge_export.tensorrt.inspection import inspect_plan
from frami_edge_export.tensorrt.options import EngineOptions
from frami_edge_export.tensorrt.profiles import profile_for
from frami_edge_export.tensorrt.report import EngineArtifact, EngineReport
from frami_edge_export.tensorrt.timing_cache import cache_path
from frami_edge_export.tensorrt.trials import measure_all
from frami_edge_export.tensorrt.verdicts import judge
from frami_edge_runtime.backends.cudart import Cudart
from frami_edge_runtime.enginefile import (
    EngineCard,
    read_plan_version,
    sidecar_path,
    write_sidecar,
)
from frami_edge_runtime.errors import FramiEdgeError

REPORT = "engine_report.json"
Say = Callable[[str], None]


def rebuild(
    folder: Path,
    *,
    out_dir: Path | None = None,
    options: EngineOptions | None = None,
    mels: measure.Array | None = None,
    say: Say | None = None,
) -> EngineReport:
    """Build engines from a folder of ``frami-edge export``, on the device, without torch or onnx.

    Args:
        folder: Holds ``export_report.json`` and its ONNX files.
        out_dir: For the engines; None: the folder itself.
        options: What to build and how.
        mels: As in `build_engines`.
        say: Told what is being done: a build takes minutes on a small device.

    Raises:
        ExportError: The folder is not such an export, or cannot be written to.
        TensorRTUnavailable: There is no TensorRT, or no usable NVIDIA driver.
        BuildError: No engine could be built.
    """
    options = options or EngineOptions()
    name, sources, missing = read_bundle(folder, options.precisions)
    report = build_engines(
        sources, out_dir or folder, name=name, options=options, mels=mels, say=say
    )
    return dataclasses.replace(report, notes=(*missing, *report.notes))


def build_engines(
    sources: Sequence[EngineSource],
    out_dir: Path,
    *,
    name: str = "student",
    options: EngineOptions | None = None,
    mels: measure.Array | None = None,
    say: Say | None = None,
) -> EngineReport:
    """Build and measure one engine of each source; write engines, sidecars and a report.

    Writes ``{name}.{precision}.engine`` with its ``.json`` sidecar, ``engine_report.json`` and the
    timing cache. Everything is built and measured in a hidden folder beside them first; each file
    then replaces its predecessor. An engine that fails does not stop the others.

    Args:
        sources: Several of one precision stand in order: the first that can be built is used.
        out_dir: Made where missing.
        name: Prefix of the files.
        options: What to build and how.
        mels: (N, 1, M, T) normalised log-mels to compare on, such as a bank's hold-out; None: made
            up within the front end's range.
        say: Told what is being done.

    Raises:
        ExportError: The folder cannot be written to.
        TensorRTUnavailable: There is no TensorRT, or no usable NVIDIA driver.
        BuildError: No engine could be built.
    """
    options, tell = options or EngineOptions(), say or _silent
    trt = load_tensorrt()
    facts = device_facts(trt, _compute_capability())
    stage = _stage(out_dir)
    try:
        built, failures = _build_all(sources, stage, out_dir, name, options, facts, trt, tell)
        tell("Comparing with the ONNX files and timing.")
        measured = measure_all(built, failures, sources, stage, options, mels)
        engines, recommended, reason = judge(measured)
        report = EngineReport(
            name, engines, recommended, reason, dataclasses.asdict(facts), failures
        )
        text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
        (stage / REPORT).write_text(text, encoding="utf-8")
        for engine in engines:
            # The sidecar last: a reader never finds a new one beside an old engine for long, and
            # refuses the pair by its sha256 if it does.
            os.replace(stage / engine.path, out_dir / engine.path)
            os.replace(sidecar_path(stage / engine.path), sidecar_path(out_dir / engine.path))
        os.replace(stage / REPORT, out_dir / REPORT)
        return report
    except OSError as error:
        raise _unwritable(out_dir, error) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _build_all(
    sources: Sequence[EngineSource],
    stage: Path,
    out_dir: Path,
    name: str,
    options: EngineOptions,
    facts: DeviceFacts,
    trt: Any,
    tell: Say,
) -> tuple[list[EngineArtifact], dict[str, str]]:
    """Engines and sidecars in the stage, not measured yet; and what failed."""
    built: list[EngineArtifact] = []
    failures: dict[str, str] = {}
    last: ExportError | None = None
    for source in sources:
        if source.precision in {engine.precision for engine in built}:
            continue
        tell(f"Building {source.precision} from {source.name}; minutes on a small device.")
        try:
            engine = _build_one(source, stage, out_dir, name, options, facts, trt)
        except (BuildError, ParseError) as error:
            # Without its traceback, which would keep the failed network in memory.
            failures[source.precision], last = error.message, error.with_traceback(None)
            continue
        if instead := failures.pop(source.precision, ""):
            note = f"Built from {source.name}, because {instead}"
            engine = dataclasses.replace(engine, notes=(*engine.notes, note))
        built.append(engine)
    if not built:
        raise last or BuildError("Nothing was to be built.", fix="Name at least one precision.")
    return built, failures


def _build_one(
    source: EngineSource,
    stage: Path,
    out_dir: Path,
    name: str,
    options: EngineOptions,
    facts: DeviceFacts,
    trt: Any,
) -> EngineArtifact:
    profile = profile_for(source.info, options.seconds, options.batch)
    built = build_engine(
        source.data,
        profile,
        options,
        trt=trt,
        name=source.name,
        timing_cache=cache_path(out_dir, facts.tensorrt, facts.sm),
    )
    counts = inspect_plan(trt, built.plan)
    card = EngineCard(
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        engine_bytes=len(built.plan),
        onnx_name=source.name,
        onnx_sha256=source.sha256,
        tensorrt=".".join(map(str, read_plan_version(built.plan))),
        precision=source.precision,
        sm=facts.sm,
        gpu=facts.gpu,
        driver=facts.driver,
        jetpack=facts.jetpack,
        profile=profile.as_dict(),
        layers=counts.as_dict() if counts.total else None,
        model=source.model,
        head_onnx=source.head_onnx,
        compat=options.compat,
        created=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    )
    file = f"{name}.{source.precision}.engine"
    (stage / file).write_bytes(built.plan)
    write_sidecar(stage / file, card)
    return EngineArtifact(
        name=f"{source.precision}.engine",
        path=file,
        precision=source.precision,
        bytes=len(built.plan),
        card=card,
        typing=built.typing,
        build_s=round(built.seconds, 3),
        timing_cache=built.cache,
        p50_ms=0.0,
        p95_ms=0.0,
        chunk_p50_ms=0.0,
        max_abs_difference=0.0,
        agreement=0.0,
        sqnr_db=None,
        passed=False,
        notes=built.notes,
    )


def _compute_capability() -> str:
    try:
        return Cudart().sm()
    except FramiEdgeError as error:
        raise TensorRTUnavailable(
            f"TensorRT is installed, but CUDA is not usable: {error.message}",
            fix=f"{error.fix} {ON_THE_DEVICE}",
        ) from None


def _stage(out_dir: Path) -> Path:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".engines-", dir=out_dir))
    except OSError as error:
        raise _unwritable(out_dir, error) from None


def _unwritable(out_dir: Path, error: OSError) -> ExportError:
    return ExportError(
        f"Cannot write the engines to {out_dir}: {error.strerror or error}.",
        fix="Choose a folder that you may write to, with room for the engines: --out.",
    )


def _silent(_: str) -> None:
    """For callers that do not want to be told."""
