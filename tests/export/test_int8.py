"""int8 graphs and how they are chosen. Accuracy claims hold on CPUs with and without VNNI.

Files for CPUs have 7-bit weights, whose sums saturate nowhere; graphs for TensorRT are judged in
float, as they are written. `qemu-x86_64 -cpu max` (qemu-user) runs these tests on an AVX2 CPU.
"""

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from frami_edge_export.calibration import CalibrationSet
from frami_edge_export.int8 import Int8Search
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Comparison, cpu_session, run_trunk
from frami_edge_export.quantise import PORTABLE, S8S8, TENSORRT, U8S8, BiasCorrector, Quantiser

FLOAT, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8
FLAVOURS = (U8S8, S8S8)


@pytest.fixture(scope="module")
def quantiser(trunk, calibration):
    return Quantiser(trunk, calibration[:100])


@pytest.fixture(scope="module")
def head(made):
    return made.head


def search(made, calibration):
    sample = CalibrationSet(calibration[:100], calibration[100:], 0.0, "")
    found = Int8Search(made, sample, ExportOptions())
    return found, found.settle(U8S8, layers=True)


def extreme_layer(flavour):
    """A quantised convolution of the largest weights, over 64 channels of the largest input."""
    trunk = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        extreme (float[B, 1, 4, T] mel) => (float[B, 64, 4, T] frames) {
            first = Conv (mel, w0)
            top = Relu (first)
            frames = Conv (top, w1)
        }"""
    )
    trunk.graph.node[0].name, trunk.graph.node[2].name = "first", "second"
    weights = {"w0": np.ones((64, 1, 1, 1)), "w1": np.ones((64, 64, 1, 1))}
    trunk.graph.initializer.extend(
        numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()
    )
    mels = np.random.default_rng(0).uniform(0, 1, (16, 1, 4, 8)).astype(np.float32)
    mels[0] = 1.0
    return Quantiser(trunk, mels).graph(flavour, ["first"])


@pytest.mark.parametrize("flavour", [*FLAVOURS, PORTABLE], ids=lambda flavour: flavour.name)
def test_the_most_extreme_layer_fits_16_bits(flavour):
    """x86 without VNNI adds two products of an activation in 0..255 and a weight in 16 bits."""
    model = extreme_layer(flavour)
    (weights,) = (
        numpy_helper.to_array(t).astype(int)
        for t in model.graph.initializer
        if t.data_type == INT8 and len(t.dims) == 4
    )
    assert 2 * 255 * np.abs(weights).max() < 2**15
    loud = np.ones((1, 1, 4, 8), np.float32)
    found, exact = (run_trunk(cpu_session(model, exact=e), loud) for e in (False, True))
    np.testing.assert_allclose(found, exact, rtol=0.02)  # a saturated sum gives half
    assert found.min() > 60


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.name)
def test_weights_are_int8_per_channel_and_nothing_is_dynamic(quantiser, flavour):
    model = quantiser.graph(flavour, quantiser.layers[:1])
    tensors = {t.name: t for t in model.graph.initializer}
    ops = [node.op_type for node in model.graph.node]
    assert "DynamicQuantizeLinear" not in ops
    assert ops[-3:] == ["DequantizeLinear", "AveragePool", "Squeeze"]  # the mean stays float
    weights = [
        node.input[:2]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in tensors
        and tensors[node.input[0]].data_type == INT8
    ]
    assert [list(tensors[scale].dims) for _, scale in weights] == [[24]] * 4
    largest = max(np.abs(numpy_helper.to_array(tensors[w]).astype(int)).max() for w, _ in weights)
    assert largest == 64  # 7 bits
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    assert first.name == "0.0"
    assert tensors[first.input[1]].data_type == FLOAT
    assert "Relu" not in [n.op_type for n in quantiser.graph(FLAVOURS[0], ()).graph.node]


def test_tensorrt_gets_float_biases_and_quantised_inputs_alone(quantiser):
    model = quantiser.graph(TENSORRT, quantiser.layers[:1])
    tensors = {t.name: t for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert [n.op_type for n in model.graph.node].count("QuantizeLinear") == len(convs) - 1 == 4
    for conv in convs[1:]:
        data, weight = (producers[name] for name in conv.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert tensors[weight.input[0]].data_type == INT8
        assert tensors[conv.input[2]].data_type == FLOAT
        quantize = producers[data.input[0]]
        assert producers[quantize.input[0]].op_type == "Relu"  # TensorRT fuses Conv, Relu, Q
    consumers = {}
    portable = quantiser.graph(PORTABLE, quantiser.layers[:1])
    for node in portable.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node.op_type)
    convs = [node for node in portable.graph.node if node.op_type == "Conv"]
    assert all(consumers[conv.output[0]] == ["QuantizeLinear"] for conv in convs[1:])


def test_one_table_holds_the_true_ranges(quantiser, student, calibration):
    low, high = quantiser.ranges["mel"]
    assert low == pytest.approx(float(calibration[:100].min()))
    assert high == pytest.approx(float(calibration[:100].max()))
    with torch.inference_mode():
        top = float(student.trunk[0](torch.from_numpy(calibration[:100])).max())
    assert any(high == pytest.approx(top, rel=1e-4) for _, high in quantiser.ranges.values())


def edited(trunk, layer, edit):
    """A copy in which ``edit(weight, bias)`` has changed a layer's arrays."""
    mine = copy.deepcopy(trunk)
    tensors = {t.name: t for t in mine.graph.initializer}
    conv = next(node for node in mine.graph.node if node.name == layer)
    arrays = [numpy_helper.to_array(tensors[name]).copy() for name in conv.input[1:]]
    edit(*arrays)
    for name, array in zip(conv.input[1:], arrays, strict=True):
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return mine


