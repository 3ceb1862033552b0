"""``python -m frami_edge_export.tensorrt FOLDER``: engines from an export, on the device.

Exit codes: 0 ok, 1 known error, 2 usage, 3 an engine failed its check.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_export.errors import ExportError
from frami_edge_export.parity import Comparison
from frami_edge_runtime.backends import LONGEST_RUN, Backend, open_backend
from frami_edge_runtime.doctor import read_release
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import (
    HEAD_KEY,
    METADATA_KEY,
    TRUNK_INPUT,
    TRUNK_OUTPUT,
    ModelInfo,
)
from frami_edge_runtime.pooling import mean_std
from frami_edge_runtime.state import write_whole
from frami_edge_runtime.tensorrt import (
    Cudart,
    EngineCard,
    read_plan_version,
    sidecar_path,
    write_sidecar,
)

# --- What can go wrong between an ONNX file and an engine

ON_THE_DEVICE = (
    "The ONNX files are complete: copy their folder to the device and run "
    "frami-edge export --tensorrt FOLDER there, or without torch "
    "python -m frami_edge_export.tensorrt FOLDER."
)


class TensorRTUnavailable(ExportError):  # noqa: N818  # says what is missing, not what failed
    """No TensorRT, too old a one, or no usable NVIDIA driver: the ONNX files can be used still."""


class ParseError(ExportError):
    """TensorRT's ONNX parser refused the graph; the message names the nodes."""


class BuildError(ExportError):
    """TensorRT could not build the engine; the message holds its last words."""


# --- How an engine is built: every value with its unit and its reason

PRECISIONS: Final = ("fp32", "fp16", "int8")
TYPINGS: Final = ("auto", "strong", "weak")
COMPATS: Final = ("none", "version", "ampere+")


@dataclass(frozen=True)
class Seconds:
    """Shortest, usual and longest audio of one call of the trunk."""

    low: float
    usual: float
    high: float

    def __post_init__(self) -> None:
        """Check the order."""
        values = (self.low, self.usual, self.high)
        rising = 0 <= self.low <= self.usual <= self.high and self.high > 0
        if not all(map(math.isfinite, values)) or not rising or self.high > 3600:
            raise ExportError(
                f"--seconds {self.low:g}:{self.usual:g}:{self.high:g} must rise from 0 to at most "
                "3600.",
                fix="Write shortest:usual:longest, such as --seconds 0.1:1:10.",
            )

    @classmethod
    def parse(cls, text: str) -> Seconds:
        """``MIN:OPT:MAX`` in seconds; one number stands for all three.

        Raises:
            ExportError: It is not of this form, or does not rise.
        """
        parts = text.split(":")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 3
        if len(numbers) != 3:
            raise ExportError(
                f"--seconds {text!r} is not MIN:OPT:MAX.",
                fix="Write shortest:usual:longest, such as --seconds 0.1:1:10.",
            )
        return cls(*numbers)


@dataclass(frozen=True)
class EngineOptions:
    """What to build and how.

    Raises:
        ExportError: A value is out of range.
    """

    seconds: Seconds | None = None
    """Of one call. None: what the runtime ever asks for, one frame to its longest run."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """Streams in one call: least, usual, most."""
    precisions: tuple[str, ...] = PRECISIONS
    """fp32 is the reference that the others are timed against."""
    workspace_mb: int = 256
    """MiB of scratch memory that a tactic may use; students need a fraction of it."""
    typing: str = "auto"
    """``strong``; ``auto`` retries ``weak`` where a TensorRT before 10.12 refuses strong typing."""
    compat: str = "none"
    """``version``: loads in newer releases of the same major; ``ampere+``: on every desktop GPU
    from Ampere on, not on Jetson. Both cost speed, and both are for other programs:
    frami-edge-runtime runs an engine only on the release and architecture that built it."""
    tf32: bool = False
    """Lets fp32 layers round to 10 bits; off, so that the fp32 engine is a true reference."""
    detailed: bool = True
    """Keeps layer types in the engine: without them nobody can say what runs in int8."""
    min_agreement: float = 0.95
    """Share of test mels on which an engine must name the class of its ONNX file. Made-up mels lie
    closer to the borders between classes than sounds do: on them an int8 ONNX file of 32 dB names
    the class of fp32 on 94 to 98 %."""
    bench_s: float = 2.0
    """Seconds of measuring in all."""

    def __post_init__(self) -> None:
        """Check every field."""
        self._one_of("typing", self.typing, TYPINGS)
        self._one_of("compat", self.compat, COMPATS)
        for precision in self.precisions:
            self._one_of("precisions", precision, PRECISIONS)
        low, usual, high = self.batch
        if not self.precisions or not low == 1 <= usual <= high <= 1024:
            raise ExportError(
                f"batch {low}:{usual}:{high} must rise from 1 to at most 1024, and at least one "
                "precision must be built.",
                fix="Leave both out to use the defaults.",
            )
        if not 0 <= self.min_agreement <= 1:
            raise ExportError(
                f"min_agreement {self.min_agreement:g} must lie between 0 and 1.",
                fix="Leave it out to use the default.",
            )
        if not 1 <= self.workspace_mb <= 1 << 16 or not 0 < self.bench_s <= 600:
            raise ExportError(
                f"workspace_mb {self.workspace_mb} must lie in 1..65536 and bench_s "
                f"{self.bench_s:g} in 0..600.",
                fix="Leave both out to use the defaults.",
            )

    def _one_of(self, name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ExportError(
                f"EngineOptions.{name} {value!r} is unknown.", fix=f"Use {', '.join(allowed)}."
            )


# --- The device's TensorRT, imported only when an engine is built

OLDEST: Final = (10, 3)
"""JetPack 6.1 and 6.2 have it; older ones know no strong typing and are not supported."""
STRONG_SINCE: Final = (10, 12)
"""From here on strong typing is complete; before, some graphs build in weak typing only."""


def load_tensorrt() -> Any:
    """The ``tensorrt`` module.

    Raises:
        TensorRTUnavailable: It is not installed, its libraries are missing, or it is too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise TensorRTUnavailable(
            f"TensorRT's Python package is not installed here (no module named {error.name}).",
            fix="On a Jetson JetPack brings it: make the environment with python3 -m venv "
            "--system-site-packages, never pip install tensorrt there. On a PC with an NVIDIA "
            f"GPU: pip install 'frami-edge-export[tensorrt]'. {ON_THE_DEVICE}",
        ) from None
    except (ImportError, OSError) as error:
        raise TensorRTUnavailable(
            f"TensorRT is installed, but cannot be loaded: {error}.",
            fix=f"Install the TensorRT libraries of the same version. {ON_THE_DEVICE}",
        ) from None
    found = version_tuple(trt)
    if found[:2] < OLDEST:
        raise TensorRTUnavailable(
            f"TensorRT {trt.__version__} is too old; 10.3 is the oldest supported.",
            fix="JetPack 6.1 or newer brings it. The ONNX files run in ONNX Runtime as they are.",
        )
    return trt


