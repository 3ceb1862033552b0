"""fp16 graphs: types, order, values, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from export_kit import MEL
from onnx import TensorProto, helper, numpy_helper

from frami_edge_export.errors import GraphError
from frami_edge_export.half import half_graph, half_share
from frami_edge_export.parity import cpu_session, with_context
from frami_edge_export.quantise import FLAVOURS, Quantiser

TOLERANCE = 2e-2


def mels(count: int = 4, frames: int = 60) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (count, 1, MEL.n_mels, frames)
    low, high = MEL.floor[:, None], MEL.ceiling[:, None]
    return (low + (high - low) * rng.random(shape)).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return cpu_session(model).run(None, {"mel": x})[0]


def test_float_trunk(trunk: onnx.ModelProto) -> None:
    before = trunk.SerializeToString()
    half = half_graph(trunk)
    assert trunk.SerializeToString() == before
    assert half_share(half) == 1.0
    for port in (*half.graph.input, *half.graph.output):
        assert port.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [p.name for p in half.graph.input] == ["mel"]
    assert [p.name for p in half.graph.output] == ["frames"]
    assert len(half.SerializeToString()) < 0.7 * len(before)
    x = mels()
    expected, found = run(trunk, x), run(half, x)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())
    assert np.abs(found - expected).max() > 0  # it was computed in fp16


def test_time_and_batch_stay_dynamic(trunk: onnx.ModelProto) -> None:
    session = cpu_session(half_graph(trunk))
    for count, frames in ((1, 11), (2, 13), (5, 200)):
        found = session.run(None, {"mel": mels(count, frames)})[0]
        assert found.shape == (count, 24, (frames - 11) // 2 + 1)


def test_the_mean_over_frequency_is_not_rounded_to_half(trunk: onnx.ModelProto) -> None:
    half = half_graph(trunk)
    casts = [n for n in half.graph.node if n.op_type == "Cast"]
    assert len(casts) == 2  # in at the start, out before the mean
    last = list(half.graph.node).index(casts[-1])
    after = {n.op_type for n in list(half.graph.node)[last + 1 :]}
    assert after & {"ReduceMean", "AveragePool"}
    assert not after & {"Conv", "Relu"}
    assert half.graph.node[-1].output[0] == "frames"


def test_nodes_are_in_order(trunk: onnx.ModelProto) -> None:
    shuffled = copy.deepcopy(trunk)
    half = half_graph(shuffled)
    known = {t.name for t in half.graph.initializer} | {"mel", ""}
    for node in half.graph.node:
        assert set(node.input) <= known, node.name
        known |= set(node.output)


def test_int8_with_a_half_rest(trunk: onnx.ModelProto, calibration: np.ndarray) -> None:
    signed = next(f for f in FLAVOURS if f.name == "S8S8")
    ranges = with_context(calibration[:48].astype(np.float32), (5, 5))
    quantiser = Quantiser(trunk, ranges)
    int8 = quantiser.graph(signed, [quantiser.layers[0]])
    half = half_graph(int8)
    types = {t.name: t.data_type for t in half.graph.initializer}
    scales = {
        types[n.input[1]]
        for n in half.graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    assert scales == {TensorProto.FLOAT16}
    quantised = [t for t in half.graph.initializer if t.data_type == TensorProto.INT8 and t.dims]
    assert quantised
    x = with_context(calibration[48:80].astype(np.float32), (5, 5))
    expected, found = run(int8, x), run(half, x)
    # Values on the edge between two steps may fall on either side; the statistics hardly move.
    step = np.abs(expected).max() / 127
    assert np.abs(found - expected).max() <= 4 * step
    assert np.abs(found.mean(axis=2) - expected.mean(axis=2)).max() <= step


def _one_conv(weight: float, scale: float | None = None, opset: int = 20) -> onnx.ModelProto:
    nodes, constants = [], [numpy_helper.from_array(np.full((1, 1, 1, 1), weight, np.float32), "w")]
    source = "mel"
    if scale is not None:
        constants += [
            numpy_helper.from_array(np.array(scale, np.float32), "x_scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["mel", "x_scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "x_scale", "zero"], ["dq"]),
        ]
        source = "dq"
    nodes.append(helper.make_node("Conv", [source, "w"], ["frames"]))
    ports = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 4, 8])]
        for n in ("mel", "frames")
    ]
    graph = helper.make_graph(nodes, "g", *ports, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_weights_beyond_half_are_refused() -> None:
    assert half_share(half_graph(_one_conv(6e4))) == 1.0
    with pytest.raises(GraphError, match="fp16 ends at 65504"):
        half_graph(_one_conv(7e4))


def test_scales_that_half_cannot_hold_are_refused() -> None:
    assert half_share(half_graph(_one_conv(1.0, 1e-4))) == 1.0
    for scale in (1e-8, 3.3e-7):
        with pytest.raises(GraphError, match="x_scale"):
            half_graph(_one_conv(1.0, scale))


def test_old_opsets_know_no_half_scales() -> None:
    with pytest.raises(GraphError, match="fp16 scales need 19"):
        half_graph(_one_conv(1.0, 1e-2, opset=18))
