"""Will TensorRT read this graph? Its parser's rules, checked without TensorRT and without a GPU.

Only what is written in a file is checked: kernels, memory and speed show on the device. "Clean"
means that the parser has nothing to refuse by these rules, not that an engine was built.

Sources: support matrix ``docs/operators.md`` and ``QuantDequantLinearHelper`` of the open-source
parser onnx/onnx-tensorrt, 8.5 to 10; microsoft/onnxruntime#14229 and #17738 (int32 bias).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from frami_edge_export.errors import GraphError
from frami_edge_export.graph import MAX_IR, opset_of

MIN_OPSET: Final = 9
MAX_OPSET: Final = 20
"""Limits of TensorRT 10.0's parser; JetPack 6 has 10.3."""
_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity If
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min
Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RNN
RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scan ScatterElements
ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
Unsqueeze Upsample Where Xor
"""
SUPPORTED: Final = frozenset(_NAMES.split())
INSTEAD: Final = {
    "STFT": "Compute the mel on the host, or as a convolution with windowed sines and cosines.",
    "DFT": "Compute the mel on the host, or as a convolution with windowed sines and cosines.",
    "DynamicQuantizeLinear": "Quantise statically: QuantizeLinear and DequantizeLinear.",
    "ConvInteger": "Quantise with QuantizeLinear and DequantizeLinear around a float Conv.",
    "MatMulInteger": "Quantise with QuantizeLinear and DequantizeLinear around a float MatMul.",
    "QLinearConv": "Quantise in the QDQ format, not QOperator.",
    "QLinearMatMul": "Quantise in the QDQ format, not QOperator.",
}
"""Fixes for the unsupported operators that audio models use; the rest become initialisers."""
CONSTANT_INPUTS: Final = {name: 1 for name in SUPPORTED if name.startswith("Reduce")} | {
    "CumSum": 1,
    "Slice": 3,
    "Squeeze": 1,
    "TopK": 1,
    "Unsqueeze": 1,
}
"""Position of the input, mostly the axes, that must be an initialiser."""
_NO_TYPES: Final = {
    TensorProto.DOUBLE,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
    TensorProto.STRING,
}
_QUANTISED = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN)
_FP16_SCALES_SINCE: Final = 19
_SYMMETRIC = "Quantise symmetrically: signed int8 with a zero point of 0."


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT would refuse, or silently compute otherwise."""

    rule: str
    """Short name of the rule, such as ``zero-point``."""
    node: str
    """Name of the node or tensor; "" for the file as a whole."""
    message: str
    """One sentence: what TensorRT does with it."""
    fix: str
    """One sentence: what to change."""

    def __str__(self) -> str:
        """Rule, node, message and fix in one line."""
        where = f" at {self.node}" if self.node else ""
        return f"{self.rule}{where}: {self.message} {self.fix}"


def lint_tensorrt(model: onnx.ModelProto | str | os.PathLike[str]) -> tuple[Finding, ...]:
    """What TensorRT 10.3 to 11.4 would refuse in a graph or file, or compute otherwise.

    The file's own findings come first; a clean graph has none. External data are not read.

    Raises:
        GraphError: The file cannot be read, or is not ONNX.
    """
    graph = _Graph(model if isinstance(model, onnx.ModelProto) else _load(Path(model)))
    found = [Finding(rule, "", message, fix) for rule, message, fix in graph.file_rules()]
    for port in graph.inputs:
        found += [Finding("shape", port.name, *rule) for rule in graph.port_rules(port)]
    for name, tensor in graph.constants.items():
        if tensor.data_type in _NO_TYPES:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            found.append(Finding("type", name, f"TensorRT has no {kind}.", "Store it as float32."))
    for node in _every_node(graph.nodes):
        where = str(node.name or (node.output[0] if node.output else node.op_type))
        found += [Finding(rule, where, message, fix) for rule, message, fix in graph.rules(node)]
    return tuple(found)


def _load(path: Path) -> onnx.ModelProto:
    try:
        loaded = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf raises types of its own
        reason = getattr(error, "strerror", None) or "it is not an ONNX file, or a damaged one"
        raise GraphError(f"Cannot read {path}: {reason}.", fix="Export it again.") from None
    if not loaded.graph.node:
        raise GraphError(f"{path} holds no graph.", fix="Give an .onnx file; export it again.")
    return loaded


