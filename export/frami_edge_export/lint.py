"""Will TensorRT read this graph? Its parser's rules, checked without TensorRT and without a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from frami_edge_export.errors import GraphError

# --- One thing that TensorRT would refuse, or silently compute otherwise


@dataclass(frozen=True)
class Finding:
    """What is wrong, where, and what to do about it."""

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


# --- An ONNX graph with the look-ups that rules need


class GraphView:
    """Constants, producers and consumers of the main graph by tensor name.

    Args:
        model: Not changed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = tuple(model.graph.node)
        self.constants: dict[str, onnx.TensorProto] = {t.name: t for t in model.graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.output:
                self.producers[name] = node
            for name in filter(None, node.input):
                self.consumers.setdefault(name, []).append(node)
            if node.op_type == "Constant":
                for a in node.attribute:
                    if a.name == "value":
                        self.constants[node.output[0]] = a.t
        self.opset = max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0
        )

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """The value of a tensor that is known before the model runs; None where it is computed."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        value: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
        return value

    def is_constant(self, name: str) -> bool:
        """Whether the tensor is an initialiser or a Constant's output."""
        return name in self.constants

    def every_node(self) -> Iterator[onnx.NodeProto]:
        """Nodes of the graph and of the graphs inside If, Loop and Scan."""
        yield from _nodes_of(self.graph)


def where(node: onnx.NodeProto) -> str:
    """What to call a node."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from _nodes_of(a.g)


# --- Which operators TensorRT's ONNX parser has, and which of their inputs must be constants
# Source: the support matrix ``docs/operators.md`` of the open-source parser onnx/onnx-tensorrt (8.5,
# and what 10.0 added to it). TensorRT 10.3 is the oldest that a supported Jetson runs.

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
    "MelWeightMatrix": "Store the mel matrix as an initialiser.",
    "HannWindow": "Store the window as an initialiser.",
    "HammingWindow": "Store the window as an initialiser.",
    "BlackmanWindow": "Store the window as an initialiser.",
    "DynamicQuantizeLinear": "Quantise statically: QuantizeLinear and DequantizeLinear.",
    "ConvInteger": "Quantise with QuantizeLinear and DequantizeLinear around a float Conv.",
    "MatMulInteger": "Quantise with QuantizeLinear and DequantizeLinear around a float MatMul.",
    "QLinearConv": "Quantise in the QDQ format, not QOperator.",
    "QLinearMatMul": "Quantise in the QDQ format, not QOperator.",
}
"""What to do about the unsupported operators that audio models meet."""

CONSTANT_INPUTS: Final = {
    "CumSum": (1,),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Slice": (3,),
    "Squeeze": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
"""Positions of inputs, axes mostly, that must be initialisers."""


# --- What TensorRT demands of QuantizeLinear and DequantizeLinear
# Source: ``QuantDequantLinearHelper`` and ``checkActivation`` of onnx/onnx-tensorrt 10;
# microsoft/onnxruntime#14229 and #17738 (int32 bias).

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


# --- The rules of TensorRT's ONNX parser that can be checked in the file
# Only what is written in a file can be seen here: kernels, memory and speed show on the device. So
# "clean" says that the parser has nothing to refuse by the rules below, not that an engine was built.

MIN_OPSET: Final = 9
MAX_OPSET: Final = 20
"""Of TensorRT 10.0's parser; JetPack 6 has 10.3."""
MAX_IR: Final = 10
_NO_TYPES: Final = {
    TensorProto.DOUBLE: "is narrowed to float32",
    TensorProto.INT16: "is no type of TensorRT",
    TensorProto.UINT16: "is no type of TensorRT",
    TensorProto.UINT32: "is no type of TensorRT",
    TensorProto.UINT64: "is no type of TensorRT",
    TensorProto.COMPLEX64: "is no type of TensorRT",
    TensorProto.COMPLEX128: "is no type of TensorRT",
    TensorProto.STRING: "is no type of TensorRT",
}
_INT32: Final = np.iinfo(np.int32)


def lint_tensorrt(model: onnx.ModelProto | str | os.PathLike[str]) -> tuple[Finding, ...]:
    """What TensorRT 10.3 to 11.4 would refuse in a graph, or silently compute otherwise.

    Source: the open-source parser onnx/onnx-tensorrt and its support matrix.

    Args:
        model: A graph, or the path of an ``.onnx`` file; external data are not read.

    Returns:
        Findings in graph order, the file's own first; empty for a clean graph.

    Raises:
        GraphError: The file cannot be read, or is no ONNX.
    """
    view = GraphView(_loaded(model))
    return tuple(finding for rule in _RULES for finding in rule(view))