def version_tuple(trt: Any) -> tuple[int, ...]:
    """``tensorrt.__version__`` as numbers; what is no number ends it."""
    numbers: list[int] = []
    for part in str(trt.__version__).split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def no_driver(error: TypeError) -> TensorRTUnavailable:
    """What TensorRT's "factory function returned nullptr" means.

    The bindings raise it from every constructor that the library answers with NULL, which it does
    where CUDA cannot be initialised (NVIDIA/TensorRT#308, #2913).
    """
    return TensorRTUnavailable(
        f"TensorRT found no usable NVIDIA driver or GPU ({error}).",
        fix="Check nvidia-smi (on a PC) or that the user is in the groups video and render (on a "
        f"Jetson); in a container start it with --gpus all or --runtime nvidia. {ON_THE_DEVICE}",
    )


# --- What TensorRT says while it works: kept for the error message, not printed

KEPT = 6
MAX_CHARACTERS = 400


def make_logger(trt: Any) -> Any:
    """A ``trt.ILogger`` that keeps the last warnings and errors; ``said()`` gives them in a line.

    Args:
        trt: The ``tensorrt`` module. Its logger is a base class, so this one can only be defined
            once it is there.
    """

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT)
            self.warnings: deque[str] = deque(maxlen=KEPT)

        def log(self, severity: Any, msg: str) -> None:
            """TensorRT calls this, from any thread; it must not raise."""
            # INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4.
            level = int(severity)
            if level <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(str(msg))
            elif level == int(trt.ILogger.Severity.WARNING):
                self.warnings.append(str(msg))

        def said(self) -> str:
            """The last errors, or the last warnings where there was none."""
            lines = [" ".join(m.split()) for m in (self.errors or self.warnings)]
            text = " | ".join(lines) or "it gave no reason."
            return text if len(text) <= MAX_CHARACTERS else "..." + text[-MAX_CHARACTERS:]

    return Recorder()


# --- Seconds of audio to the shapes that an engine must accept
# Shape legend: B batch, M mel bands, T mel frames.

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Profile:
    """Least, usual and largest shape (B, 1, M, T) of the input."""

    low: Shape
    usual: Shape
    high: Shape

    def as_dict(self) -> dict[str, Shape]:
        """As `EngineCard.profile` has it."""
        return {"min": self.low, "opt": self.usual, "max": self.high}


def mel_frames(info: ModelInfo, seconds: float) -> int:
    """T of one call on so many seconds of audio, with the context that a clip gets around it.

    At least the receptive field: shorter clips are all context.
    """
    frames = max(1, info.mel.frames(round(seconds * info.mel.sample_rate)))
    return frames + info.receptive_field - 1


def longest_run(info: ModelInfo) -> int:
    """T of the longest call that the runtime's streams ever make."""
    return info.receptive_field + (LONGEST_RUN - 1) * info.stride


def profile_for(
    info: ModelInfo, seconds: Seconds | None = None, batch: tuple[int, int, int] = (1, 1, 8)
) -> Profile:
    """The profile that holds these seconds, and every call that a stream makes.

    The least T is one receptive field whatever ``seconds`` says, because a stream ends with runs
    of a single trunk frame; the largest is at least two trunk frames, which the runtime probes.

    Args:
        info: Of the model.
        seconds: Of audio in one call; None: from one trunk frame to the runtime's longest run, made
            for 1 s.
        batch: Clips or streams in one call.
    """
    field = info.receptive_field
    if seconds is None:
        high = longest_run(info)
        usual = min(mel_frames(info, 1.0), high)
    else:
        high = max(mel_frames(info, seconds.high), field + info.stride)
        usual = min(mel_frames(info, seconds.usual), high)
    bands = info.mel.n_mels
    return Profile(
        (batch[0], 1, bands, field), (batch[1], 1, bands, usual), (batch[2], 1, bands, high)
    )


# --- How long each kernel took last time: the second build on the same device takes a fraction

MAX_CACHE_BYTES = 1 << 28


def cache_path(folder: Path, tensorrt: str, sm: str) -> Path:
    """One file for each TensorRT version and GPU architecture: others would be rejected."""
    return folder / f"timing-{tensorrt}-sm{sm.replace('.', '')}.cache"


