"""torch to ONNX: what the graphs hold, that they equal torch, and what is refused."""

import base64
import copy

import numpy as np
import onnx
import pytest
import torch
from export_kit import MEL
from onnx import numpy_helper
from torch import nn

from frami_edge_export.errors import GraphError, ParityError
from frami_edge_export.graph import (
    WholeClassifier,
    frozen_trunk,
    golden_frames,
    head_graph,
    mean_as_pooling,
    trunk_graph,
)
from frami_edge_export.parity import (
    check_parity,
    cpu_session,
    parity_inputs,
    parity_lengths,
    with_context,
)
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.selftest import TOLERANCE as SELFTEST
from frami_edge_runtime.selftest import golden_clip

FRAMES, LOGITS, TOLERANCE = ("mel", "frames"), ("mel", "logits"), 1e-5


@pytest.fixture(scope="module")
def graphs(student, trunk, whole):
    return {"trunk": trunk, "whole": whole, "head": head_graph(student)}


@pytest.fixture(scope="module")
def inputs(student):
    return parity_inputs(parity_lengths(student.receptive_field, student.stride, MEL), MEL, seed=0)


def test_batchnorm_is_folded_layers_keep_their_names_and_axes_have_names(trunk):
    assert {node.op_type for node in trunk.graph.node} == {"Conv", "Relu", "AveragePool", "Squeeze"}
    names = [node.name for node in trunk.graph.node if node.op_type == "Conv"]
    assert names == ["0.0", "1.0", "2.0", "3.0", "4.0"]

    def axes(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert axes(trunk.graph.input[0]) == ["batch", 1, MEL.n_mels, "time"]
    assert axes(trunk.graph.output[0]) == ["batch", 24, "frames"]


@pytest.mark.parametrize(("batch", "extra"), [(1, 0), (3, 1), (2, 57)])
def test_axes_are_dynamic_and_only_the_whole_graph_holds_the_context(graphs, student, batch, extra):
    mel = np.zeros((batch, 1, MEL.n_mels, student.receptive_field + extra), np.float32)
    h_BCT = cpu_session(graphs["trunk"]).run(["frames"], {"mel": mel})[0]
    assert h_BCT.shape == (batch, student.channels, extra // student.stride + 1)
    clip = np.random.default_rng(0).standard_normal((batch, 1, MEL.n_mels, 1 + extra))
    clip = clip.astype(np.float32)
    with torch.inference_mode():
        expected = student(torch.from_numpy(clip)).numpy()
    found = cpu_session(graphs["whole"]).run(["logits"], {"mel": clip})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_unfoldable_batchnorm_and_weights_that_are_not_finite_are_refused(student):
    mine = copy.deepcopy(student)
    mine.trunk = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), *mine.trunk.children()).eval()
    with pytest.raises(GraphError, match="BatchNorm could not be folded") as caught:
        trunk_graph(mine, MEL.n_mels)
    assert "after a convolution" in caught.value.fix
    with torch.no_grad():
        mine.head.weight[0, 0] = float("nan")
    with pytest.raises(GraphError, match="not finite"):
        head_graph(mine)


def test_the_mean_over_frequency_is_a_pooling_and_a_mean_over_time_stays(trunk, whole):
    mean = copy.deepcopy(trunk)
    pool, squeeze = mean.graph.node[-2:]
    assert (pool.op_type, squeeze.op_type) == ("AveragePool", "Squeeze")
    over = [pool.input[0], squeeze.input[1]]
    node = onnx.helper.make_node("ReduceMean", over, ["frames"], keepdims=0)
    del mean.graph.node[-2:]
    mean.graph.node.append(node)
    mel = np.random.default_rng(0).standard_normal((2, 1, MEL.n_mels, 40), dtype=np.float32)
    expected = cpu_session(mean).run(None, {"mel": mel})[0]
    again = mean_as_pooling(mean)
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in trunk.graph.node]
    np.testing.assert_allclose(cpu_session(again).run(None, {"mel": mel})[0], expected, atol=1e-6)
    assert [n.op_type for n in whole.graph.node].count("ReduceMean") == 2