def _loaded(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    path = Path(model)
    try:
        loaded = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise GraphError(
            f"Cannot read {path}: {error.strerror or error}.", fix="Give the path of an .onnx file."
        ) from None
    except Exception:  # protobuf raises types of its own
        raise GraphError(
            f"{path} is no ONNX file, or a damaged one.", fix="Export it again."
        ) from None
    if not loaded.graph.node:
        raise GraphError(f"{path} holds no graph.", fix="Give an .onnx file; export it again.")
    return loaded


def _file(view: GraphView) -> Iterator[Finding]:
    if not MIN_OPSET <= view.opset <= MAX_OPSET:
        yield Finding(
            "opset", "", f"Opset {view.opset} is outside {MIN_OPSET} to {MAX_OPSET}.",
            f"Export with opset {MAX_OPSET}.",
        )  # fmt: skip
    if view.model.ir_version > MAX_IR:
        yield Finding(
            "ir", "", f"IR {view.model.ir_version} is newer than TensorRT 10.3 reads ({MAX_IR}).",
            f"Set ir_version to {MAX_IR}.",
        )  # fmt: skip
    external = [t.name for t in view.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if external:
        yield Finding(
            "external-data", external[0],
            f"{len(external)} initialisers lie in another file, which gets lost on the way.",
            "Save one file: onnx.save_model without external data.",
        )  # fmt: skip


def _operators(view: GraphView) -> Iterator[Finding]:
    for node in view.every_node():
        if node.domain not in ("", "ai.onnx"):
            yield Finding(
                "operator", where(node),
                f"{node.domain}.{node.op_type} is no standard operator: it would need a plugin.",
                "Export without runtime-specific optimisation.",
            )  # fmt: skip
        elif node.op_type not in SUPPORTED:
            yield Finding(
                "operator", where(node), f"{node.op_type} is not supported by the parser.",
                INSTEAD.get(node.op_type, "Replace it by supported operators."),
            )  # fmt: skip


def _constant_inputs(view: GraphView) -> Iterator[Finding]:
    for node in view.nodes:
        for i in CONSTANT_INPUTS.get(node.op_type, ()):
            name = node.input[i] if len(node.input) > i else ""
            if name and not view.is_constant(name):
                yield Finding(
                    "constant-input", where(node),
                    f"Input {i} of {node.op_type}, {name}, is computed at run time.",
                    "Make it an initialiser.",
                )  # fmt: skip


def _types(view: GraphView) -> Iterator[Finding]:
    for name, tensor in view.constants.items():
        if tensor.data_type in _NO_TYPES:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            yield Finding(
                "type", name, f"{kind} {_NO_TYPES[tensor.data_type]}.", "Store it as float32."
            )
        if tensor.data_type != TensorProto.INT64:
            continue
        value = view.constant(name)
        # INT64_MAX is how ONNX writes "to the end" in Slice: the parser clamps it.
        if value is not None and any(
            not _INT32.min <= int(v) <= _INT32.max and abs(int(v)) < (1 << 62) for v in value.flat
        ):
            yield Finding(
                "int64", name, "It holds numbers beyond int32, which shape tensors are cut to.",
                "Keep them within int32.",
            )  # fmt: skip


def _shapes(view: GraphView) -> Iterator[Finding]:
    """An optimisation profile names inputs and gives their dynamic sizes."""
    constants = {t.name for t in view.graph.initializer}
    for port in view.graph.input:
        if port.name in constants:
            continue
        if not port.type.tensor_type.HasField("shape"):
            yield Finding(
                "shape", port.name, "Its rank is unknown: no profile can describe it.",
                "Export it with a fixed rank.",
            )  # fmt: skip
            continue
        dims = port.type.tensor_type.shape.dim
        for i, dim in enumerate(dims):
            if not dim.dim_param and dim.dim_value <= 0:
                yield Finding(
                    "shape", port.name, f"Axis {i} has neither a size nor a name.",
                    "Name the dynamic axis (dim_param) or fix it.",
                )  # fmt: skip
        convolved = any(
            user.op_type in ("Conv", "ConvTranspose") for user in view.consumers.get(port.name, [])
        )
        if convolved and len(dims) > 1 and dims[1].dim_value <= 0:
            yield Finding(
                "shape", port.name, "Its channels are dynamic and go into a convolution.",
                "Fix axis 1: TensorRT convolves a known number of channels.",
            )  # fmt: skip


_RULES: Final[tuple[Callable[[GraphView], Iterator[Finding]], ...]] = (
    _file,
    _shapes,
    _types,
    _operators,
    _constant_inputs,
    quantisation_findings,
)


# --- Will TensorRT read this graph? Its parser's rules, checked without TensorRT and without a G

__all__ = ["Finding", "lint_tensorrt"]
