from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from export_kit import MEL, TinyStudent, synthetic_mels
from onnx import numpy_helper

from frami_edge_export.calibration import prepare_calibration
from frami_edge_export.drafts import Bundle
from frami_edge_export.errors import ExportError, GraphError
from frami_edge_export.graph import StudentFacts, frozen_head, head_graph, model_info, serialised
from frami_edge_export.int8 import calibration_record
from frami_edge_export.lint import lint_tensorrt
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Head, cpu_session, run_trunk, sqnr_db, with_context
from frami_edge_export.qat.drafts import add_qat
from frami_edge_export.qat.fake_quant import fake_quant, fake_quant_weight, weight_scales
from frami_edge_export.qat.finetune import QatResult, Target, qat_finetune
from frami_edge_export.qat.options import QatOptions
from frami_edge_export.qat.requantise import GivenRanges, float_weights
from frami_edge_export.qat.torch_graph import TorchTrunk
from frami_edge_export.quantise import FLAVOURS, PORTABLE, TENSORRT, Flavour, Quantiser
from frami_edge_runtime.classifier import Classifier

ALL = [*FLAVOURS, TENSORRT, PORTABLE]
STEPS = 60


@pytest.fixture(scope="module")
def mels(student: TinyStudent) -> np.ndarray:
    return with_context(synthetic_mels(128, 40, seed=3)[0].numpy(), student.context)


@pytest.fixture(scope="module")
def holdout(student: TinyStudent) -> np.ndarray:
    return with_context(synthetic_mels(64, 40, seed=4)[0].numpy(), student.context)


@pytest.fixture(scope="module")
def head(student: TinyStudent) -> Head:
    weight_KD, bias_K = (t.double().numpy() for t in frozen_head(student))
    return Head(weight_KD, bias_K, student.pool_eps)


@pytest.fixture(scope="module")
def quantiser(trunk: onnx.ModelProto, mels: np.ndarray) -> Quantiser:
    # Ranges as outliers make them: four times what the clips need.
    narrow = Quantiser(trunk, mels)
    return GivenRanges(trunk, {n: (4 * low, 4 * high) for n, (low, high) in narrow.ranges.items()})


@pytest.fixture(scope="module")
def targets(quantiser: Quantiser) -> list[Target]:
    first = frozenset(quantiser.layers[:1])
    return [Target(FLAVOURS[0], first), Target(TENSORRT, first)]


@pytest.fixture(scope="module")
def tuned(
    trunk: onnx.ModelProto,
    quantiser: Quantiser,
    head: Head,
    mels: np.ndarray,
    targets: list[Target],
) -> QatResult:
    return qat_finetune(
        trunk, quantiser, head, mels, targets, QatOptions(steps=STEPS, range_lr=0.05)
    )


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def logits(model: onnx.ModelProto, head: Head, mels: np.ndarray) -> np.ndarray:
    return head(run_trunk(cpu_session(model), mels))


