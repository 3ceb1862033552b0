"""Which ONNX files of an export become engines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from frami_edge_export.errors import ExportError
from frami_edge_runtime.modelfile import HEAD_KEY, METADATA_KEY, ModelInfo

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
