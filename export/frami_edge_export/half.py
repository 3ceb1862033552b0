"""fp16 inside, float32 outside: strongly typed TensorRT computes in the types that the graph has.

Only the trunk is converted. Statistics and head stay outside the graph in float64, so nothing in
here can lose a variance (one-pass variance in fp16 is off by up to 3500 %).
"""

from __future__ import annotations

import copy
import heapq
import warnings
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from frami_edge_export.errors import GraphError
from frami_edge_export.graphs import check_loadable, strip

KEPT_FLOAT: Final = (
    *("ReduceMean", "AveragePool", "GlobalAveragePool", "Squeeze"),
    *("Sub", "Pow", "Sqrt", "Concat", "Gemm", "Log"),
)
"""Sums, and what follows pooling. The mean over frequency ends the trunk, so the frames themselves
are never rounded to fp16."""
LARGEST: Final = float(np.finfo(np.float16).max)
SCALE_ERROR: Final = 0.01
"""How far rounding to fp16 may move a quantisation scale, as a share: below 6e-5 fp16 has no more
full precision, and at 3e-8 a scale would become 0."""
FIRST_HALF_SCALES: Final = 19
"""The opset from which QuantizeLinear and DequantizeLinear take fp16 scales."""


def half_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fp16, float or with explicit Q/DQ; its inputs and outputs stay float32.

    Args:
        model: A trunk, mel (B, 1, M, T) -> frames (B, C, T') float32; not changed.

    Returns:
        Nodes in topological order, checked, of the same opset and names.

    Raises:
        GraphError: A weight is beyond fp16's 65504, a quantisation scale too small for fp16, or
            the opset too old for fp16 scales.
    """
    model = copy.deepcopy(model)
    strip(model)
    _check_weights(model)
    _check_scales(model)
    with warnings.catch_warnings():
        # It warns of every weight that becomes subnormal: nothing a user can act on.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(
            model,
            keep_io_types=True,
            disable_shape_infer=False,
            op_block_list=list(KEPT_FLOAT),
        )
    strip(half)
    _sort(half.graph)
    _drop_round_trips(half.graph)
    check_loadable(half)
    onnx.checker.check_model(half, full_check=True)
    if half_share(half) == 0.0:
        raise GraphError(
            "Nothing in the graph could be converted to fp16.",
            fix="Check that it is a student's trunk in float32.",
        )
    return half


def half_share(model: onnx.ModelProto) -> float:
    """Share of the graph's floating-point constants that are fp16, by number of values."""
    sizes = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims, dtype=np.int64))
    return sizes[TensorProto.FLOAT16] / max(1, sum(sizes.values()))


def _check_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            if values.size and not float(np.abs(values).max()) <= LARGEST:
                raise GraphError(
                    f"{tensor.name} reaches {float(np.abs(values).max()):.3g}; fp16 ends at "
                    f"{LARGEST:.0f}.",
                    fix="Export without fp16, or distil the student again with weight decay.",
                )


def _check_scales(model: onnx.ModelProto) -> None:
    constants = {t.name: t for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if nodes and opset < FIRST_HALF_SCALES:
        raise GraphError(
            f"The int8 graph is of opset {opset}; fp16 scales need {FIRST_HALF_SCALES}.",
            fix="Export the student again: frami-edge writes opset 20.",
        )
    for node in nodes:
        scale = constants.get(node.input[1])
        if scale is None or scale.data_type != TensorProto.FLOAT:
            continue
        exact = numpy_helper.to_array(scale)
        error = np.abs(exact.astype(np.float16).astype(np.float64) / exact - 1.0)
        if not float(error.max(initial=0.0)) <= SCALE_ERROR:
            raise GraphError(
                f"The quantisation scale {scale.name} falls to {float(exact.min()):.3g}, which "
                f"fp16 cannot hold.",
                fix="Keep the int8 graph's float part in float32.",
            )


def _drop_round_trips(graph: onnx.GraphProto) -> None:
    """Undo float32 -> fp16 -> float32 behind what stays float: the converter rounds there twice."""
    producer = {name: node for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    for widen in [n for n in graph.node if _casts(n, TensorProto.FLOAT)]:
        narrow = producer.get(widen.input[0])
        if narrow is None or not _casts(narrow, TensorProto.FLOAT16):
            continue
        source = producer.get(narrow.input[0])
        if source is None or source.op_type not in KEPT_FLOAT:
            continue
        kept, gone = source.output[0], widen.output[0]
        if gone in outputs:
            # A graph output keeps its name, so what makes it takes that name.
            kept, gone = gone, kept
            source.output[0] = kept
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == gone:
                    node.input[i] = kept
        graph.node.remove(widen)
    used = outputs | {name for node in graph.node for name in node.input}
    for node in [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in used]:
        graph.node.remove(node)


def _casts(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == to for a in node.attribute)


def _sort(graph: onnx.GraphProto) -> None:
    """Topological order, stable: the converter appends its casts at the end."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
    needs = [{producer[n] for n in node.input if n in producer} for node in graph.node]
    users: dict[int, list[int]] = {}
    for i, needed in enumerate(needs):
        for j in needed:
            users.setdefault(j, []).append(i)
    ready = [i for i, needed in enumerate(needs) if not needed]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for user in users.get(i, []):
            needs[user].discard(i)
            if not needs[user]:
                heapq.heappush(ready, user)
    nodes = [copy.deepcopy(graph.node[i]) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
