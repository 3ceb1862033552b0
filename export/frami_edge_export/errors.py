"""Errors of the export package; each message comes with a fix."""

from __future__ import annotations

from frami_edge_runtime.errors import FramiEdgeError


class ExportError(FramiEdgeError):
    """A student that cannot be exported, or files that cannot be written."""


class GraphError(ExportError):
    """An ONNX graph that a device cannot load: opset, IR or operators."""


class ParityError(ExportError):
    """An ONNX graph that differs from torch in names or shapes, or gives non-finite values."""


class CalibrationError(ExportError):
    """A calibration set that is missing or implausible."""
