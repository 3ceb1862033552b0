"""The rules of TensorRT's ONNX parser that can be checked in the file.

Only what is written in a file can be seen here: kernels, memory and speed show on the device. So
"clean" says that the parser has nothing to refuse by the rules below, not that an engine was built.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from frami_edge_export.errors import GraphError
from frami_edge_export.lint.finding import Finding
from frami_edge_export.lint.graph_view import GraphView, where
from frami_edge_export.lint.operators import CONSTANT_INPUTS, INSTEAD, SUPPORTED
from frami_edge_export.lint.quantisation import quantisation_findings

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