def read_cache(path: Path | None) -> bytes:
    """The cache's bytes; empty where there is none, or it cannot be read: it only saves time."""
    if path is None:
        return b""
    try:
        return path.read_bytes() if path.stat().st_size <= MAX_CACHE_BYTES else b""
    except OSError:
        return b""


def write_cache(path: Path | None, data: bytes) -> bool:
    """Replace the cache whole or not at all; False where it could not be written."""
    if path is None or not data:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(data))
    except OSError:
        return False
    return True


# --- What a build found: one record an engine, and which to use

SCHEMA = 1


@dataclass(frozen=True)
class EngineArtifact:
    """One engine, built and measured on this device. None stands for: not applicable."""

    name: str
    """Such as ``fp16.engine``."""
    path: str
    """File name; its sidecar is ``path + ".json"``."""
    precision: str
    bytes: int
    card: EngineCard
    """As written into the sidecar."""
    typing: str
    """``strong`` or ``weak``."""
    build_s: float
    timing_cache: str
    """``new``, ``reused`` or ``rejected``."""
    p50_ms: float
    """Median of a call on 1 s of audio, copies to and from the GPU included."""
    p95_ms: float
    chunk_p50_ms: float
    """Median of a call that gives one trunk frame, the smallest streaming step."""
    max_abs_difference: float
    """Largest |engine - its ONNX file| of the logits."""
    agreement: float
    """Share of test mels on which it names the class of its ONNX file."""
    sqnr_db: float | None
    """Logits against its ONNX file, dB; None without any difference."""
    passed: bool
    """Parity holds."""
    speedup: float | None = None
    """The fp32 engine's median over this one's, from the same interleaved rounds."""
    agreement_fp32: float | None = None
    """Share of test mels on which it names the class of the fp32 ONNX file."""
    verdict: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; of the card only what is not in the sidecar's model text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        card = values.pop("card")
        return {
            **values,
            "notes": list(self.notes),
            "kind": "engine",
            "sha256": card.engine_sha256,
            "onnx": card.onnx_name,
            "layers": None if card.layers is None else dict(card.layers),
            "profile": {key: list(shape) for key, shape in card.profile.items()},
        }


@dataclass(frozen=True)
class EngineReport:
    """Everything that was built here; `to_dict` is ``engine_report.json``."""

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
        """Every engine that was asked for was built and passed."""
        return not self.failures and all(engine.passed for engine in self.engines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "name": self.name,
            "engines": [engine.to_dict() for engine in self.engines],
            "recommended": self.recommended,
            "reason": self.reason,
            "device": dict(self.device),
            "failures": dict(self.failures),
            "notes": list(self.notes),
        }


# --- Which engine to use: the fastest that agrees with its ONNX file, measured here

TIE = 1.03
"""Within 3 % two medians are the same: the more precise engine wins, for it costs nothing."""
_MOST_PRECISE_FIRST = ("fp32", "fp16", "int8")


def judge(
    engines: Sequence[EngineArtifact],
) -> tuple[tuple[EngineArtifact, ...], str, str]:
    """Give every engine its verdict.

    Returns:
        The engines with verdicts, the recommended file's name ("" where none passed), the reason.
    """
    fit = [e for e in engines if e.passed]
    if not fit:
        verdict = "not recommended: it does not answer as its ONNX file does"
        judged = tuple(dataclasses.replace(e, verdict=verdict) for e in engines)
        return judged, "", "No engine answers as its ONNX file does: use the ONNX files."
    fastest = min(e.p50_ms for e in fit)
    level = [e for e in fit if e.p50_ms <= fastest * TIE]
    best = min(level, key=lambda e: _MOST_PRECISE_FIRST.index(e.precision))
    judged = tuple(dataclasses.replace(e, verdict=_verdict(e, best)) for e in engines)
    return judged, best.path, f"{best.name} answers as its ONNX file does and is fastest here."


def _verdict(engine: EngineArtifact, best: EngineArtifact) -> str:
    if engine is best:
        return "recommended"
    if not engine.passed:
        return "not recommended: it does not answer as its ONNX file does"
    ratio = engine.p50_ms / best.p50_ms
    if ratio <= TIE:
        return f"as fast as {best.name}, and less precise"
    return f"{ratio:.2f}x the time of {best.name}"


# --- Which ONNX files of an export become engines

REPORT: Final = "export_report.json"
CANDIDATES: Final = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "int8": ("int8.trt.fp16", "int8.trt", "int8.portable"),
}
"""Artefacts that can become an engine of a precision, best first. ``int8.cpu`` is not among them:
its unsigned activations and int32 biases are what TensorRT refuses."""
MAX_ONNX_BYTES: Final = 1 << 29
_AGAIN = "Export again, or copy the whole folder of the export to the device."


@dataclass(frozen=True)
class EngineSource:
    """One streaming ONNX file and what an engine made of it must be told."""

    precision: str
    """``fp32``, ``fp16`` or ``int8``: what the engine will be called."""
    name: str
    """File name."""
    data: bytes
    info: ModelInfo
    model: str
    """The description's JSON text, as it is in the file."""
    head_onnx: str
    """The head in base64, as it is in the file."""

    @property
    def sha256(self) -> str:
        """64 hex digits of the file."""
        return hashlib.sha256(self.data).hexdigest()