def test_fake_quant_rounds_as_onnx_does_and_passes_gradients() -> None:
    x = torch.tensor([-3.0, -0.26, 0.0, 0.24, 0.26, 1.0, 99.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = fake_quant(x, scale, torch.tensor(0, dtype=torch.int32), 0, 255)
    assert y.tolist() == [0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 99.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_the_gradient_of_the_scale_is_that_of_learned_step_size() -> None:
    x = torch.tensor([0.3, 1.1, 40.0, -7.0])
    scale = torch.tensor(0.25, requires_grad=True)
    zero = torch.tensor(3, dtype=torch.int32)
    fake_quant(x, scale, zero, 0, 15).sum().backward()
    levels = torch.clamp(torch.round(x / 0.25) + 3, 0, 15) - 3
    inside = (levels > -3) & (levels < 12)
    expected = torch.where(inside, levels - x / 0.25, levels).sum()
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, expected)


def test_a_dead_channel_stays_zero() -> None:
    weight = torch.zeros(2, 1, 3, 3)
    weight[1] = torch.linspace(-1, 1, 9).reshape(3, 3)
    assert torch.isfinite(weight_scales(weight)).all()
    rounded = fake_quant_weight(weight)
    assert bool((rounded[0] == 0).all())
    assert float((rounded - weight).abs().max()) <= 0.5 / 127 + 1e-6


@pytest.mark.parametrize("flavour", ALL, ids=lambda f: f.name)
@pytest.mark.parametrize("first", [0, 1])
def test_torch_computes_what_onnx_runtime_computes(
    quantiser: Quantiser, head: Head, holdout: np.ndarray, flavour: Flavour, first: int
) -> None:
    model = quantiser.graph(flavour, quantiser.layers[:first])
    with torch.inference_mode():
        frames = TorchTrunk(model)(torch.from_numpy(holdout)).numpy()
        live = TorchTrunk(model, torch_weights(model, quantiser))(torch.from_numpy(holdout)).numpy()
    expected = run_trunk(cpu_session(model), holdout)
    # A value on the edge of two levels falls either way: rarely, and by one level.
    for found in (frames, live):
        noise = sqnr_db(expected, found)
        assert noise is None or noise > 25
        assert (head(found).argmax(1) == head(expected).argmax(1)).mean() >= 0.98


def torch_weights(model: onnx.ModelProto, quantiser: Quantiser) -> dict[str, torch.Tensor]:
    """The fp32 weights that an int8 graph was made of."""
    return {n: torch.from_numpy(v) for n, v in float_weights(quantiser._trunk).items()}


def test_a_float_graph_is_computed_too(trunk: onnx.ModelProto, holdout: np.ndarray) -> None:
    with torch.inference_mode():
        found = TorchTrunk(trunk)(torch.from_numpy(holdout)).numpy()
    np.testing.assert_allclose(found, run_trunk(cpu_session(trunk), holdout), atol=1e-4)


@pytest.mark.parametrize("which", [0, 1], ids=["int8.cpu", "int8.trt"])
def test_it_helps_where_int8_hurts(
    trunk: onnx.ModelProto,
    quantiser: Quantiser,
    tuned: QatResult,
    head: Head,
    holdout: np.ndarray,
    targets: list[Target],
    which: int,
) -> None:
    target = targets[which]
    reference = logits(trunk, head, holdout)
    after, before = (
        sqnr_db(reference, logits(q.graph(target.flavour, target.float_layers), head, holdout))
        for q in (tuned.quantiser, quantiser)
    )
    assert after is not None
    assert before is not None
    assert after > before + 3
    assert np.mean(tuned.losses[-10:]) < np.mean(tuned.losses[:10])


def test_the_files_hold_the_scales_that_were_trained(
    quantiser: Quantiser, tuned: QatResult, targets: list[Target]
) -> None:
    for target in targets:
        before = stored(quantiser.graph(target.flavour, target.float_layers))
        after = stored(tuned.quantiser.graph(target.flavour, target.float_layers))
        assert set(before) == set(after)
        for name in before:
            if name.endswith("_zero_point"):
                np.testing.assert_array_equal(before[name], after[name])
        for name, (low, high) in tuned.quantiser.ranges.items():
            scale = after.get(f"{name}_scale")
            if scale is not None and target.flavour.symmetric:
                np.testing.assert_allclose(scale, 2 * max(-low, high) / 254, rtol=1e-2)
    assert tuned.quantiser.ranges != quantiser.ranges


def test_the_tensorrt_flavour_stays_clean(tuned: QatResult, targets: list[Target]) -> None:
    assert lint_tensorrt(tuned.quantiser.graph(targets[1].flavour, targets[1].float_layers)) == ()


def test_equal_seeds_give_equal_files(
    trunk: onnx.ModelProto,
    quantiser: Quantiser,
    head: Head,
    mels: np.ndarray,
    targets: list[Target],
) -> None:
    before = trunk.SerializeToString(deterministic=True)

    def run(seed: int) -> bytes:
        options = QatOptions(steps=5, seed=seed)
        made = qat_finetune(trunk, quantiser, head, mels, targets, options)
        return bytes(made.trunk.SerializeToString(deterministic=True))

    assert run(0) == run(0)
    assert run(0) != run(1)
    assert trunk.SerializeToString(deterministic=True) == before


def test_ranges_can_be_kept(
    trunk: onnx.ModelProto,
    quantiser: Quantiser,
    head: Head,
    mels: np.ndarray,
    targets: list[Target],
) -> None:
    options = QatOptions(steps=3, range_lr=0.0)
    made = qat_finetune(trunk, quantiser, head, mels, targets, options)
    assert made.quantiser.ranges == quantiser.ranges
    changed = float_weights(made.trunk)
    for name, weight in float_weights(trunk).items():
        assert not np.array_equal(weight, changed[name])


def test_progress_is_told_of_every_step(
    trunk: onnx.ModelProto,
    quantiser: Quantiser,
    head: Head,
    mels: np.ndarray,
    targets: list[Target],
) -> None:
    seen: list[int] = []
    options = QatOptions(steps=4)
    made = qat_finetune(
        trunk, quantiser, head, mels, targets, options, lambda step, _: seen.append(step)
    )
    assert seen == [1, 2, 3, 4]
    record = made.record(options)
    assert record["steps"] == 4
    assert len(made.losses) == 4
    assert record["loss_last"] >= 0


def test_an_unknown_operator_is_named(trunk: onnx.ModelProto) -> None:
    model = copy.deepcopy(trunk)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Erf"
    with pytest.raises(GraphError, match="no operator Erf") as caught:
        TorchTrunk(model)
    assert "without --qat" in caught.value.fix


def test_nothing_to_train_on_is_an_error(
    trunk: onnx.ModelProto,
    quantiser: Quantiser,
    head: Head,
    mels: np.ndarray,
    targets: list[Target],
) -> None:
    with pytest.raises(ExportError, match="needs an int8 graph"):
        qat_finetune(trunk, quantiser, head, mels, [], QatOptions())
    with pytest.raises(ExportError, match="needs an int8 graph"):
        qat_finetune(trunk, quantiser, head, mels[:0], targets, QatOptions())


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"range_lr": -1.0}, {"frame_weight": -1.0}]
)
def test_options_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(ExportError, match=next(iter(values))):
        QatOptions(**values)  # type: ignore[arg-type]


