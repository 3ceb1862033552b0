"""What can go wrong in an export; every error is a sentence and a fix."""

from __future__ import annotations

from frami_edge_runtime.errors import FramiEdgeError


class ExportError(FramiEdgeError):
    """A student that cannot be exported, or files that cannot be written."""


class GraphError(ExportError):
    """The ONNX graph is not what a device can load: opset, IR or operators."""


class ParityError(ExportError):
    """An ONNX graph that differs from the torch student: names, shapes or non-finite values."""


class CalibrationError(ExportError):
    """A calibration set that cannot be right."""