def read_source(name: str, data: bytes, precision: str | None = None) -> EngineSource:
    """Read a streaming ONNX file's description; onnxruntime does it, onnx is not needed.

    Args:
        name: File name, for messages and the sidecar.
        data: The file.
        precision: What to call the engine; None: what the file says.

    Raises:
        ExportError: It is damaged.
        ModelFileError: It is no streaming file of frami-edge export.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ExportError(f"{name} is no ONNX file that can be read: {first}", fix=_AGAIN) from None
    entries: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    info = ModelInfo.from_json(entries.get(METADATA_KEY, ""))
    return EngineSource(
        precision or info.precision, name, data, info, entries[METADATA_KEY], entries[HEAD_KEY]
    )


def read_bundle(
    folder: Path, precisions: tuple[str, ...] = tuple(CANDIDATES)
) -> tuple[str, tuple[EngineSource, ...], tuple[str, ...]]:
    """What a folder of ``frami-edge export`` offers: its name, the files, and what is not there.

    Several files may offer one precision; the best comes first.

    Args:
        folder: Holds ``export_report.json`` and the ONNX files that it names.
        precisions: Wanted; the third result names those that the folder cannot give.

    Raises:
        ExportError: It is no such folder, a file is missing or was changed, or none fits.
    """
    report = _read_report(folder)
    known = {a["name"]: a for a in report["artifacts"]}
    sources: list[EngineSource] = []
    missing: list[str] = []
    for precision in precisions:
        found = [known[name] for name in CANDIDATES[precision] if name in known]
        sources += [_source(folder, artifact, precision) for artifact in found]
        if not found:
            missing.append(
                f"The export has no {CANDIDATES[precision][0]} file, so no {precision} engine is "
                "built."
            )
    if not sources:
        raise ExportError(f"{folder} holds nothing to build from. {' '.join(missing)}", fix=_AGAIN)
    return report["name"], tuple(sources), tuple(missing)


def _source(folder: Path, artifact: dict[str, Any], precision: str) -> EngineSource:
    name = Path(artifact["path"]).name
    data = _read_file(folder / name)
    expected = artifact.get("sha256")
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise ExportError(
            f"{name} is not the file that {REPORT} describes: the sha256 differs.", fix=_AGAIN
        )
    return read_source(name, data, precision)


def _read_report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    if folder.is_file():
        raise ExportError(
            f"{folder} is a file, not the folder of an export.",
            fix=f"Give the folder that holds {REPORT}.",
        )
    try:
        report = json.loads(_read_file(path))
        artifacts = report["artifacts"]
        usable = isinstance(report["name"], str) and Path(report["name"]).name == report["name"]
        for artifact in artifacts:
            usable = usable and isinstance(artifact["name"], str)
            usable = usable and isinstance(artifact["path"], str)
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise ExportError(f"{path} is no report of frami-edge export.", fix=_AGAIN)
    checked: dict[str, Any] = report
    return checked


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_ONNX_BYTES:
            raise ExportError(f"{path} is larger than {MAX_ONNX_BYTES} bytes.", fix=_AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"Cannot read {path}: {error.strerror or error}.", fix=_AGAIN) from None


# --- What an engine is tied to: TensorRT, GPU architecture, driver and JetPack of this machine

TEGRA_RELEASE: Final = Path("/etc/nv_tegra_release")
BOARD_MODEL: Final = Path("/proc/device-tree/model")
DRIVER_VERSION: Final = Path("/proc/driver/nvidia/version")

Run = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class DeviceFacts:
    """As `EngineCard` wants them; empty where the machine does not say."""

    tensorrt: str
    sm: str
    """Compute capability, such as ``8.7``."""
    gpu: str
    driver: str
    jetpack: str | None
    """Such as ``6 (L4T 36.4.3)``; None where it is no Jetson."""


def device_facts(
    trt: Any,
    sm: str = "",
    *,
    tegra_release: Path = TEGRA_RELEASE,
    board_model: Path = BOARD_MODEL,
    driver_version: Path = DRIVER_VERSION,
    run: Run | None = None,
) -> DeviceFacts:
    """Ask the machine.

    Args:
        trt: The ``tensorrt`` module.
        sm: Compute capability where CUDA told it already; else nvidia-smi is asked.
        tegra_release: What a Jetson says about its L4T release.
        board_model: What a Jetson is called.
        driver_version: Of the kernel module.
        run: Runs a command and gives its standard output; empty where it fails.
    """
    gpu, driver, capability = _smi(run or _output)
    board = _text(board_model).strip("\0 \n")
    kernel = re.search(r"(?:Kernel Module|Module for \w+)\s+([\d.]+)", _text(driver_version))
    return DeviceFacts(
        tensorrt=str(trt.__version__),
        sm=sm or capability,
        gpu=(board if board and "nvgpu" in gpu.lower() else gpu) or board,
        driver=driver or (kernel.group(1) if kernel else ""),
        jetpack=jetpack(_text(tegra_release)),
    )


def jetpack(release: str) -> str | None:
    """``# R36 (release), REVISION: 4.3, ...`` -> ``6 (L4T 36.4.3)``; None for anything else."""
    found = read_release(release)
    if found is None:
        return None
    return f"{found.version.partition('.')[0] or 'unknown'} (L4T {found.l4t})"


def _smi(run: Run) -> tuple[str, str, str]:
    """Name, driver and compute capability of the first GPU; ``[N/A]``, as Jetsons say, is empty."""
    query = "--query-gpu=name,driver_version,compute_cap"
    lines = run(["nvidia-smi", query, "--format=csv,noheader"]).strip().splitlines()
    parts = [part.strip() for part in lines[0].split(",")] if lines else []
    name, driver, capability = parts if len(parts) == 3 else ("", "", "")
    return (
        "" if "N/A" in name else name,
        driver if re.fullmatch(r"[\d.]+", driver) else "",
        capability if re.fullmatch(r"\d+\.\d", capability) else "",
    )


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:4096]
    except OSError:
        return ""


# --- How many layers of an engine really run in int8: the engine inspector's JSON, counted
# TensorRT 10 describes a tensor by one key, ``Format/Datatype``; 11 splits it and renames more
# (``Bindings`` -> ``I/O Tensors``). Both are read by what their keys contain, so that a further
# renaming gives ``other`` and not a wrong number.

