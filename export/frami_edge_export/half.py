"""The fp16 files of one export, for TensorRT: strongly typed engines compute as the graph says."""

from __future__ import annotations

import copy
import dataclasses
import heapq
import warnings
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.errors import GraphError
from frami_edge_export.graph import check_loadable, described, strip
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Array, Comparison, Head, cpu_session, run_trunk
from frami_edge_export.report import Artifact, Gate
from frami_edge_runtime.modelfile import METADATA_KEY, ModelInfo

# --- fp16 inside, float32 outside: strongly typed TensorRT computes in the types that the graph
# Only the trunk is converted. Statistics and head stay outside the graph in float64, so nothing in
# here can lose a variance (one-pass variance in fp16 is off by up to 3500 %).

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


# --- The fp16 files of one export, for TensorRT: strongly typed engines compute as the graph say

MAX_DIFFERENCE: Final = 2e-2
"""Of the logits, per unit of the largest and absolute below 1; seen: 2e-4 to 2e-3."""


def add_half(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head_bytes: bytes,
    head: Head,
    info: ModelInfo,
    mels_N1MT: Array,
    *,
    name: str,
    options: ExportOptions,
) -> None:
    """Add ``fp16``, and ``int8.trt.fp16`` where the bundle holds an ``int8.trt``.

    A graph that fp16 cannot hold is left out with a note: the float32 ones do without it.

    Args:
        bundle: Gets the files, their gates and notes; call it after `add_int8`.
        trunk: The fp32 graph.
        head_bytes: The head's ONNX file, as every streaming file carries it.
        head: Pooling and head, to judge by logits.
        info: Of the fp32 file.
        mels_N1MT: Held-out mels with their context; parity inputs where there is no calibration.
        name: Prefix of the files.
        options: ``min_agreement``.
    """
    fp32_NK = head(run_trunk(cpu_session(trunk), mels_N1MT))
    int8 = next((d for d in bundle.drafts if d.artifact.name == "int8.trt"), None)
    graphs = {"fp16": (trunk, info.replace(precision="fp16"))}
    if int8 is not None and int8.graph is not None:
        graphs["int8.trt.fp16"] = (int8.graph, _description(int8.data))
    for which, (graph, described_as) in graphs.items():
        try:
            half = half_graph(graph)
        except GraphError as error:
            bundle.notes.append(f"There is no {which} file: {error.message}")
            continue
        own_NK = fp32_NK if graph is trunk else head(run_trunk(cpu_session(graph), mels_N1MT))
        found_NK = head(run_trunk(cpu_session(half), mels_N1MT))
        found = Comparison.of(fp32_NK, found_NK)
        artifact = Artifact(
            name=which,
            path=f"{name}.{which}.onnx",
            kind="streaming",
            precision=described_as.precision,
            bytes=0,
            max_abs_difference=found.max_abs_difference,
            agreement=found.agreement,
            sqnr_db=found.sqnr_db,
            purpose="TensorRT",
        )
        agreement = Comparison.of(own_NK, found_NK).agreement
        gates = [
            Gate.at_least(f"{which} agreement with fp32", found.agreement, options.min_agreement),
            Gate.at_least(
                f"{which} agreement with its float32 graph", agreement, options.min_agreement
            ),
        ]
        if which == "fp16":
            scaled = found.max_abs_difference / max(1.0, float(abs(fp32_NK).max()))
            gates[1] = Gate.at_most("fp16 difference from fp32", scaled, MAX_DIFFERENCE)
        data = described(half, described_as, head_bytes)
        # Linted but not timed: a CPU without fp16 kernels casts back, up to 14 times slower, and
        # would spend the others' measuring time.
        draft = dataclasses.replace(Draft.of(artifact, data, half), graph=None)
        bundle.add(
            draft,
            *(dataclasses.replace(gate, artifact=which) for gate in gates),
        )


def _description(data: bytes) -> ModelInfo:
    """What a file in the bundle says about itself."""
    model = onnx.load_model_from_string(data)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return ModelInfo.from_json(entries[METADATA_KEY])
