"""The calibration set, its gate, and log-mels through a model file."""

import numpy as np
import pytest
import torch
from export_kit import MEL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frami_edge_export import calibration as module
from frami_edge_export.calibration import (
    at_other_levels,
    calibration_gates,
    calibration_ranges,
    classify_mels,
    prepare_calibration,
)
from frami_edge_export.errors import CalibrationError
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import with_context
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.logmel import log_mel

OPTIONS = ExportOptions()
SHAPE = (64, 1, MEL.n_mels, 40)


def test_outliers_are_clamped_to_what_a_microphone_can_give(calibration):
    spoilt = calibration.copy()
    spoilt[::2, :, :, 3] = 17.0
    spoilt[::2, :, :, 4] = -17.0
    sample = prepare_calibration(spoilt, MEL, (3, 7), OPTIONS)
    both = np.concatenate([sample.ranges, sample.holdout])
    assert both.min() >= MEL.floor.min()
    assert (both <= MEL.ceiling[:, None]).all()
    assert sample.clamped == pytest.approx(1 / 60, rel=0.01)
    assert spoilt.max() == 17.0  # the caller's array is not changed
    assert both.shape[2:] == (MEL.n_mels, 70)
    assert not both[..., :3].any()
    assert not both[..., -7:].any()


@given(st.integers(16, 90), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_the_holdout_never_sets_a_range(count, most, seed):
    mels = np.zeros((count, 1, MEL.n_mels, 12), np.float32)
    mels[:, 0, 0, 0] = np.linspace(0, 1, count)
    options = ExportOptions(max_calibration=most, seed=seed)
    sample = prepare_calibration(mels, MEL, (5, 5), options)
    first = {float(v) for v in sample.ranges[:, 0, 0, 5]}
    second = {float(v) for v in sample.holdout[:, 0, 0, 5]}
    assert not first & second
    assert len(first) == len(sample.ranges) <= most
    assert len(first) + len(second) == count
    assert len(second) >= count // 4
    assert prepare_calibration(mels, MEL, (5, 5), options).digest == sample.digest


@pytest.mark.parametrize(
    ("mels", "said"),
    [
        (None, "none was given"),
        (np.zeros((64, MEL.n_mels, 40), np.float32), r"of shape \(64, 32, 40\)"),
        (np.zeros((64, 1, MEL.n_mels + 1, 40), np.float32), "of shape"),
        (np.zeros((64, 1, MEL.n_mels, 40), np.uint8), "is uint8 of shape"),
        (np.zeros((15, 1, MEL.n_mels, 40), np.float32), "15 samples; at least 16"),
        (np.full(SHAPE, np.nan, np.float32), "finite"),
        (np.full(SHAPE, -40.0, np.float32), "100% of the calibration values are outside"),
    ],
)
def test_what_cannot_be_log_mels_is_refused(mels, said):
    with pytest.raises(CalibrationError, match=said) as caught:
        prepare_calibration(mels, MEL, (5, 5), OPTIONS)
    assert caught.value.fix


def test_the_students_own_mels_pass(student, calibration):
    layers = calibration_ranges(student.trunk, with_context(calibration, student.context))
    assert [layer.name for layer in layers] == ["0.1", "1.1", "2.1", "3.1", "4.1"]
    assert all(layer.ratio < 1.3 and layer.shift < 0.3 for layer in layers)
    assert all(gate.passed for gate in calibration_gates(layers, OPTIONS))
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    assert calibration_gates(calibration_ranges(plain, np.zeros(SHAPE, np.float32)), OPTIONS) == ()


@pytest.mark.parametrize("noise", ["uniform", "loud", "constant"])
def test_random_numbers_are_refused(student, noise):
    rng = np.random.default_rng(0)
    mels = {
        "uniform": rng.random(SHAPE),
        "loud": 3.0 * rng.standard_normal(SHAPE),
        "constant": np.zeros(SHAPE),
    }[noise]
    sample = prepare_calibration(mels.astype(np.float32), MEL, student.context, OPTIONS)
    with pytest.raises(CalibrationError, match="does not look like") as caught:
        calibration_gates(calibration_ranges(student.trunk, sample.ranges), OPTIONS)
    assert "bank" in caught.value.fix


def test_the_statistics_are_those_of_torch(student, calibration):
    first = calibration_ranges(student.trunk, calibration)[0]
    conv, norm = student.trunk.get_submodule("0.0"), student.trunk.get_submodule("0.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.inference_mode():
        x = conv(torch.from_numpy(calibration)).double()
    expected = (norm.running_var.double() + norm.eps).sqrt()
    shift = ((x.mean((0, 2, 3)) - norm.running_mean).abs() / expected).mean()
    spread = ((x.var((0, 2, 3), correction=0) + norm.eps).sqrt() / expected).log().mean().exp()
    assert first.shift == pytest.approx(float(shift), rel=1e-4)
    assert first.spread == pytest.approx(float(spread), rel=1e-4)


def test_a_gain_shifts_a_log_mel_inside_the_physical_range():
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
    loudest = at_other_levels(padded, MEL, (3, 2), 200.0, seed=1)[0, 0, :, 3:-2]
    assert (loudest <= MEL.ceiling[:, None] + 1e-5).all()
    assert (loudest >= MEL.floor[:, None] - 1e-5).all()


@pytest.fixture(scope="module")
def model(made):
    return made.described(made.trunk, made.info)


def test_mels_of_many_lengths_are_classified_as_by_torch_and_the_runtime(
    student, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "BATCH_FRAMES", 60)  # several runs of one length
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal((MEL.n_mels, t)) for t in (1, 40, 2, 9, 40, 9, 9, 9, 9, 300)]
    for logits, clip in zip(classify_mels(model, clips), clips, strict=True):
        with torch.inference_mode():
            expected = student(torch.from_numpy(clip.astype(np.float32))[None, None])[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    path = tmp_path / "student.onnx"
    path.write_bytes(model)
    samples = 0.1 * rng.standard_normal(3000).astype(np.float32)
    found = classify_mels(path, [log_mel(samples, MEL).T])[0]
    np.testing.assert_allclose(found, Classifier(path).classify(samples).logits, atol=1e-5)
    assert classify_mels(model, []).shape == (0, 6)
