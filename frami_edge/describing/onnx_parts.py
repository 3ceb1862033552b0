"""What an ONNX graph is made of: weights, operators, int8 layers, and strings that should not be.

Nothing is run; only the protobuf is read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that have weights worth quantising."""
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_INT8 = (TensorProto.INT8, TensorProto.UINT8)
_WEIGHT_TYPES = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
    TensorProto.INT8, TensorProto.UINT8,
)  # fmt: skip
_LEAK = re.compile(
    r"Traceback \(most recent|File \"[^\"]+\", line \d+"
    r"|(?:^|[\s'\"=:(,])(?:/(?:home|root|tmp|Users|usr|opt|mnt|var|workspace|work|data)/[^\s'\",]+"
    r"|[A-Za-z]:\\[^\s'\",]+)"
)


@dataclass(frozen=True)
class Layer:
    """An operator with weights."""

    name: str
    op: str
    weights: str
    """Type of the weights as the graph computes with them: ``int8``, ``float``, ``float16``..."""
    activations: str
    """``uint8``, ``int8`` or ``float``."""

    @property
    def quantised(self) -> bool:
        """Both sides are 8-bit."""
        return self.weights in ("int8", "uint8") and self.activations in ("int8", "uint8")


@dataclass(frozen=True)
class Parts:
    """Of one graph."""

    parameters: int
    """Numbers in the weights; scales and zero points do not count."""
    weight_bytes: int
    """Of all initialisers."""
    types: dict[str, int]
    """Parameters by type."""
    operators: dict[str, int]
    """Nodes by operator, most frequent first."""
    layers: tuple[Layer, ...]


def parts_of(model: onnx.ModelProto) -> Parts:
    """Count and sort what is in the graph."""
    graph = model.graph
    tensors = {t.name: t for t in _tensors(graph)}
    nodes = list(graph.node)
    auxiliary = {
        name for node in nodes if node.op_type in _QDQ for name in list(node.input)[1:] if name
    }
    # An int32 tensor is a table of indices, unless it is the bias of an int8 layer.
    dequantised = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    types: Counter[str] = Counter()
    weight_bytes = 0
    for name, tensor in tensors.items():
        weight_bytes += _bytes(tensor)
        count = math.prod(tensor.dims)
        weight = tensor.data_type in _WEIGHT_TYPES or name in dequantised
        if weight and name not in auxiliary and count > 1:
            types[_type(tensor.data_type)] += count
    operators = Counter(node.op_type for node in nodes)
    return Parts(
        sum(types.values()),
        weight_bytes,
        dict(types.most_common()),
        dict(operators.most_common()),
        tuple(_layers(nodes, tensors)),
    )


def leaks(model: onnx.ModelProto) -> list[str]:
    """Local paths and stack traces that the file carries, shortened; where, then what."""
    found: dict[str, str] = {}
    for where, text in _strings(model):
        hit = _LEAK.search(text)
        if hit and where not in found:
            shown = hit.group(0).strip()
            found[where] = shown if len(shown) <= 60 else shown[:57] + "..."
    return [f"{where}: {what}" for where, what in found.items()]


def port_text(port: onnx.ValueInfoProto) -> str:
    """Name, type and shape of an input or output."""
    tensor = port.type.tensor_type
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?")
            for d in tensor.shape.dim]  # fmt: skip
    kind = _type(tensor.elem_type) if tensor.elem_type else "no tensor"
    return f"{port.name} {kind} ({', '.join(dims)})"


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's own entries."""
    return {entry.key: entry.value for entry in model.metadata_props}


def _layers(nodes: list[onnx.NodeProto], tensors: dict[str, TensorProto]) -> Iterator[Layer]:
    made_by = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type not in WEIGHED or len(node.input) < 2:
            continue
        weights = _operand(node.input[1], made_by, tensors)
        if weights == "computed":
            continue  # a product of two activations has no weights
        activations = _operand(node.input[0], made_by, tensors)
        yield Layer(
            node.name or node.output[0], node.op_type, weights,
            activations if activations in ("int8", "uint8") else "float",
        )  # fmt: skip


def _operand(name: str, made_by: dict[str, onnx.NodeProto], tensors: dict[str, TensorProto]) -> str:
    """Type that a layer reads: 8-bit behind a DequantizeLinear, else the tensor's own."""
    maker = made_by.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        source = tensors.get(maker.input[0])
        if source is not None:
            return _type(source.data_type)
        point = tensors.get(maker.input[2]) if len(maker.input) > 2 else None
        if point is not None and point.data_type in _INT8:
            return _type(point.data_type)
        return "uint8"  # the type that a missing zero point stands for
    tensor = tensors.get(name)
    return "computed" if tensor is None else _type(tensor.data_type)


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    copy = TensorProto()
                    copy.CopyFrom(attribute.t)
                    copy.name = node.output[0]
                    yield copy


def _bytes(tensor: TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return int(tensor.ByteSize())


def _type(number: int) -> str:
    try:
        name = TensorProto.DataType.Name(number).lower()
    except ValueError:
        return f"type {number}"
    return "float" if name == "float" else str(name)


def _strings(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    yield "doc_string", model.doc_string
    yield "graph's doc_string", model.graph.doc_string
    for entry in model.metadata_props:
        yield f"metadata {entry.key}", entry.value[:1_000_000]
    for node in model.graph.node:
        where = f"node {node.name or node.op_type}"
        yield where, node.doc_string
        yield where, node.name
        for entry in node.metadata_props:
            yield f"{where}, {entry.key}", entry.value
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.STRING:
                yield where, helper.get_attribute_value(attribute).decode("utf-8", "replace")
    for tensor in model.graph.initializer:
        yield f"tensor {tensor.name}", tensor.doc_string
        for item in tensor.external_data:
            yield f"tensor {tensor.name}", item.value
