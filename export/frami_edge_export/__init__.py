"""FRAMI students as ONNX files, measured against the torch student.

`export_student` writes every file and measures each; its `ExportReport` recommends one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import frami_edge_runtime  # noqa: F401  # turns ONNX Runtime's telemetry off before its import

if TYPE_CHECKING:
    from frami_edge_export.calibration import LayerRange, calibration_ranges, classify_mels
    from frami_edge_export.errors import CalibrationError, ExportError, GraphError, ParityError
    from frami_edge_export.exporter import export_student
    from frami_edge_export.graph import ExportableStudent, StudentFacts
    from frami_edge_export.lint import Finding, lint_tensorrt
    from frami_edge_export.options import ExportOptions
    from frami_edge_export.parity import check_parity
    from frami_edge_export.report import Artifact, Calibration, ExportReport, Gate, markdown_card

__version__ = "0.2.0"

# Names are imported on first use: `frami_edge_export.tensorrt` must work without torch and onnx.
_MODULES = {
    "calibration": ("LayerRange", "calibration_ranges", "classify_mels"),
    "errors": ("CalibrationError", "ExportError", "GraphError", "ParityError"),
    "exporter": ("export_student",),
    "graph": ("ExportableStudent", "StudentFacts"),
    "lint": ("Finding", "lint_tensorrt"),
    "options": ("ExportOptions",),
    "parity": ("check_parity",),
    "report": ("Artifact", "Calibration", "ExportReport", "Gate", "markdown_card"),
}

__all__ = [
    "Artifact",
    "Calibration",
    "CalibrationError",
    "ExportError",
    "ExportOptions",
    "ExportReport",
    "ExportableStudent",
    "Finding",
    "Gate",
    "GraphError",
    "LayerRange",
    "ParityError",
    "StudentFacts",
    "calibration_ranges",
    "check_parity",
    "classify_mels",
    "export_student",
    "lint_tensorrt",
    "markdown_card",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx", "onnxscript", "onnxruntime"):
            raise
        raise ImportError(
            f"frami_edge_export.{name} needs {error.name}: pip install 'frami-edge-export[torch]' "
            "(Python >= 3.11). Building engines on a device needs neither torch nor onnx."
        ) from None
