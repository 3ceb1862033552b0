"""The fp16 files of an export, for TensorRT: strongly typed engines compute in the graph's types.

Only the trunk is converted. Statistics and head stay outside the graph in float64: a one-pass
variance in fp16 is off by up to 3500 %.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from frami_edge_export.errors import GraphError
from frami_edge_export.graph import OnnxStudent, check_loadable, opset_of, strip
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Array, Comparison, cpu_session, run_trunk
from frami_edge_export.report import Artifact, Draft, Gate
from frami_edge_runtime.modelfile import METADATA_KEY, ModelInfo

_SUMS = ("ReduceMean", "AveragePool", "GlobalAveragePool")
KEPT_FLOAT: Final = (*_SUMS, "Squeeze", "Sub", "Pow", "Sqrt", "Concat", "Gemm", "Log")
"""Sums, and what follows pooling. The mean over frequency ends the trunk, so the frames themselves
are never rounded to fp16."""
SCALE_ERROR: Final = 0.01
"""How far rounding to fp16 may move a quantisation scale, as a share: below 6e-5 fp16 has no more
full precision, and at 3e-8 a scale would become 0."""
FIRST_HALF_SCALES: Final = 19
"""The opset from which QuantizeLinear and DequantizeLinear take fp16 scales."""
MAX_DIFFERENCE: Final = 2e-2
"""Limit for the logits, per unit of the largest and absolute below 1; measured: 2e-4 to 2e-3."""


def half_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A trunk in fp16, float or with explicit Q/DQ; its inputs and outputs stay float32.

    Nodes are in topological order, checked, of the same opset and names.

    Raises:
        GraphError: A weight is beyond fp16's 65504, a quantisation scale too small for fp16, or
            the opset too old for fp16 scales.
    """
    model = strip(copy.deepcopy(model))
    _check_range(model)
    with warnings.catch_warnings():
        # The converter warns about every weight that becomes subnormal: a user can do nothing.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(
            model, keep_io_types=True, disable_shape_infer=False, op_block_list=list(KEPT_FLOAT)
        )
    strip(half)
    OnnxModel.graph_topological_sort(half.graph)  # the converter appends its casts at the end
    _drop_round_trips(half.graph)
    check_loadable(half)
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


def _check_range(model: onnx.ModelProto) -> None:
    nodes = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {node.input[1] for node in nodes}
    if nodes and opset_of(model) < FIRST_HALF_SCALES:
        raise GraphError(
            f"The int8 graph is of opset {opset_of(model)}; fp16 scales need {FIRST_HALF_SCALES}.",
            fix="Export the student again: frami-edge writes opset 20.",
        )
    largest = float(np.finfo(np.float16).max)
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        exact = numpy_helper.to_array(tensor)
        if not float(np.abs(exact).max(initial=0.0)) <= largest:
            raise GraphError(
                f"{tensor.name} reaches {float(np.abs(exact).max()):.3g}; fp16 ends at "
                f"{largest:.0f}.",
                fix="Export without fp16, or distil the student again with weight decay.",
            )
        if tensor.name in scales:
            error = np.abs(exact.astype(np.float16).astype(np.float64) / exact - 1.0)
            if not float(error.max(initial=0.0)) <= SCALE_ERROR:
                raise GraphError(
                    f"The quantisation scale {tensor.name} falls to {float(exact.min()):.3g}, "
                    "which fp16 cannot hold.",
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
            # A graph output keeps its name, so its new producer takes that name.
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


def half_drafts(
    student: OnnxStudent, int8: Draft | None, mels_N1MT: Array, options: ExportOptions
) -> tuple[list[Draft], list[str]]:
    """``fp16``, and ``int8.trt.fp16`` where there is an ``int8.trt``, with their gates.

    They are compared on held-out mels with their context, or on plausible ones. Also returns a note
    on each graph that fp16 cannot hold.
    """
    head, trunk = student.head, student.trunk
    fp32_NK = head(run_trunk(cpu_session(trunk), mels_N1MT))
    largest = max(1.0, float(abs(fp32_NK).max()))
    sources: Sequence[tuple[str, onnx.ModelProto, ModelInfo]] = [
        ("fp16", trunk, student.info.replace(precision="fp16")),
        *([("int8.trt.fp16", int8.graph, _description(int8.data))] if int8 else []),
    ]
    drafts, notes = [], []
    for which, graph, described_as in sources:
        try:
            half = half_graph(graph)
        except GraphError as error:
            notes.append(f"There is no {which} file: {error.message}")
            continue
        # In float as TensorRT computes Q/DQ, not in this CPU's integer kernels.
        own_NK = head(run_trunk(cpu_session(graph, exact=True), mels_N1MT))
        found_NK = head(run_trunk(cpu_session(half, exact=True), mels_N1MT))
        found = Comparison.of(fp32_NK, found_NK)
        artifact = Artifact(
            name=which,
            path=f"{student.name}.{which}.onnx",
            kind="streaming",
            precision=described_as.precision,
            max_abs_difference=found.max_abs_difference,
            agreement=found.agreement,
            sqnr_db=found.sqnr_db,
            purpose="TensorRT",
        )
        agreed = Gate.at_least(
            f"{which} agreement with fp32", found.agreement, options.min_agreement, which
        )
        if which == "fp16":
            difference = found.max_abs_difference / largest
            close = Gate.at_most("fp16 difference from fp32", difference, MAX_DIFFERENCE, which)
        else:
            close = Gate.at_least(
                f"{which} agreement with its float32 graph",
                Comparison.of(own_NK, found_NK).agreement,
                options.min_agreement,
                which,
            )
        # Not timed: a CPU without fp16 kernels casts back, up to 14 times slower, and would spend
        # the others' measuring time.
        data = student.described(half, described_as, exact=True)
        drafts.append(Draft(artifact, data, half, (agreed, close), timed=False))
    return drafts, notes


def _description(data: bytes) -> ModelInfo:
    entries = {e.key: e.value for e in onnx.load_model_from_string(data).metadata_props}
    return ModelInfo.from_json(entries[METADATA_KEY])