def test_the_files_join_the_export_and_run_on_the_device(
    student: TinyStudent,
    trunk: onnx.ModelProto,
    head: Head,
    facts: StudentFacts,
    calibration: np.ndarray,
) -> None:
    options = ExportOptions()
    sample = prepare_calibration(calibration, MEL, student.context, options)
    info = model_info(student, facts)
    layers = [node.name for node in trunk.graph.node if node.op_type == "Conv"]
    targets = {
        "int8.qat.cpu": Target(FLAVOURS[0], frozenset(layers[:1])),
        "int8.qat.trt": Target(TENSORRT, frozenset(layers[:1])),
    }
    bundle = Bundle()
    record = add_qat(
        bundle, trunk, serialised(head_graph(student)), head, info, sample,
        calibration_record(sample, "bank"), targets,
        name="student", options=options, qat=QatOptions(steps=3),
    )  # fmt: skip
    assert [a.path for a in bundle.artifacts] == [f"student.{name}.onnx" for name in targets]
    assert [gate.artifact for gate in bundle.gates] == list(targets)
    assert all(gate.passed for gate in bundle.gates)
    table = json.loads(bundle.files["calib.qat.json"])
    assert table["method"] == "fine-tuned"
    assert set(record["without"]) == set(targets)
    for name, data in bundle.blobs.items():
        classifier = Classifier(data)
        assert classifier.info.quantisation is not None
        assert classifier.info.quantisation["fine_tuning"]["steps"] == 3, name
        assert classifier.classify(np.zeros(4000, np.float32)).label in facts.labels
