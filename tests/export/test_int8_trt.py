from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_kit import MEL, TinyStudent
from onnx import TensorProto, numpy_helper

from frami_edge_export.calibration import at_other_levels
from frami_edge_export.errors import ExportError
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts, frozen_head, mean_as_pooling
from frami_edge_export.lint import lint_tensorrt
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Comparison, Head, cpu_session, run_trunk
from frami_edge_export.quantise import PORTABLE, TENSORRT, BiasCorrector, Quantiser
from frami_edge_export.report import ExportReport, markdown_card
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.logmel import log_mel

FAST = ExportOptions(bench_budget_s=0.05, bench_rounds=15)


@pytest.fixture(scope="module")
def quantiser(trunk: onnx.ModelProto, calibration: np.ndarray) -> Quantiser:
    return Quantiser(trunk, calibration[:100])


@pytest.fixture
def exported(
    student: TinyStudent,
    facts: StudentFacts,
    calibration: np.ndarray,
    tmp_path: Path,
    ready_graphs: None,
) -> tuple[Path, ExportReport]:
    report = export_student(
        student, facts, tmp_path, name="kit", int8=True, calibration=calibration, source="bank",
        portable=True, options=FAST,
    )  # fmt: skip
    return tmp_path, report


def test_both_files_are_written_judged_and_clean(exported: tuple[Path, ExportReport]) -> None:
    folder, report = exported
    names = ["fp32", "model", "int8.cpu", "int8.trt", "int8.portable"]
    assert [a.name for a in report.artifacts] == names
    for name in ("int8.trt", "int8.portable"):
        artifact = report.artifact(name)
        assert artifact.lint == "clean"
        assert lint_tensorrt(folder / artifact.path) == ()
        assert artifact.agreement is not None
        assert artifact.agreement >= 0.98
        assert artifact.sqnr_db is not None
        assert artifact.sqnr_db > 25
        assert artifact.bytes < report.artifact("fp32").bytes
        assert artifact.speedup is not None
        assert artifact.verdict
    assert report.artifact("int8.trt").verdict.startswith("for TensorRT; on this CPU ")
    assert report.artifact("fp32").lint == report.artifact("model").lint == "clean"
    assert report.artifact("int8.cpu").lint.endswith("findings")
    assert report.artifact("int8.cpu").findings[0].keys() == {"rule", "node", "message", "fix"}
    gates = {g.artifact for g in report.gates}
    assert gates == {"", "int8.cpu", "int8.trt", "int8.portable"}
    assert any("same class as int8.cpu on" in note for note in report.notes)
    values = json.loads((folder / "export_report.json").read_text())
    assert [a["lint"] for a in values["artifacts"]] == [a.lint for a in report.artifacts]


def test_the_runtime_loads_them_and_they_say_what_they_are(
    exported: tuple[Path, ExportReport],
) -> None:
    folder, _ = exported
    table = json.loads((folder / "calib.json").read_text())
    hashes = set()
    for name, flavour in (("int8.trt", TENSORRT), ("int8.portable", PORTABLE)):
        info = Classifier(folder / f"kit.{name}.onnx").info
        assert info.precision == "int8"
        assert info.mel == MEL
        assert info.quantisation is not None
        assert info.quantisation["flavour"] == flavour.name
        assert info.calibration is not None
        hashes.add(info.calibration["sha256"])
    # One table for all.
    assert hashes == {table["samples_sha256"]}