_TYPES: Final = (
    ("int8", re.compile(r"int8|kint8", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|float16|half", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float32|float\b|kfloat\b", re.IGNORECASE)),
)


@dataclass(frozen=True)
class LayerCounts:
    """Layers of a built engine, each counted once, by the type of what it reads."""

    total: int = 0
    int8: int = 0
    fp16: int = 0
    fp32: int = 0
    reformat: int = 0
    """Copies that only change type or layout: what int8 costs where it does not fuse."""
    other: int = 0
    """Integers and shapes, or not told: an engine without detailed verbosity tells only names."""
    convolutions: int = 0
    """How many are convolutions."""
    int8_convolutions: int = 0
    """How many of these read int8: the figure that counts."""

    def as_dict(self) -> dict[str, int]:
        """As `EngineCard.layers` has it."""
        return asdict(self)


def count_layers(text: str) -> LayerCounts:
    """Count the layers in an engine inspector's JSON.

    Args:
        text: ``EngineInspector.get_engine_information(LayerInformationFormat.JSON)``. Anything
            that is no such JSON counts nothing: a card without counts is no reason to fail.
    """
    try:
        described = json.loads(text)
    except ValueError:
        return LayerCounts()
    layers = described.get("Layers", []) if isinstance(described, Mapping) else []
    counts = dict.fromkeys(LayerCounts.__dataclass_fields__, 0)
    for layer in layers if isinstance(layers, list) else []:
        counts["total"] += 1
        kind = layer_precision(layer)
        counts[kind] += 1
        if kind != "reformat" and _is_convolution(layer):
            counts["convolutions"] += 1
            counts["int8_convolutions"] += kind == "int8"
    return LayerCounts(**counts)


def layer_precision(layer: Any) -> str:
    """``int8``, ``fp16``, ``fp32``, ``reformat`` or ``other`` for one entry of ``Layers``."""
    if not isinstance(layer, Mapping):
        return "reformat" if "reformat" in str(layer).lower() else "other"
    if "reformat" in str(layer.get("LayerType", layer.get("Type", ""))).lower():
        return "reformat"
    tensors = layer.get("Inputs") or layer.get("Outputs") or []
    for tensor in tensors if isinstance(tensors, list) else []:
        said = _type_text(tensor)
        for name, pattern in _TYPES:
            if pattern.search(said):
                return name
    return "other"


def inspect_plan(trt: Any, plan: bytes) -> LayerCounts:
    """Count the layers of a serialised engine.

    Args:
        trt: The ``tensorrt`` module.
        plan: As it was built here.

    Raises:
        BuildError: TensorRT cannot load what it has just built.
    """
    logger = make_logger(trt)
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:
        raise no_driver(error) from None
    runtime.engine_host_code_allowed = True  # version-compatible plans hold code; this one is ours
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(
            f"TensorRT {trt.__version__} cannot load the engine that it has just built: "
            f"{logger.said()}",
            fix="Free GPU memory and build again.",
        )
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return LayerCounts()
    return count_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _type_text(tensor: Any) -> str:
    if not isinstance(tensor, Mapping):
        return str(tensor)
    typed = [v for k, v in tensor.items() if re.search("datatype|data type|^type$", k.lower())]
    return " ".join(map(str, typed or [tensor.get("Format", "")]))


def _is_convolution(layer: Any) -> bool:
    if not isinstance(layer, Mapping):
        return False
    keys = ("LayerType", "ParameterType", "Type")
    return any("conv" in str(layer.get(key, "")).lower() for key in keys)


# --- An engine against the ONNX file that it came from, and its speed on this device
# Shape legend: N clips, B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C,
# K classes.

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]
Times = dict[str, tuple[float, float]]
"""Median and 95th percentile in ms, by engine."""

TOLERANCES: Final = {"fp32": 1e-3, "fp16": 2e-2}
"""Largest |difference| of the logits per unit of the largest, at least 1."""
MIN_SQNR_DB: Final = 20.0
"""Of int8, whose values may fall on either side of the edge between two steps: both are right."""
CLIPS: Final = 256
CLIP_S: Final = 1.0
WARM_UP: Final = 10
MIN_ROUNDS: Final = 15
MAX_ROUNDS: Final = 2000


def plausible_mels(spec: MelSpec, count: int | None = None, seed: int = 0) -> Array:
    """Mels for a device that has no bank: (N, 1, M, T) between the front end's floor and ceiling.

    A slow random walk over bands and time, each clip at its own level: not sound, but of the range
    and the smoothness of one, so that every layer works where it does in use.
    """
    count = CLIPS if count is None else count
    rng = np.random.default_rng(seed)
    frames = max(8, spec.frames(round(CLIP_S * spec.sample_rate)))
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


def logits(backend: Backend, mels_N1MT: Array) -> Array64:
    """(N, K) logits of whole clips: context, trunk in calls that fit, float64 statistics, head."""
    rows = [backend.logits(_pooled(backend, mel_1MT[None]))[0] for mel_1MT in mels_N1MT]
    return np.stack(rows).astype(np.float64)


def compare(reference_NK: Array64, found_NK: Array64) -> Comparison:
    """Two models' logits on the same mels; nothing agrees with logits that are not finite."""
    if not np.isfinite(found_NK).all():
        return Comparison(0.0, float(np.finfo(np.float64).max), None)
    return Comparison.of(reference_NK, found_NK)


