"""fp16 graphs and files: types, order, values, gates, and what is refused."""

import copy
import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from frami_edge_export.half import half_drafts, half_graph, half_share
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import cpu_session, with_context
from frami_edge_export.quantise import TENSORRT, Quantiser
from frami_edge_export.report import Artifact, Draft
from frami_edge_runtime.backends import open_backend


@pytest.fixture(scope="module")
def mels(calibration):
    return with_context(calibration, (5, 5))


@pytest.fixture(scope="module")
def int8(trunk, mels):
    quantiser = Quantiser(trunk, mels[:96])
    return quantiser.graph(TENSORRT, [quantiser.layers[0]])


def run(model, x):
    """In float, as TensorRT computes Q/DQ, on every CPU."""
    return cpu_session(model, exact=True).run(None, {"mel": x})[0]


def test_a_float_trunk(trunk, mels):
    before = trunk.SerializeToString()
    half = half_graph(trunk)
    assert trunk.SerializeToString() == before
    assert half_share(half) == 1.0
    ports = [*half.graph.input, *half.graph.output]
    assert [p.name for p in ports] == ["mel", "frames"]
    assert all(p.type.tensor_type.elem_type == TensorProto.FLOAT for p in ports)
    assert len(half.SerializeToString()) < 0.7 * len(before)
    expected, found = run(trunk, mels[:4]), run(half, mels[:4])
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max()
    assert 0 < difference <= 2e-2 * max(1.0, np.abs(expected).max())
    for count, frames in ((1, 11), (2, 13), (5, 60)):  # time and batch stay dynamic
        assert run(half, mels[:count, ..., :frames]).shape == (count, 24, (frames - 11) // 2 + 1)


def test_int8_with_a_half_rest(int8, mels):
    half = half_graph(int8)
    types = {t.name: t.data_type for t in half.graph.initializer}
    quantised = [n for n in half.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {types[n.input[1]] for n in quantised} == {TensorProto.FLOAT16}
    assert TensorProto.INT8 in types.values()
    expected, found = run(int8, mels[96:]), run(half, mels[96:])
    # Values on the edge between two steps may fall on either side; the statistics hardly move.
    step = np.abs(expected).max() / 127
    assert np.abs(found - expected).max() <= 4 * step
    assert np.abs(found.mean(axis=2) - expected.mean(axis=2)).max() <= step


@pytest.mark.parametrize("fits", [True, False])
def test_the_files_pass_their_gates_and_load_or_are_left_out_with_a_note(made, int8, mels, fits):
    artifact = Artifact("int8.trt", "s.int8.trt.onnx", "streaming", "int8")
    draft = Draft(artifact, made.described(int8, made.info.replace(precision="int8")), int8)
    if not fits:
        trunk = copy.deepcopy(made.trunk)
        made = dataclasses.replace(made, trunk=trunk)
        tensor = next(t for t in trunk.graph.initializer if t.name.endswith("weight_bias"))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1e6, tensor.name))
    found, notes = half_drafts(made, draft, mels[96:], ExportOptions())
    if not fits:
        assert [d.artifact.name for d in found] == ["int8.trt.fp16"]
        assert "There is no fp16 file: " in notes[0]
        return
    assert notes == []
    assert [d.artifact.name for d in found] == ["fp16", "int8.trt.fp16"]
    for draft, precision in zip(found, ("fp16", "int8"), strict=True):
        assert all(gate.passed for gate in draft.gates), draft.gates
        assert {gate.artifact for gate in draft.gates} == {draft.artifact.name}
        assert not draft.timed
        assert open_backend(draft.data, "cpu").info.precision == precision
