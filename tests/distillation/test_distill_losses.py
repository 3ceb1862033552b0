from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from frami_edge.config import DistillConfig, JourneyConfig, StudentArch
from frami_edge.losses import FeatureScale, HiddenMatch, align_frames, logits_loss
from frami_edge.models import Hidden, ResNetTeacher, StudentNet


def test_the_logits_loss_is_the_formula() -> None:
    s, t, tau = torch.randn(6, 4), torch.randn(6, 4), 3.0
    p, q = (t / tau).log_softmax(1), (s / tau).log_softmax(1)
    expected = tau**2 * (p.exp() * (p - q)).sum(1).mean()
    torch.testing.assert_close(logits_loss(s, t, tau), expected)
    assert float(logits_loss(t + 5, t, tau)) == pytest.approx(0, abs=1e-6)


def test_the_temperature_keeps_the_size_of_the_gradient() -> None:
    sizes = []
    for tau in (4.0, 16.0):
        s = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
        logits_loss(s, torch.tensor([[1.0, 0.0, -1.0]]), tau).backward()  # type: ignore[no-untyped-call]
        assert s.grad is not None
        sizes.append(float(s.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)


def test_frames_are_read_where_they_are_asked_for() -> None:
    h = torch.tensor([0.0, 10.0, 20.0, 40.0]).expand(2, 3, 4)
    read = align_frames(h, torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.25, 3.0, 9.0]))
    assert read.shape == (2, 3, 7)
    assert read[0, 0].tolist() == [0, 0, 5, 10, 25, 40, 40]


def test_a_single_frame_is_held() -> None:
    h = torch.full((1, 2, 1), 3.0)
    assert align_frames(h, torch.tensor([0.0, 0.4, 7.0])).tolist() == [[[3.0] * 3] * 2]


def test_reading_frames_keeps_their_gradient() -> None:
    h = torch.randn(1, 2, 4, requires_grad=True)
    align_frames(h, torch.tensor([0.5, 1.5])).sum().backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None
    assert h.grad[0, 0].tolist() == [0.5, 1.0, 0.5, 0.0]


def test_dead_features_do_not_explode() -> None:
    frames, pooled = torch.randn(8, 4, 6), torch.randn(8, 8)
    frames[:, 0] = 1.0
    pooled[:, 0] = 2.0
    scale = FeatureScale.measure(Hidden(frames, pooled, torch.zeros(8, 2)))
    assert scale.frames_C[0] >= 0.04 * scale.frames_C.mean()
    assert scale.pooled_D[0] >= 0.04 * scale.pooled_D.mean()
    torch.testing.assert_close(scale.frames_C[1:], frames[:, 1:].var(dim=(0, 2)))


@dataclass
class Sizes:
    """What `HiddenMatch` asks of both sides."""

    channels: int
    head: nn.Module
    frame_stride: int = 4
    frame_offset: float = 0.0
    stride: int = 4

    @property
    def pooled_size(self) -> int:
        return 2 * self.channels

    def frame_centres(self, frames: int, device: Any = None) -> torch.Tensor:
        return torch.arange(frames) * float(self.stride)


def unit(channels: int) -> FeatureScale:
    return FeatureScale(torch.ones(channels), torch.ones(2 * channels))


def test_the_same_frames_at_the_same_time_match() -> None:
    side: Any = Sizes(3, nn.Linear(6, 2))
    match = HiddenMatch(side, side, unit(3))
    h = Hidden(torch.randn(2, 3, 5), torch.randn(2, 6), torch.zeros(2, 2))
    assert float(match.before(side, h, h).detach()) == 0
    late = Hidden(h.frames_BCT.roll(1, 2), h.pooled_BD, h.logits_BK)
    assert float(match.before(side, late, h).detach()) > 0.1


def test_frames_of_another_rate_are_compared_in_mel_time() -> None:
    ramp: Any = torch.arange(12.0)[None, None, :].expand(1, 3, 12)
    teacher: Any = Sizes(3, nn.Linear(6, 2), frame_stride=2, frame_offset=1.0)
    student: Any = Sizes(3, nn.Linear(6, 2), stride=4)
    match = HiddenMatch(student, teacher, unit(3))
    at = torch.arange(1, 5) * 4.0  # mel frames of the student's frames 1..4
    mine = torch.cat([torch.zeros(1), (at - 1) / 2])[None, None, :].expand(1, 3, 5)
    empty = torch.zeros(1, 6)
    loss = match.before(student, Hidden(mine, empty, empty), Hidden(ramp, empty, empty))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-10)


def test_errors_are_relative_to_the_variance() -> None:
    side: Any = Sizes(2, nn.Linear(4, 2))
    loud = FeatureScale(torch.tensor([1.0, 100.0]), torch.ones(4))
    match = HiddenMatch(side, side, loud)
    zero = Hidden(torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.zeros(1, 2))
    off = Hidden(torch.tensor([1.0, 10.0])[None, :, None].expand(1, 2, 3), zero.pooled_BD, zero.logits_BK)  # fmt: skip  # noqa: E501
    assert float(match.before(side, off, zero).detach()) == pytest.approx(1.0)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("channels", [8, 16])
def test_both_terms_reach_the_student(teacher: ResNetTeacher, channels: int, reuse: bool) -> None:
    arch = StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=channels)
    model = StudentNet(arch, 16, 5, teacher.head if reuse else None)
    x = torch.randn(6, 1, 16, 24)
    with torch.no_grad():
        t = teacher.hidden(x)
    match = HiddenMatch(model, teacher, FeatureScale.measure(t))
    assert isinstance(match.frame_projector, nn.Identity) == (channels == teacher.channels)
    for term in (match.before, match.after):
        model.zero_grad()
        term(model, model.hidden(x), t).backward()  # type: ignore[no-untyped-call]
        stem = next(model.trunk.parameters())
        assert stem.grad is not None
        assert stem.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_min": 50, "crop_max": 40},
        {"logits": 0, "before_pooling": 0, "after_pooling": 0},
        {"steps": 0},
        {"temperature": 0},
    ],
)
def test_impossible_recipes_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        DistillConfig.model_validate(fields)


def test_crops_must_fit_into_the_bank() -> None:
    with pytest.raises(ValidationError, match="crop_max 96 exceeds"):
        JourneyConfig.model_validate({"bank": {"frames": 64}})