def test_parity_runs_from_one_frame_to_30_s_in_the_physical_range(student, inputs):
    lengths = [x.shape[3] for x in inputs]
    assert len(set(lengths)) >= 15
    assert lengths[0] == 1
    assert {student.receptive_field - 1, student.receptive_field} <= set(lengths)
    assert lengths[-1] == MEL.frames(30 * MEL.sample_rate)
    for x in inputs:
        assert (x >= MEL.floor[:, None] - 1e-6).all()
        assert (x <= MEL.ceiling[:, None] + 1e-6).all()


def test_both_forms_equal_torch_and_a_changed_weight_is_found(student, trunk, whole, inputs):
    module, classifier = frozen_trunk(student), WholeClassifier(student)
    x = torch.from_numpy(inputs[5])
    with torch.inference_mode():
        torch.testing.assert_close(classifier(x), student(x), atol=1e-5, rtol=1e-5)
    padded = [with_context(x, student.context) for x in inputs]
    frames = check_parity(module, trunk, padded, names=FRAMES, tolerance=TOLERANCE, label="t")
    logits = check_parity(classifier, whole, inputs, names=LOGITS, tolerance=TOLERANCE, label="w")
    for parity in (frames, logits):
        assert parity
        assert parity.max_abs_difference <= TOLERANCE
        assert parity.agreement == 1.0
    spoilt = copy.deepcopy(trunk)
    tensor = spoilt.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.001, tensor.name))
    few = inputs[-3:]
    assert not check_parity(module, spoilt, few, names=FRAMES, tolerance=TOLERANCE, label="t")


def test_names_then_shapes_then_values(student, trunk, inputs):
    same, mel = nn.Identity(), inputs[-1][..., :40].copy()
    with pytest.raises(ParityError, match="must map mel to logits"):
        check_parity(same, trunk, [mel], names=LOGITS, tolerance=TOLERANCE, label="t")
    with pytest.raises(ParityError, match=r"length 40 gives \(1, 24, 15\), not \(1, 1, 32, 40\)"):
        check_parity(same, trunk, [mel], names=FRAMES, tolerance=TOLERANCE, label="t")
    mel[0, 0, 3, 2] = np.nan
    with pytest.raises(ParityError, match="not finite"):
        check_parity(
            frozen_trunk(student), trunk, [mel], names=FRAMES, tolerance=TOLERANCE, label="t"
        )


def test_the_clip_of_the_self_test_lies_far_from_roundings(made):
    """Where the log-mel is rounded, as in int8 files, the last bits of an FFT must not decide."""
    frames = golden_frames(made.info)
    mel_TM = log_mel(golden_clip(made.info.mel, frames), made.info.mel)
    model = copy.deepcopy(made.trunk)
    tensors = {"step": np.float32(8), "shift": np.float32(0.5 - 8 * mel_TM[frames // 2, 3])}
    for name, value in tensors.items():  # so that this value lies between two steps
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    model.graph.node[0].input[0] = "rounded"
    for node in reversed(
        [
            onnx.helper.make_node("Mul", ["mel", "step"], ["a"]),
            onnx.helper.make_node("Add", ["a", "shift"], ["b"]),
            onnx.helper.make_node("Round", ["b"], ["c"]),
            onnx.helper.make_node("Sub", ["c", "shift"], ["d"]),
            onnx.helper.make_node("Div", ["d", "step"], ["rounded"]),
        ]
    ):
        model.graph.node.insert(0, node)
    golden = made.answered(model, made.info).golden
    mel_1MT = log_mel(golden_clip(made.info.mel, golden["frames"]), made.info.mel).T[None]
    context, rng = (made.info.context.left, made.info.context.right), np.random.default_rng(0)
    noise = rng.choice([-1e-6, 1e-6], (8, *mel_1MT.shape))
    clips = with_context((mel_1MT + noise).astype(np.float32), context)
    found = made.head(cpu_session(model).run(["frames"], {"mel": clips})[0])
    expected = np.frombuffer(base64.b64decode(golden["logits"]), "<f4")
    assert np.abs(found - expected).max() < SELFTEST["int8"]