def within(precision: str, found: Comparison, largest: float, min_agreement: float) -> bool:
    """Parity holds: the same classes, and the same numbers as far as the precision goes."""
    if found.agreement < min_agreement:
        return False
    if precision in TOLERANCES:
        return found.max_abs_difference / max(1.0, largest) <= TOLERANCES[precision]
    exact = found.max_abs_difference == 0.0
    return exact or (found.sqnr_db is not None and found.sqnr_db >= MIN_SQNR_DB)


def latencies(engines: Mapping[str, Backend], seconds: float | None, budget_s: float) -> Times:
    """Median and 95th percentile in ms of one call, engines taking turns in the same seconds.

    Args:
        engines: By name.
        seconds: Of audio in a call, cut to what an engine takes; None: one trunk frame.
        budget_s: Seconds to measure for, of all engines together.
    """
    feeds = {name: _feed(engine, seconds) for name, engine in engines.items()}
    for name, engine in engines.items():
        for _ in range(WARM_UP):
            engine.frames(feeds[name])
    times: dict[str, list[float]] = {name: [] for name in engines}
    names, end, rounds = list(engines), time.perf_counter() + budget_s, 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() < end):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            engines[name].frames(feeds[name])
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {n: (float(np.median(t)), float(np.percentile(t, 95))) for n, t in times.items()}


def _feed(engine: Backend, seconds: float | None) -> Array:
    info = engine.info
    frames = info.receptive_field if seconds is None else mel_frames(info, seconds)
    frames = min(frames, engine.max_mel_frames)
    return plausible_mels(info.mel, 1)[..., np.arange(frames) % _clip_frames(info)]


def _clip_frames(info: ModelInfo) -> int:
    return max(8, info.mel.frames(round(CLIP_S * info.mel.sample_rate)))


def _pooled(backend: Backend, mel_11MT: Array) -> Array:
    info = backend.info
    around = ((0, 0), (0, 0), (0, 0), (info.context.left, info.context.right))
    padded = np.pad(mel_11MT, around, constant_values=info.context.value)
    parts: Sequence[Array] = [
        backend.frames(np.ascontiguousarray(padded[..., start:stop]))
        for start, stop in _calls(info, padded.shape[3], backend.max_mel_frames)
    ]
    return mean_std(np.concatenate(parts, axis=2), info.pooling.eps).astype(np.float32)


def _calls(info: ModelInfo, frames: int, most: int) -> list[tuple[int, int]]:
    """Mel frames of each call: as long as the engine takes, overlapping by field - stride."""
    runs = (frames - info.receptive_field) // info.stride + 1
    longest = (min(most, frames) - info.receptive_field) // info.stride + 1
    calls = []
    for first in range(0, runs, longest):
        last = min(first + longest, runs) - 1
        calls.append((first * info.stride, last * info.stride + info.receptive_field))
    return calls


# --- Engines on trial: each loaded, asked the same questions as its ONNX file, and timed in turn


def measure_all(
    built: list[EngineArtifact],
    failures: dict[str, str],
    sources: Sequence[EngineSource],
    stage: Path,
    options: EngineOptions,
    mels: Array | None,
) -> list[EngineArtifact]:
    """Every engine loaded as the runtime loads it, compared and timed against the others.

    Args:
        built: Engines in the stage, not measured yet.
        failures: Gets what could not be loaded, by precision.
        sources: The ONNX files that they were built from, and fp32 where there is one.
        stage: Folder of engines and sidecars.
        options: Gates and measuring time.
        mels: (N, 1, M, T) to compare on; None: made up.

    Raises:
        BuildError: None of them can be loaded.
    """
    if mels is None:
        mels = plausible_mels(sources[0].info.mel)
    used = {engine.card.onnx_name for engine in built}
    truth: dict[str, Array64] = {}
    for source in sources:
        if source.name in used or source.precision == "fp32":
            reference = open_backend(source.data, "cpu")
            truth[source.precision] = logits(reference, mels)
            reference.close()
    loaded: dict[str, Backend] = {}
    try:
        for engine in built:
            try:
                loaded[engine.precision] = open_backend(stage / engine.path, "tensorrt")
            except FramiEdgeError as error:
                failures[engine.precision] = error.message
        if not loaded:
            raise BuildError(
                f"No engine could be loaded after the build: "
                f"{' '.join(dict.fromkeys(failures.values()))}",
                fix="See to that and build again; the ONNX files run in ONNX Runtime as they are.",
            )
        second = latencies(loaded, 1.0, options.bench_s / 2)
        chunk = latencies(loaded, None, options.bench_s / 2)
        return [
            _measured(
                engine,
                logits(loaded[engine.precision], mels),
                truth,
                (second, chunk),
                options,
            )
            for engine in built
            if engine.precision in loaded
        ]
    finally:
        for backend in loaded.values():
            backend.close()


def _measured(
    engine: EngineArtifact,
    found_NK: Array64,
    truth: dict[str, Array64],
    times: tuple[Times, Times],
    options: EngineOptions,
) -> EngineArtifact:
    own = compare(truth[engine.precision], found_NK)
    largest = float(abs(truth[engine.precision]).max())
    fp32 = compare(truth["fp32"], found_NK) if "fp32" in truth else None
    second, chunk = times
    p50, p95 = second[engine.precision]
    return dataclasses.replace(
        engine,
        p50_ms=p50,
        p95_ms=p95,
        chunk_p50_ms=chunk[engine.precision][0],
        speedup=second["fp32"][0] / p50 if "fp32" in second else None,
        max_abs_difference=own.max_abs_difference,
        agreement=own.agreement,
        sqnr_db=own.sqnr_db,
        passed=within(engine.precision, own, largest, options.min_agreement),
        agreement_fp32=None if fp32 is None else fp32.agreement,
    )


