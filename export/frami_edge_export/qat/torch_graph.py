"""An int8 ONNX trunk as a torch module: what is fine-tuned is what will be written.

The module follows the graph that the exporter's own quantiser made, node by node, with the Q/DQ
pairs where that put them and on its grids. So every flavour can be trained, and none needs a second
definition of where quantisation happens.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge_export.errors import GraphError
from frami_edge_export.qat.fake_quant import fake_quant, fake_quant_weight
from frami_edge_runtime.modelfile import TRUNK_INPUT, TRUNK_OUTPUT

_LEVELS = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
Values = dict[str, Tensor]
_Step = Callable[[Values], None]


class TorchTrunk(nn.Module):
    """Mel (B, 1, M, T) -> frames (B, C, T') as a Q/DQ graph, or a float one, computes them.

    Args:
        model: The trunk's graph.
        weights: Float weights and biases by the name of their initializer in the fp32 graph; those
            that the graph stores as int8 or int32 are looked up here and rounded on the fly. None:
            the stored integers themselves, as proof of what was written.
        widths: Logarithm of a factor on each activation's range, by tensor; missing means 0.

    Raises:
        GraphError: An operator is none of those that students are made of.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: Mapping[str, Tensor] | None = None,
        widths: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._weights, self._widths = weights, widths or {}
        self._rounded: set[str] = set()
        self._steps = [self._step(node) for node in model.graph.node]

    def forward(self, mel_B1MT: Tensor) -> Tensor:
        """Frames (B, C, T')."""
        values: Values = {TRUNK_INPUT: mel_B1MT}
        for step in self._steps:
            step(values)
        return values[TRUNK_OUTPUT]

    def _step(self, node: onnx.NodeProto) -> _Step:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "QuantizeLinear":
            return self._quantize(node)
        if node.op_type == "DequantizeLinear":
            return self._dequantize(node)
        make = _OPERATORS.get(node.op_type)
        if make is None:
            raise GraphError(
                f"Fine-tuning with fake quantisation knows no operator {node.op_type} "
                f"({node.name}).",
                fix=f"Export without --qat, or build the trunk of {', '.join(_OPERATORS)}.",
            )
        compute = make(attributes, self._stored, node)
        read = [self._reader(name) for name in node.input if name]
        output = node.output[0]

        def step(values: Values) -> None:
            values[output] = compute(*(get(values) for get in read))

        return step

    def _reader(self, name: str) -> Callable[[Values], Tensor]:
        if self._weights is not None and name in self._weights:
            weight = self._weights[name]
            return lambda _: weight
        if name in self._stored:
            constant = torch.from_numpy(self._stored[name].copy())
            return lambda _: constant
        return lambda values: values[name]

    def _quantize(self, node: onnx.NodeProto) -> _Step:
        """Round to the grid and stay float; the DequantizeLinear that follows is a copy."""
        source, scale_name, zero_name = node.input
        scale = torch.from_numpy(self._stored[scale_name].reshape(()).astype(np.float32))
        zero = torch.from_numpy(self._stored[zero_name].reshape(()).astype(np.int32))
        low, high = _LEVELS[self._stored[zero_name].dtype]
        width = self._widths.get(scale_name.removesuffix("_scale"))
        read, output = self._reader(source), node.output[0]
        self._rounded.add(output)

        def step(values: Values) -> None:
            s = scale if width is None else scale * width.exp()
            values[output] = fake_quant(read(values), s, zero, low, high)

        return step

    def _dequantize(self, node: onnx.NodeProto) -> _Step:
        source, output = node.input[0], node.output[0]
        if source in self._rounded:

            def copy(values: Values) -> None:
                values[output] = values[source]

            return copy
        weight = None
        if self._weights is not None:
            weight = self._weights[source.removesuffix("_quantized")]
        stored = self._stored[source]
        if weight is None:
            scale = self._stored[node.input[1]].astype(np.float32)
            steps = scale.reshape(-1, *[1] * (stored.ndim - 1))
            constant = torch.from_numpy(stored.astype(np.float32) * steps)

            def restore(values: Values) -> None:
                values[output] = constant

            return restore
        # An int32 bias has steps too fine to matter.
        rounded = stored.dtype == np.int8

        def step(values: Values) -> None:
            values[output] = fake_quant_weight(weight) if rounded else weight

        return step


_Stored = Mapping[str, Any]
_Make = Callable[[dict[str, Any], _Stored, onnx.NodeProto], Callable[..., Tensor]]


def _conv(attributes: dict[str, Any], _stored: _Stored, _node: onnx.NodeProto) -> _Compute:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    keywords = {
        "stride": tuple(attributes.get("strides", [1, 1])),
        "dilation": tuple(attributes.get("dilations", [1, 1])),
        "groups": attributes.get("group", 1),
    }

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if (top, left) != (bottom, right):
            x = F.pad(x, (left, right, top, bottom))
            return F.conv2d(x, weight, bias, **keywords)
        return F.conv2d(x, weight, bias, padding=(top, left), **keywords)

    return compute


def _reduce_mean(attributes: dict[str, Any], stored: _Stored, node: onnx.NodeProto) -> _Compute:
    axes = [int(axis) for axis in stored[node.input[1]]]
    keep = bool(attributes.get("keepdims", 1))
    return lambda x, _axes: x.mean(dim=axes, keepdim=keep)


def _average_pool(attributes: dict[str, Any], _stored: _Stored, _node: onnx.NodeProto) -> _Compute:
    kernel = tuple(attributes["kernel_shape"])
    stride = tuple(attributes.get("strides", [1] * len(kernel)))
    return lambda x: F.avg_pool2d(x, kernel, stride)


def _squeeze(_attributes: dict[str, Any], stored: _Stored, node: onnx.NodeProto) -> _Compute:
    axes = tuple(int(axis) for axis in stored[node.input[1]])
    return lambda x, _axes: x.squeeze(axes)


def _clip(_attributes: dict[str, Any], _stored: _Stored, _node: onnx.NodeProto) -> _Compute:
    return lambda x, *limits: x.clamp(*(float(limit) for limit in limits))


def _max_pool(attributes: dict[str, Any], _stored: _Stored, _node: onnx.NodeProto) -> _Compute:
    pads = attributes.get("pads", [0, 0, 0, 0])
    stride = tuple(attributes.get("strides", [1, 1]))
    return lambda x: F.max_pool2d(
        x, tuple(attributes["kernel_shape"]), stride, padding=(pads[0], pads[1])
    )


_Compute = Callable[..., Tensor]
_OPERATORS: Mapping[str, _Make] = {
    "Conv": _conv,
    "Relu": lambda *_: F.relu,
    "Clip": _clip,
    "Add": lambda *_: torch.add,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "ReduceMean": _reduce_mean,
    "Squeeze": _squeeze,
    "Identity": lambda *_: lambda x: x,
}