def all_but_dead(weight, bias):
    """A channel whose weights are all but 0, behind a bias that is not."""
    weight[0], bias[0] = 1e-12, 0.5


@pytest.mark.parametrize("kept", [(0,), (0, 1), (0, 2), (0, 1, 3)], ids=str)
@pytest.mark.parametrize("flavour", [*FLAVOURS, PORTABLE, TENSORRT], ids=lambda f: f.name)
def test_onnx_runtime_answers_what_the_file_says(trunk, head, calibration, flavour, kept):
    """The optimised graph on this CPU gives the logits that the graph states in float.

    So no sum saturates, no bias is rounded that the file does not round, none overflows, and no
    layer that stays float is quantised.
    """
    dead = edited(trunk, "3.0", all_but_dead)
    quantiser, mels = Quantiser(dead, calibration[:100]), calibration[100:]
    model = quantiser.graph(flavour, [quantiser.layers[i] for i in kept])
    integer, exact = (head(run_trunk(cpu_session(model, exact=e), mels)) for e in (False, True))
    fp32 = head(run_trunk(cpu_session(dead), mels))
    assert Comparison.of(fp32, exact).agreement >= 0.95
    # A sum that rounds the other way moves one input of a layer by one step.
    assert np.abs(integer - exact).max() < 0.02 * np.abs(fp32 - exact).max()


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.name)
def test_int8_streams_bit_for_bit(quantiser, student, calibration, flavour):
    session = cpu_session(quantiser.graph(flavour, quantiser.layers[:2]))
    mel = calibration[:1]
    offline = run_trunk(session, mel)
    field, stride, step = student.receptive_field, student.stride, 3 * student.stride
    chunks = [
        run_trunk(session, mel[..., start : start + field - stride + step])
        for start in range(0, mel.shape[3] - field + stride - step + 1, step)
    ]
    online = np.concatenate(chunks, axis=2)
    assert online.shape[2] >= 20
    np.testing.assert_array_equal(online, offline[:, :, : online.shape[2]])


def test_bias_correction_takes_back_the_shift(head, trunk, calibration, quantiser):
    kept, mels = quantiser.layers[:1], calibration[100:]
    biases = BiasCorrector(trunk, quantiser, calibration[:100]).biases(TENSORRT, kept)
    assert len(biases) == 4
    fp32 = run_trunk(cpu_session(trunk), mels)
    shifts, found = [], []
    for chosen in (None, biases):
        model = quantiser.graph(TENSORRT, kept, chosen)
        frames = run_trunk(cpu_session(model, exact=True), mels)
        shifts.append(float(np.abs((frames - fp32).mean(axis=(0, 2))).mean()))
        found.append(Comparison.of(head(fp32), head(frames)).sqnr_db)
    # On mels that set no bias, and nothing of the trunk itself was changed.
    assert shifts[1] < 0.8 * shifts[0]
    assert found[1] > found[0] + 1
    assert quantiser.graph(TENSORRT, kept) == quantiser.graph(TENSORRT, kept, {})


def test_a_graph_that_passes_keeps_its_first_layers_float_alone(made, calibration):
    tried, found = search(made, calibration)
    assert found.chosen.comparison.agreement >= 0.98
    assert found.chosen.comparison.sqnr_db is not None
    assert found.chosen.comparison.sqnr_db > 30
    assert [row["bias_correction"] for row in tried.tried] == [False, True]
    assert found.chosen.float_layers == {"0.0", "1.0"}
    assert found.fallback == ()
    assert sorted(row["layer"] for row in found.layers) == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    assert found.chosen.flavour.name in found.reason


def outlier(weight, bias, size=1e5):
    """A channel that dwarfs the others' int8 steps; `inverse` behind it keeps the function."""
    weight[0] *= size
    bias[0] *= size


def inverse(weight, bias, size=1e5):
    weight[:, 0] /= size


def test_the_worst_layers_go_back_to_float(trunk, made, calibration):
    rigged = edited(edited(trunk, "1.0", outlier), "2.0", inverse)
    ours, theirs = (run_trunk(cpu_session(graph), calibration[:20]) for graph in (rigged, trunk))
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    tried, found = search(dataclasses.replace(made, trunk=rigged), calibration)
    assert tried.tried[0]["agreement"] < 0.98
    assert {row["layer"] for row in found.layers[:2]} == {"1.0", "2.0"}
    assert found.fallback == ("2.0",)
    assert found.chosen.comparison.agreement >= 0.98
    assert found.chosen.float_layers == {"0.0", "1.0", "2.0"}
    assert "back to float by SQNR: " in found.reason


def test_where_nothing_helps_the_reason_says_so(made, calibration, monkeypatch):
    poor = Comparison(0.5, 1.0, 3.0)
    monkeypatch.setattr(Comparison, "of", classmethod(lambda cls, a, b: poor))
    _, found = search(made, calibration)
    assert found.chosen.comparison is poor
    assert found.fallback == ()
    assert "no choice of float layers passes" in found.reason
