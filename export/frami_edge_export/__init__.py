"""FRAMI students to ONNX, with proof that the numbers survived.

`export_student` writes every file and measures each; its `ExportReport` says which one to use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "Artifact": "report",
    "Calibration": "report",
    "CalibrationError": "errors",
    "ExportError": "errors",
    "ExportOptions": "options",
    "ExportReport": "report",
    "ExportableStudent": "graph",
    "Finding": "lint",
    "Gate": "report",
    "GraphError": "errors",
    "LayerRange": "calibration",
    "ParityError": "errors",
    "StudentFacts": "graph",
    "calibration_ranges": "calibration",
    "check_parity": "parity",
    "classify_mels": "calibration",
    "export_student": "exporter",
    "lint_tensorrt": "lint",
    "markdown_card": "report",
}
"""Where each name lives. Imported when first used: on a device `frami_edge_export.tensorrt` must
work without torch and onnx."""


def __getattr__(name: str) -> Any:
    """The public names, each from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx", "onnxscript", "onnxruntime"):
            raise
        raise ImportError(
            f"frami_edge_export.{name} needs {error.name}: pip install 'frami-edge-export[torch]' "
            "(Python >= 3.11). Building engines on a device needs neither."
        ) from None