# --- ONNX bytes to a serialised engine, by one code path for TensorRT 10.3 to 11.4
# Types come from the graph: int8 is explicit Q/DQ, fp16 is fp16 tensors, and the network is strongly
# typed. TensorRT 11 has nothing else; 10.x has the flag. Only names that the bindings of 10.3, 10.13,
# 10.16 and 11.4 share are used; the tests check each against the real ones.

MAX_PARSE_ERRORS = 8


@dataclass(frozen=True)
class Built:
    """A serialised engine and how it came about."""

    plan: bytes
    typing: str
    """``strong`` or ``weak``."""
    seconds: float
    """Time that the build took."""
    cache: str
    """``new``, ``reused``, or ``rejected``: it was of another device and has been replaced."""
    notes: tuple[str, ...]
    """Why another way than the asked one was taken."""


def build_engine(
    onnx: bytes,
    profile: Profile,
    options: EngineOptions,
    *,
    trt: Any,
    name: str = "the model",
    timing_cache: Path | None = None,
) -> Built:
    """Build one engine.

    Args:
        onnx: A trunk, its types as wanted, weights inside.
        profile: Of its input ``mel``.
        options: Typing, workspace, compatibility.
        trt: The ``tensorrt`` module, from `load_tensorrt`.
        name: Of the ONNX file, for messages.
        timing_cache: Read where it exists; written after the build.

    Raises:
        TensorRTUnavailable: There is no usable NVIDIA driver.
        ParseError: The ONNX parser refused the graph.
        BuildError: The build failed.
    """
    start = time.perf_counter()
    first = "weak" if options.typing == "weak" else "strong"
    notes: tuple[str, ...] = ()
    if first == "weak" and not _has_weak(trt):
        raise BuildError(
            f"TensorRT {trt.__version__} has no weak typing any more.", fix="Use --typing auto."
        )
    job = _Job(onnx, profile, options, trt, name, read_cache(timing_cache))
    plan, failed = b"", ""
    try:
        plan = job.run(first)
    except (ParseError, BuildError) as error:
        old = version_tuple(trt)[:2] < STRONG_SINCE
        if options.typing != "auto" or not old or not _has_weak(trt):
            raise
        failed = error.message
    if failed:
        # Out of the except block, whose traceback would keep the first network in memory.
        first, notes = "weak", (f"Strong typing failed, so weak was used: {failed}",)
        plan = job.run(first)
    write_cache(timing_cache, job.cache_out)
    return Built(plan, first, time.perf_counter() - start, job.cache_state, notes)


def _has_weak(trt: Any) -> bool:
    return hasattr(trt.BuilderFlag, "INT8") and hasattr(trt.BuilderFlag, "FP16")


class _Job:
    """One ONNX file on its way; each `run` starts from nothing."""

    def __init__(
        self,
        onnx: bytes,
        profile: Profile,
        options: EngineOptions,
        trt: Any,
        name: str,
        cache: bytes,
    ) -> None:
        self._onnx, self._profile, self._options = onnx, profile, options
        self._trt, self._name, self._cache_in = trt, name, cache
        self.cache_out = b""
        self.cache_state = "new"

    def run(self, typing: str) -> bytes:
        trt = self._trt
        logger = make_logger(trt)
        try:
            builder = trt.Builder(logger)
        except TypeError as error:
            raise no_driver(error) from None
        flags = 0
        if typing == "strong":
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        # The network's weights belong to the parser: it must live until the build is done.
        parser = trt.OnnxParser(network, logger)
        self._parse(parser, logger)
        self._check_ports(network)
        config = builder.create_builder_config()
        self._configure(config, typing)
        self._add_profile(config, builder)
        self._use_cache(config)
        blob = builder.build_serialized_network(network, config)
        if blob is None:
            raise BuildError(
                f"TensorRT {trt.__version__} could not build {self._name} ({typing} typing): "
                f"{logger.said()}",
                fix="Raise --workspace-mb, or build another precision; the ONNX file runs in "
                "ONNX Runtime as it is.",
            )
        cache = config.get_timing_cache()
        self.cache_out = b"" if cache is None else bytes(cache.serialize())
        return bytes(blob)

    def _parse(self, parser: Any, logger: Any) -> None:
        if parser.parse(self._onnx):
            return
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = [
            f"{e.node_name() or 'the graph'} ({e.node_operator() or 'no operator'}): {e.desc()}"
            for e in errors[:MAX_PARSE_ERRORS]
        ]
        if len(errors) > MAX_PARSE_ERRORS:
            lines.append(f"and {len(errors) - MAX_PARSE_ERRORS} more")
        raise ParseError(
            f"TensorRT {self._trt.__version__} cannot read {self._name}: "
            f"{'; '.join(lines) or logger.said()}",
            fix="frami-edge export lints graphs for TensorRT: export again and look at its table.",
        )

    def _check_ports(self, network: Any) -> None:
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        found = [(t.name, t.dtype) for t in (*inputs, *outputs)]
        wanted = [(n, self._trt.DataType.FLOAT) for n in (TRUNK_INPUT, TRUNK_OUTPUT)]
        if found != wanted:
            ports = ", ".join(f"{name} {dtype}" for name, dtype in found)
            raise BuildError(
                f"{self._name} has {ports or 'no ports'}, not float32 {TRUNK_INPUT} and "
                f"{TRUNK_OUTPUT}: it is no trunk.",
                fix="Give a streaming file of frami-edge export, such as student.fp16.onnx.",
            )

    def _configure(self, config: Any, typing: str) -> None:
        trt, options = self._trt, self._options
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
        verbosity = trt.ProfilingVerbosity
        config.profiling_verbosity = (
            verbosity.DETAILED if options.detailed else verbosity.LAYER_NAMES_ONLY
        )
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if typing == "weak":
            # Explicit Q/DQ needs the flag in weak mode (NVIDIA/TensorRT#4021). TensorRT 11 has
            # neither flag; `_has_weak` was asked before.
            for flag in ("FP16", "INT8"):
                config.set_flag(getattr(trt.BuilderFlag, flag, None))
        if options.compat == "version":
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        elif options.compat == "ampere+":
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def _add_profile(self, config: Any, builder: Any) -> None:
        profile = builder.create_optimization_profile()
        profile.set_shape(TRUNK_INPUT, self._profile.low, self._profile.usual, self._profile.high)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"TensorRT refused the profile {self._profile.as_dict()} of {self._name}.",
                fix="Choose other --seconds.",
            )

    def _use_cache(self, config: Any) -> None:
        """Kernel times of an earlier build; those of another device are rejected and replaced."""
        self.cache_state = "reused" if self._cache_in else "new"
        if self._cache_in:
            cache = config.create_timing_cache(self._cache_in)
            # The second argument would accept another device's times.
            if cache is not None and config.set_timing_cache(cache, False):
                return
            self.cache_state = "rejected"
        config.set_timing_cache(config.create_timing_cache(b""), False)


