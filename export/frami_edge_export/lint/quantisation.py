"""What TensorRT demands of QuantizeLinear and DequantizeLinear.

Source: ``QuantDequantLinearHelper`` and ``checkActivation`` of onnx/onnx-tensorrt 10;
microsoft/onnxruntime#14229 and #17738 (int32 bias).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from frami_edge_export.lint.finding import Finding
from frami_edge_export.lint.graph_view import GraphView, attribute, where

_QUANTISED = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN)
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}
_SYMMETRIC = "Quantise symmetrically: signed int8 with a zero point of 0."
_FP16_SCALES_SINCE = 19


def quantisation_findings(view: GraphView) -> Iterator[Finding]:
    """Of every QuantizeLinear and DequantizeLinear."""
    for node in view.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _scale(view, node)
            yield from _zero_point(view, node)
            yield from _channels(view, node)
            yield from _partners(view, node)


def _scale(view: GraphView, node: onnx.NodeProto) -> Iterator[Finding]:
    tensor = view.constants.get(node.input[1])
    if tensor is None:
        yield Finding(
            "scale-dynamic", where(node), f"The scale {node.input[1]} is computed at run time.",
            "Make it an initialiser: calibrate statically.",
        )  # fmt: skip
        return
    scale = view.constant(node.input[1])
    if scale is not None and not bool((scale.astype(np.float64) > 0).all()):
        yield Finding(
            "scale-positive", where(node), f"A scale of {node.input[1]} is not above 0.",
            "Calibrate on samples that reach this tensor, or keep the layer float.",
        )  # fmt: skip
    if tensor.data_type == TensorProto.FLOAT16 and view.opset < _FP16_SCALES_SINCE:
        yield Finding(
            "scale-fp16", where(node),
            f"fp16 scales need opset {_FP16_SCALES_SINCE}; the graph is of opset {view.opset}.",
            "Export with opset 19 or 20, or keep float32 scales.",
        )  # fmt: skip


def _zero_point(view: GraphView, node: onnx.NodeProto) -> Iterator[Finding]:
    data = view.constants.get(node.input[0])
    if node.op_type == "DequantizeLinear" and data is not None:
        if data.data_type == TensorProto.INT32:
            yield Finding(
                "int32-bias", where(node),
                "A DequantizeLinear of int32, a quantised bias, is refused by the parser.",
                "Keep the bias float32 (QuantizeBias=False).",
            )  # fmt: skip
            return
        if data.data_type not in _QUANTISED:
            yield _unsigned(node, data.data_type)
            return
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        kind = attribute(node, "output_dtype", TensorProto.UNDEFINED)
        if node.op_type == "QuantizeLinear" and kind not in _QUANTISED:
            yield _unsigned(node, kind or TensorProto.UINT8)
        return
    if not view.is_constant(name):
        yield Finding(
            "zero-point", where(node), f"The zero point {name} is computed at run time.", _SYMMETRIC
        )
        return
    if view.constants[name].data_type not in _QUANTISED:
        yield _unsigned(node, view.constants[name].data_type)
    value = view.constant(name)
    if value is not None and bool((value.astype(np.float64) != 0).any()):
        yield Finding(
            "zero-point", where(node), f"The zero point {name} is not 0: asymmetric quantisation.",
            _SYMMETRIC,
        )  # fmt: skip


def _unsigned(node: onnx.NodeProto, data_type: int) -> Finding:
    kind = TensorProto.DataType.Name(data_type).lower()
    return Finding(
        "not-int8", where(node),
        f"It quantises to {kind}, which the parser refuses or silently reads as int8.",
        _SYMMETRIC,
    )  # fmt: skip


def _channels(view: GraphView, node: onnx.NodeProto) -> Iterator[Finding]:
    """More than one scale: on weights only, one an output channel, along that channel's axis."""
    scale = view.constants.get(node.input[1])
    if scale is None or int(np.prod(tuple(scale.dims), dtype=np.int64)) <= 1:
        return
    data = view.constants.get(node.input[0])
    if data is None:
        yield Finding(
            "per-channel-activation", where(node),
            f"{node.input[0]} is an activation and has a scale for each channel.",
            "Use one scale for each activation; per-channel scales are for weights.",
        )  # fmt: skip
        return
    axis = attribute(node, "axis", 1) % max(len(data.dims), 1)
    if data.dims[axis] != scale.dims[0] or len(scale.dims) != 1:
        yield Finding(
            "per-channel-size", where(node),
            f"{list(scale.dims)} scales along axis {axis} of weights {list(data.dims)}.",
            "Give one scale for each output channel.",
        )  # fmt: skip
    for user in view.consumers.get(node.output[0], []):
        wanted = _CHANNEL_AXIS.get(user.op_type)
        if wanted is not None and axis != wanted:
            yield Finding(
                "per-channel-axis", where(node),
                f"The scales lie along axis {axis}, but {user.op_type} needs axis {wanted}.",
                f"Quantise the weights along axis {wanted}.",
            )  # fmt: skip


def _partners(view: GraphView, node: onnx.NodeProto) -> Iterator[Finding]:
    """Explicit quantisation is in pairs: int8 may go into DequantizeLinear only."""
    if node.op_type == "QuantizeLinear":
        users = view.consumers.get(node.output[0], [])
        lone = [u for u in users if u.op_type != "DequantizeLinear"]
        if lone or not users:
            what = where(lone[0]) if lone else "nothing, or the output of the graph"
            yield Finding(
                "pair", where(node), f"Its int8 goes into {what}, not into a DequantizeLinear.",
                "Follow every QuantizeLinear with its DequantizeLinear.",
            )  # fmt: skip
        return
    source = view.producers.get(node.input[0])
    quantised = source is not None and source.op_type == "QuantizeLinear"
    if not quantised and not view.is_constant(node.input[0]):
        yield Finding(
            "pair", where(node), f"{node.input[0]} comes from no QuantizeLinear.",
            "Feed it by a QuantizeLinear or an int8 initialiser.",
        )  # fmt: skip