def _every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of the graphs inside If, Loop and Scan."""
    for node in nodes:
        yield node
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from _every_node(a.g.node)


Rules = Iterator[tuple[str, str, str]]
"""Rule, message and fix."""


class _Graph:
    """The rules, with the constants, producers and consumers of a graph by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes, self.opset = model, model.graph.node, opset_of(model)
        self.constants = {t.name: t for t in model.graph.initializer}
        self.inputs = [port for port in model.graph.input if port.name not in self.constants]
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in filter(None, node.input):
                self.consumers.setdefault(name, []).append(node)
            for a in node.attribute:
                if node.op_type == "Constant" and a.HasField("t"):
                    self.constants[node.output[0]] = a.t

    def file_rules(self) -> Rules:
        """Opset, IR, and weights in another file."""
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            message = f"Opset {self.opset} is outside {MIN_OPSET} to {MAX_OPSET}."
            yield "opset", message, f"Export with opset {MAX_OPSET}."
        if (ir := self.model.ir_version) > MAX_IR:
            message = f"IR {ir} is newer than TensorRT 10.3 reads ({MAX_IR})."
            yield "ir", message, f"Set ir_version to {MAX_IR}."
        external = [t for t in self.constants.values() if t.data_location == TensorProto.EXTERNAL]
        if external:
            message = f"{len(external)} initialisers are in another file, which gets lost."
            yield "external-data", message, "Save one file without external data."

    def port_rules(self, port: onnx.ValueInfoProto) -> Iterator[tuple[str, str]]:
        """An optimisation profile names inputs and gives their dynamic sizes."""
        tensor = port.type.tensor_type
        dims = tensor.shape.dim
        if not tensor.HasField("shape") or any(not d.dim_param and d.dim_value <= 0 for d in dims):
            message = "Its rank is unknown, or an axis has neither a size nor a name."
            yield message, "Fix the rank and name each dynamic axis."
        users = {user.op_type for user in self.consumers.get(port.name, [])}
        if users & {"Conv", "ConvTranspose"} and len(dims) > 1 and dims[1].dim_value <= 0:
            yield "Its channels are dynamic and go into a convolution.", "Fix axis 1."

    def rules(self, node: onnx.NodeProto) -> Rules:
        """Operator, constant inputs and quantisation of one node."""
        standard = node.domain in ("", "ai.onnx")
        if not standard or node.op_type not in SUPPORTED:
            kind = node.op_type if standard else f"{node.domain}.{node.op_type}"
            fix = INSTEAD.get(node.op_type, "Replace it by supported operators or an initialiser.")
            yield "operator", f"{kind} is not supported by the parser.", fix
        i = CONSTANT_INPUTS.get(node.op_type, len(node.input))
        if i < len(node.input) and node.input[i] and node.input[i] not in self.constants:
            message = f"Input {i} of {node.op_type}, {node.input[i]}, is computed at run time."
            yield "constant-input", message, "Make it an initialiser."
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from self._scale(node)
            yield from self._zero_point(node)
            yield from self._partners(node)

    def _value(self, name: str) -> npt.NDArray[np.float64] | None:
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        value: npt.NDArray[np.float64] = numpy_helper.to_array(tensor).astype(np.float64)
        return value

    def _scale(self, node: onnx.NodeProto) -> Rules:
        """Constant, positive, and one per channel on weights only, along the output channels."""
        tensor, scale = self.constants.get(node.input[1]), self._value(node.input[1])
        if tensor is None:
            message = f"The scale {node.input[1]} is computed at run time."
            yield "scale-dynamic", message, "Make it an initialiser: calibrate statically."
            return
        if scale is not None and not bool((scale > 0).all()):
            fix = "Calibrate on samples that reach this tensor, or keep the layer float."
            yield "scale-positive", f"A scale of {node.input[1]} is not above 0.", fix
        if tensor.data_type == TensorProto.FLOAT16 and self.opset < _FP16_SCALES_SINCE:
            message = f"fp16 scales need opset {_FP16_SCALES_SINCE}; the graph is of {self.opset}."
            yield "scale-fp16", message, "Export with opset 19 or 20, or keep float32 scales."
        if int(np.prod(tuple(tensor.dims), dtype=np.int64)) <= 1:
            return
        data = self.constants.get(node.input[0])
        if data is None:
            message = f"{node.input[0]} is an activation and has a scale for each channel."
            yield "per-channel-activation", message, "Use one scale for each activation."
            return
        axis = _attribute(node, "axis", 1) % max(len(data.dims), 1)
        if len(tensor.dims) != 1 or data.dims[axis] != tensor.dims[0]:
            message = f"{list(tensor.dims)} scales along axis {axis} of weights {list(data.dims)}."
            yield "per-channel-size", message, "Give one scale for each output channel."
        for user in self.consumers.get(node.output[0], []):
            wanted = {"Conv": 0, "ConvTranspose": 1}.get(user.op_type, axis)
            if axis != wanted:
                message = f"The scales are along axis {axis}; {user.op_type} needs axis {wanted}."
                yield "per-channel-axis", message, f"Quantise the weights along axis {wanted}."

    def _zero_point(self, node: onnx.NodeProto) -> Rules:
        """Signed, 0 and constant; no int32 data, which is a quantised bias."""
        data = self.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if data is not None and data.data_type == TensorProto.INT32:
            message = "A DequantizeLinear of int32, a quantised bias, is refused by the parser."
            yield "int32-bias", message, "Keep the bias float32 (QuantizeBias=False)."
            return
        name = node.input[2] if len(node.input) > 2 else ""
        typed = data if data is not None else self.constants.get(name)
        kind = TensorProto.INT8 if typed is None else typed.data_type
        if not name and node.op_type == "QuantizeLinear":
            kind = _attribute(node, "output_dtype", TensorProto.UINT8)
        if kind not in _QUANTISED:
            dtype = TensorProto.DataType.Name(kind).lower()
            message = f"It quantises to {dtype}, which the parser refuses or reads as int8."
            yield "not-int8", message, _SYMMETRIC
        value = self._value(name)
        if name and (name not in self.constants or (value is not None and bool(value.any()))):
            message = f"The zero point {name} is not a constant 0: asymmetric quantisation."
            yield "zero-point", message, _SYMMETRIC

    def _partners(self, node: onnx.NodeProto) -> Rules:
        """Explicit quantisation is in pairs: int8 may go into DequantizeLinear only."""
        if node.op_type == "QuantizeLinear":
            users = self.consumers.get(node.output[0], [])
            if not users or any(user.op_type != "DequantizeLinear" for user in users):
                message = "Its int8 goes elsewhere than into a DequantizeLinear."
                yield "pair", message, "Follow every QuantizeLinear with its DequantizeLinear."
            return
        source = self.producers.get(node.input[0])
        quantised = source is not None and source.op_type == "QuantizeLinear"
        if not quantised and node.input[0] not in self.constants:
            message = f"{node.input[0]} comes from no QuantizeLinear."
            yield "pair", message, "Feed it by a QuantizeLinear or an int8 initialiser."


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