# --- ONNX files in, engines out: built, looked into, compared with their ONNX files and timed he

ENGINES_REPORT = "engine_report.json"
Say = Callable[[str], None]


def rebuild(
    folder: Path,
    *,
    out_dir: Path | None = None,
    options: EngineOptions | None = None,
    mels: Array | None = None,
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
    mels: Array | None = None,
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
        (stage / ENGINES_REPORT).write_text(text, encoding="utf-8")
        for engine in engines:
            # The sidecar last: a reader never finds a new one beside an old engine for long, and
            # refuses the pair by its sha256 if it does.
            os.replace(stage / engine.path, out_dir / engine.path)
            os.replace(sidecar_path(stage / engine.path), sidecar_path(out_dir / engine.path))
        os.replace(stage / ENGINES_REPORT, out_dir / ENGINES_REPORT)
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


# --- TensorRT engines, built where they run: on the device, from the ONNX files of an export
# Everything in here needs NumPy, onnxruntime, frami-edge-runtime and the device's own TensorRT, never
# torch or onnx, and runs on Python 3.10: JetPack 6 has no newer one.
#
# >>> python -m frami_edge_export.tensorrt FOLDER

__all__ = [
    "BuildError",
    "Built",
    "DeviceFacts",
    "EngineArtifact",
    "EngineOptions",
    "EngineReport",
    "EngineSource",
    "LayerCounts",
    "ParseError",
    "Profile",
    "Seconds",
    "TensorRTUnavailable",
    "build_engine",
    "build_engines",
    "count_layers",
    "device_facts",
    "profile_for",
    "read_bundle",
    "read_source",
    "rebuild",
]


# --- ``python -m frami_edge_export.tensorrt FOLDER``: engines from an export, on the device


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print a table or JSON, give the exit code."""
    args = _parser().parse_args(argv)
    try:
        low, usual, high = (int(n) for n in args.batch.split(":"))
    except ValueError:
        print(f"--batch {args.batch!r} is not MIN:OPT:MAX.", file=sys.stderr)
        return 2
    try:
        options = EngineOptions(
            seconds=Seconds.parse(args.seconds) if args.seconds else None,
            batch=(low, usual, high),
            precisions=tuple(args.precision or PRECISIONS),
            workspace_mb=args.workspace_mb,
            typing=args.typing,
            compat=args.compat,
        )
        report = rebuild(args.folder, out_dir=args.out, options=options, say=_say)
    except FramiEdgeError as error:
        print(error.message, file=sys.stderr)
        if error.fix:
            print(error.fix, file=sys.stderr)
        return error.exit_code
    if args.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        print(table(report))
    return 0 if report.ok else 3


def table(report: EngineReport) -> str:
    """Plain text: a device has no rich."""
    head = ("engine", "kB", "p50 ms", "1 frame", "x fp32", "agree", "int8 conv", "verdict")
    rows = [head]
    for e in report.engines:
        layers = e.card.layers or {}
        convolutions = f"{layers.get('int8_convolutions', 0)}/{layers.get('convolutions', 0)}"
        rows.append(
            (
                e.path,
                f"{e.bytes / 1e3:.0f}",
                f"{e.p50_ms:.3f}",
                f"{e.chunk_p50_ms:.3f}",
                "" if e.speedup is None else f"{e.speedup:.2f}",
                f"{e.agreement:.1%}",
                convolutions if layers else "unknown",
                e.verdict,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines += [f"{precision}: {why}" for precision, why in report.failures.items()]
    return "\n".join([*(line.rstrip() for line in lines), *report.notes, report.reason])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m frami_edge_export.tensorrt",
        description="Build TensorRT engines from a folder of frami-edge export, on this device.",
        epilog="example: python -m frami_edge_export.tensorrt export/ --seconds 0:1:10",
    )
    parser.add_argument("folder", type=Path, help="holds export_report.json and the ONNX files")
    parser.add_argument("--out", type=Path, help="for the engines; default: the same folder")
    parser.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="repeatable; default: all three"
    )
    parser.add_argument(
        "--seconds", metavar="MIN:OPT:MAX", help="audio in one call; default: what streams need"
    )
    parser.add_argument("--batch", default="1:1:8", metavar="MIN:OPT:MAX", help="streams in a call")
    parser.add_argument("--workspace-mb", type=int, default=256, help="scratch memory, MiB")
    parser.add_argument("--typing", choices=TYPINGS, default="auto")
    parser.add_argument("--compat", choices=COMPATS, default="none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
