from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from export_kit import MEL, TinyStudent
from torch import nn

from frami_edge_export.graph import frozen_head, trunk_graph
from frami_edge_export.int8 import Int8Result, Int8Search
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Comparison, Head, cpu_session, run_trunk, sqnr_db
from frami_edge_export.quantise import FLAVOURS, BiasCorrector, Flavour, Quantiser

FAST = {"bench_budget_s": 0.05, "bench_rounds": 15}


@pytest.fixture(scope="module")
def quantiser(trunk: onnx.ModelProto, calibration: np.ndarray) -> Quantiser:
    return Quantiser(trunk, calibration[:100])


def head_of(student: TinyStudent) -> Head:
    weight, bias = frozen_head(student)
    return Head(weight.double().numpy(), bias.double().numpy(), student.pool_eps)


def search(
    student: TinyStudent, trunk: onnx.ModelProto, calibration: np.ndarray, **options: float
) -> Int8Result:
    quantiser = Quantiser(trunk, calibration[:100])
    return Int8Search(
        trunk,
        quantiser,
        BiasCorrector(trunk, quantiser, calibration[:100]),
        calibration[100:],
        head_of(student),
        calibration[:1],
        ExportOptions(**FAST, **options),  # type: ignore[arg-type]
    ).run()


def with_an_outlier_channel(student: TinyStudent, size: float = 1e5) -> TinyStudent:
    """The same function, but one channel between two layers dwarfs the others' int8 steps."""
    mine = copy.deepcopy(student)
    with torch.no_grad():
        norm, after = mine.trunk.get_submodule("1.1"), mine.trunk.get_submodule("2.0")
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(after, nn.Conv2d)
        norm.weight[0] *= size
        norm.bias[0] *= size
        after.weight[:, 0] /= size
    return mine


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.name)
def test_weights_are_int8_per_channel_and_nothing_is_dynamic(
    quantiser: Quantiser, flavour: Flavour
) -> None:
    model = quantiser.graph(flavour, quantiser.layers[:1])
    tensors = {t.name: t for t in model.graph.initializer}
    ops = [node.op_type for node in model.graph.node]
    assert "DynamicQuantizeLinear" not in ops
    assert ops[-3:] == ["DequantizeLinear", "AveragePool", "Squeeze"]  # the mean stays float
    scales = [
        tensors[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in tensors
        and tensors[node.input[0]].data_type == onnx.TensorProto.INT8
    ]
    assert [list(s.dims) for s in scales] == [[24]] * 4
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    assert first.name == "0.0"
    assert tensors[first.input[1]].data_type == onnx.TensorProto.FLOAT
    assert model.ir_version <= 10
    assert {o.domain: o.version for o in model.opset_import} == {"": 20}


def test_no_activation_splits_the_int8_chain(quantiser: Quantiser) -> None:
    model = quantiser.graph(FLAVOURS[0], ())
    assert "Relu" not in [node.op_type for node in model.graph.node]


def test_one_table_holds_the_true_ranges(
    quantiser: Quantiser, student: TinyStudent, calibration: np.ndarray
) -> None:
    low, high = quantiser.ranges["mel"]
    assert low == pytest.approx(float(calibration[:100].min()))
    assert high == pytest.approx(float(calibration[:100].max()))
    with torch.inference_mode():
        stem = student.trunk[0](torch.from_numpy(calibration[:100]))
    assert any(
        top == pytest.approx(float(stem.max()), rel=1e-4) for _, top in quantiser.ranges.values()
    )


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.name)
def test_int8_streams_bit_for_bit(
    quantiser: Quantiser, student: TinyStudent, calibration: np.ndarray, flavour: Flavour
) -> None:
    session = cpu_session(quantiser.graph(flavour, quantiser.layers[:1]))
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


def test_the_search_keeps_a_flavour_that_passes(
    student: TinyStudent, trunk: onnx.ModelProto, calibration: np.ndarray
) -> None:
    found = search(student, trunk, calibration)
    assert found.chosen.comparison.agreement >= 0.98
    assert found.chosen.comparison.sqnr_db is not None
    assert found.chosen.comparison.sqnr_db > 30
    assert {row["flavour"] for row in found.tried} == {"U8S8", "S8S8"}
    assert all(row["p50_ms"] > 0 for row in found.tried if not row["bias_correction"])
    assert found.fallback == ()
    assert sorted(row["layer"] for row in found.layers) == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    assert found.chosen.flavour.name in found.reason


def test_the_first_convolution_is_int8_only_where_that_is_faster(
    student: TinyStudent, trunk: onnx.ModelProto, calibration: np.ndarray
) -> None:
    assert "0.0" in search(student, trunk, calibration, first_layers_gain=0.0).chosen.float_layers


def test_the_worst_layers_go_back_to_float(student: TinyStudent, calibration: np.ndarray) -> None:
    rigged = with_an_outlier_channel(student)
    with torch.inference_mode():
        x = torch.from_numpy(calibration[:20])
        torch.testing.assert_close(rigged.trunk(x), student.trunk(x), atol=1e-4, rtol=1e-4)
    graph = trunk_graph(rigged, MEL.n_mels)
    found = search(rigged, graph, calibration, first_layers_gain=0.0)
    assert found.tried[0]["agreement"] < 0.98
    assert {row["layer"] for row in found.layers[:2]} == {"1.0", "2.0"}
    assert set(found.fallback) == {"1.0", "2.0"}
    assert found.chosen.comparison.agreement >= 0.98
    assert found.chosen.float_layers >= {"1.0", "2.0"}
    assert "back to float by SQNR: " in found.reason


def test_where_nothing_helps_the_reason_says_so(
    student: TinyStudent,
    trunk: onnx.ModelProto,
    calibration: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poor = Comparison(0.5, 1.0, 3.0)
    monkeypatch.setattr(Comparison, "of", classmethod(lambda cls, a, b: poor))
    found = search(student, trunk, calibration)
    assert found.chosen.comparison is poor
    assert found.fallback == ()
    assert "no choice of float layers passes" in found.reason


def test_sqnr_is_ten_times_the_log_ratio() -> None:
    signal = np.ones(100)
    assert sqnr_db(signal, signal + 0.1) == pytest.approx(20.0)
    assert sqnr_db(signal, signal) is None
