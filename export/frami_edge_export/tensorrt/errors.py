"""What can go wrong between an ONNX file and an engine."""

from __future__ import annotations

from frami_edge_export.errors import ExportError

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
