"""FRAMI students to ONNX, with proof that the numbers survived.

`export_student` writes every file and measures each; its `ExportReport` says which one to use.
"""

from frami_edge_export.calibration_gate import LayerRange, calibration_ranges
from frami_edge_export.errors import (
    CalibrationError,
    ExportError,
    GraphError,
    ParityError,
)
from frami_edge_export.exporter import export_student
from frami_edge_export.lint import Finding, lint_tensorrt
from frami_edge_export.markdown import markdown_card
from frami_edge_export.mels import classify_mels
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import check_parity
from frami_edge_export.protocol import ExportableStudent, StudentFacts
from frami_edge_export.report import Artifact, Calibration, ExportReport, Gate

__version__ = "0.1.0"

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
