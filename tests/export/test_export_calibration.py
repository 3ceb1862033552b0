from __future__ import annotations

import numpy as np
import pytest
import torch
from export_kit import MEL, TinyStudent
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frami_edge_export.calibration import calibration_gates, calibration_ranges, prepare_calibration
from frami_edge_export.errors import CalibrationError
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import with_context

OPTIONS = ExportOptions()
CONTEXT = (5, 5)
SHAPE = (64, 1, MEL.n_mels, 40)


def gates_of(student: TinyStudent, mels: np.ndarray) -> tuple[object, ...]:
    sample = prepare_calibration(mels, MEL, student.context, OPTIONS)
    return calibration_gates(calibration_ranges(student.trunk, sample.ranges), OPTIONS)


def test_outliers_are_clamped_to_what_a_microphone_can_give(calibration: np.ndarray) -> None:
    spoilt = calibration.copy()
    spoilt[::2, :, :, 3] = 17.0
    spoilt[::2, :, :, 4] = -17.0
    sample = prepare_calibration(spoilt, MEL, CONTEXT, OPTIONS)
    both = np.concatenate([sample.ranges, sample.holdout])
    assert both.min() >= MEL.floor.min()
    assert (both <= MEL.ceiling[:, None]).all()
    assert sample.clamped == pytest.approx(1 / 60, rel=0.01)
    assert spoilt.max() == 17.0  # the caller's array is not changed


@given(st.integers(16, 90), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_holdout_never_sets_a_range(count: int, most: int, seed: int) -> None:
    mels = np.zeros((count, 1, MEL.n_mels, 12), np.float32)
    mels[:, 0, 0, 0] = np.linspace(0, 1, count)
    options = ExportOptions(max_calibration=most, seed=seed)
    sample = prepare_calibration(mels, MEL, CONTEXT, options)
    first = {float(v) for v in sample.ranges[:, 0, 0, 5]}
    second = {float(v) for v in sample.holdout[:, 0, 0, 5]}
    assert not first & second
    assert len(first) == len(sample.ranges) <= most
    assert len(first) + len(second) == count
    assert len(second) >= count // 4
    assert prepare_calibration(mels, MEL, CONTEXT, options).digest == sample.digest


@pytest.mark.parametrize(
    ("mels", "said"),
    [
        (None, "none was given"),
        (np.zeros((64, MEL.n_mels, 40), np.float32), r"has shape \(64, 32, 40\)"),
        (np.zeros((64, 1, MEL.n_mels + 1, 40), np.float32), "has shape"),
        (np.zeros((64, 1, MEL.n_mels, 40), np.uint8), "is uint8, not float"),
        (np.zeros((15, 1, MEL.n_mels, 40), np.float32), "15 samples; at least 16"),
        (np.zeros((64, 1, MEL.n_mels, 0), np.float32), "has shape"),
        (np.full(SHAPE, np.nan, np.float32), "not finite"),
        (np.full(SHAPE, -40.0, np.float32), "100% of the calibration values lie outside"),
    ],
)
def test_what_cannot_be_log_mels_is_refused(mels: np.ndarray | None, said: str) -> None:
    with pytest.raises(CalibrationError, match=said) as caught:
        prepare_calibration(mels, MEL, CONTEXT, OPTIONS)
    assert caught.value.fix


def test_every_clip_gets_its_context(calibration: np.ndarray) -> None:
    sample = prepare_calibration(calibration, MEL, (3, 7), OPTIONS)
    for part in (sample.ranges, sample.holdout):
        assert part.shape[2:] == (MEL.n_mels, 70)
        assert (part[..., :3] == 0).all()
        assert (part[..., -7:] == 0).all()
        assert (part[..., 3:-7] != 0).all()


def test_the_students_own_mels_pass(student: TinyStudent, calibration: np.ndarray) -> None:
    layers = calibration_ranges(student.trunk, with_context(calibration, student.context))
    assert [layer.name for layer in layers] == ["0.1", "1.1", "2.1", "3.1", "4.1"]
    assert all(layer.ratio < 1.3 and layer.shift < 0.3 for layer in layers)
    gates = calibration_gates(layers, OPTIONS)
    assert [gate.passed for gate in gates] == [True, True]


@pytest.mark.parametrize("noise", ["uniform", "faint", "loud", "constant"])
def test_random_numbers_are_refused(student: TinyStudent, noise: str) -> None:
    rng = np.random.default_rng(0)
    mels = {
        "uniform": rng.random(SHAPE),
        "faint": 0.3 * rng.standard_normal(SHAPE),
        "loud": 3.0 * rng.standard_normal(SHAPE),
        "constant": np.zeros(SHAPE),
    }[noise]
    with pytest.raises(CalibrationError, match="does not look like") as caught:
        gates_of(student, mels.astype(np.float32))
    assert "bank" in caught.value.fix


def test_the_statistics_are_those_of_torch(student: TinyStudent, calibration: np.ndarray) -> None:
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


def test_hooks_are_gone_even_after_an_error(student: TinyStudent) -> None:
    with pytest.raises(RuntimeError):
        calibration_ranges(student.trunk, np.zeros((2, 3, MEL.n_mels, 40), np.float32))
    assert not any(module._forward_pre_hooks for module in student.trunk.modules())
    calibration_ranges(student.trunk, np.zeros((2, 1, MEL.n_mels, 40), np.float32))
    assert not any(module._forward_pre_hooks for module in student.trunk.modules())


def test_a_student_without_batchnorm_gives_no_gate() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    assert calibration_gates(calibration_ranges(trunk, np.zeros(SHAPE, np.float32)), OPTIONS) == ()
