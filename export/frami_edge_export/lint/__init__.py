"""Will TensorRT read this graph? Its parser's rules, checked without TensorRT and without a GPU."""

from frami_edge_export.lint.finding import Finding
from frami_edge_export.lint.tensorrt import lint_tensorrt

__all__ = ["Finding", "lint_tensorrt"]