def test_weights_are_int8_biases_float_and_inputs_alone_are_quantised(
    quantiser: Quantiser,
) -> None:
    model = quantiser.graph(TENSORRT, quantiser.layers[:1])
    tensors = {t.name: t for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    consumers = [node.op_type for node in model.graph.node if node.op_type == "QuantizeLinear"]
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(consumers) == len(convs) - 1 == 4  # the first convolution is float
    for conv in convs[1:]:
        data, weight = (producers[name] for name in conv.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert tensors[weight.input[0]].data_type == TensorProto.INT8
        scales = numpy_helper.to_array(tensors[weight.input[1]])
        assert scales.shape == (tensors[weight.input[0]].dims[0],)
        assert tensors[conv.input[2]].data_type == TensorProto.FLOAT
        quantize = producers[data.input[0]]
        assert producers[quantize.input[0]].op_type == "Relu"  # TensorRT fuses Conv, Relu, Q


def test_the_portable_graph_is_quantised_on_both_sides(quantiser: Quantiser) -> None:
    model = quantiser.graph(PORTABLE, quantiser.layers[:1])
    consumers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node.op_type)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert all(consumers[conv.output[0]] == ["QuantizeLinear"] for conv in convs[1:])


def test_portable_needs_int8(student: TinyStudent, facts: StudentFacts, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="portable"):
        export_student(
            student, facts, tmp_path, int8=False, calibration=None, source="", portable=True
        )
    assert list(tmp_path.iterdir()) == []


def test_bias_correction_takes_back_the_shift(
    student: TinyStudent, trunk: onnx.ModelProto, calibration: np.ndarray, quantiser: Quantiser
) -> None:
    kept = quantiser.layers[:1]
    biases = BiasCorrector(trunk, quantiser, calibration[:100]).biases(TENSORRT, kept)
    assert len(biases) == 4
    weight, bias = (t.double().numpy() for t in frozen_head(student))
    head = Head(weight, bias, student.pool_eps)
    mels = calibration[100:]
    fp32 = run_trunk(cpu_session(trunk), mels)
    shifts, found = [], []
    for chosen in (None, biases):
        frames = run_trunk(cpu_session(quantiser.graph(TENSORRT, kept, chosen)), mels)
        shifts.append(float(np.abs((frames - fp32).mean(axis=(0, 2))).mean()))
        found.append(Comparison.of(head(fp32), head(frames)).sqnr_db)
    # On mels that it never saw, and nothing of the trunk itself was changed.
    assert shifts[1] < 0.8 * shifts[0]
    assert found[1] > found[0] + 1  # type: ignore[operator]
    assert quantiser.graph(TENSORRT, kept) == quantiser.graph(TENSORRT, kept, {})


def test_the_mean_over_frequency_is_the_same_as_pooling(trunk: onnx.ModelProto) -> None:
    mean = copy.deepcopy(trunk)
    pool, squeeze = mean.graph.node[-2:]
    assert (pool.op_type, squeeze.op_type) == ("AveragePool", "Squeeze")
    axis = squeeze.input[1]
    node = onnx.helper.make_node("ReduceMean", [pool.input[0], axis], ["frames"], keepdims=0)
    del mean.graph.node[-2:]
    mean.graph.node.append(node)
    onnx.checker.check_model(mean, full_check=True)
    mel = np.random.default_rng(0).standard_normal((2, 1, MEL.n_mels, 40), dtype=np.float32)
    expected = cpu_session(mean).run(None, {"mel": mel})[0]
    np.testing.assert_allclose(cpu_session(trunk).run(None, {"mel": mel})[0], expected, atol=1e-6)
    again = mean_as_pooling(mean)
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in trunk.graph.node]
    np.testing.assert_allclose(cpu_session(again).run(None, {"mel": mel})[0], expected, atol=1e-6)


def test_a_mean_over_time_stays_a_mean(whole: onnx.ModelProto) -> None:
    assert [n.op_type for n in whole.graph.node].count("ReduceMean") == 2


def test_a_gain_shifts_a_log_mel_inside_the_physical_range() -> None:
    t = np.arange(8000) / MEL.sample_rate
    samples = (0.05 * np.sin(2 * np.pi * 800 * t)).astype(np.float32)
    mel = log_mel(samples, MEL).T.copy()[None, None]
    padded = np.pad(mel, ((0, 0), (0, 0), (0, 0), (3, 2)))
    gain_db = float(np.random.default_rng(4).uniform(-12, 12))
    found = at_other_levels(padded, MEL, (3, 2), 12.0, seed=4)
    expected = log_mel(samples * np.float32(10 ** (gain_db / 20)), MEL).T
    # A gain does not move what log_eps adds, so only bands above it are compared.
    loud = mel[0, 0] > MEL.floor[:, None] + 1.5
    assert loud.any()
    np.testing.assert_allclose(found[0, 0, :, 3:-2][loud], expected[loud], atol=5e-3)
    assert not found[..., :3].any()
    assert not found[..., -2:].any()
    loudest = at_other_levels(padded, MEL, (3, 2), 200.0, seed=1)[0, 0, :, 3:-2]
    assert (loudest <= MEL.ceiling[:, None] + 1e-5).all()
    assert (loudest >= MEL.floor[:, None] - 1e-5).all()


def test_the_report_says_how_int8_does_at_other_levels(
    exported: tuple[Path, ExportReport],
) -> None:
    report = exported[1]
    assert report.quantisation is not None
    levels = report.quantisation["levels"]
    assert levels["level_db"] == 12.0
    assert levels["agreement"] > 0.9
    assert "12 dB louder or softer" in markdown_card(report)
