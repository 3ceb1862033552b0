"""Teachers that are not ours: what is found in them, and that it is right."""

from __future__ import annotations

import pytest
import teacher_zoo as zoo
import torch
from teacher_zoo import K, M
from torch import nn

from frami_edge.errors import TeacherError
from frami_edge.losses import live_batch_norms
from frami_edge.teachers.foreign import ForeignTeacher

CASES = {
    # name: layout, frames, pooled, C, D, stride, receptive field, head, answers
    "KeywordNet": ("BTM", "bn2", "classify@in", 12, 12, 2, 9, "classify", "logits"),
    "XVector": ("BMT", "tdnn.5", "segment@in", 12, 24, 1, 9, "", "logits"),
    "Attention": ("B1MT", "pool@in", "pool", 12, 12, 4, 7, "fc", "log-probabilities"),
    "InlineAttention": ("BTM", "score@in", "fc@in", 12, 12, 1, 5, "fc", "logits"),
    "SqueezeExcite": ("B1MT", "more.2", "pool", 16, 16, 4, None, "fc", "probabilities"),
    "SubSpectral": ("B1TM", "last.2", "fc1@in", 12, 12, 2, 5, "", "logits"),
    "Recurrent": ("BTM", "gru", "fc@in", 12, 12, 1, None, "fc", "logits"),
}


def teacher(name: str, **how: str) -> ForeignTeacher:
    torch.manual_seed(0)
    module = zoo.lively(getattr(zoo, name)(), CASES[name][0] if name in CASES else "BTM")
    return ForeignTeacher(module, M, K, **how)  # type: ignore[arg-type]


def mels(n: int = 3, frames: int = 90, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 1, M, frames, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CASES)
def test_what_is_found(name: str) -> None:
    made = teacher(name)
    a, s = made.anatomy, made.anatomy.states
    found = (a.layout, s.frames, s.pooled, s.channels, s.pooled_size, a.stride, a.receptive_field,
             a.head, a.answers)  # fmt: skip
    assert found == CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_are_the_modules_own(name: str) -> None:
    made = teacher(name)
    x = mels()
    hidden = made.hidden(x)
    assert hidden.frames_BCT.shape[:2] == (3, made.channels)
    assert hidden.pooled_BD.shape == (3, made.pooled_size)
    if made.head is not None:
        again = made.head(hidden.pooled_BD)
        assert torch.allclose(
            again.log_softmax(1), hidden.logits_BK.log_softmax(1), atol=1e-5, rtol=1e-4
        )
    longer = made.hidden(mels(frames=90 + 8 * made.frame_stride))
    assert longer.frames_BCT.shape[2] - hidden.frames_BCT.shape[2] == 8


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_mels_and_are_right(name: str) -> None:
    """Against a central difference: torch's BatchNorm is wrong for (B, M, T, 1) on the CPU."""
    made = teacher(name)
    x = mels(2, 40).double()
    made.double()
    x.requires_grad_()
    direction = mels(2, 40, seed=2).double()
    (gradient,) = torch.autograd.grad(made.hidden(x).logits_BK.square().sum(), x)
    with torch.no_grad():
        high, low = (
            made.hidden(x + step * direction).logits_BK.square().sum() for step in (1e-6, -1e-6)
        )
    expected = float((high - low) / 2e-6)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_frames_lie_where_they_say() -> None:
    made = teacher("KeywordNet")
    x = mels(1, 101)
    before = made.hidden(x).frames_BCT
    x[..., 50] += 3
    changed = (made.hidden(x).frames_BCT - before).abs().sum((0, 1)).nonzero()[:, 0].float()
    centre = float(changed.mean()) * made.frame_stride + made.frame_offset
    assert centre == pytest.approx(50, abs=made.frame_stride / 2)


def test_a_padded_batch_is_answered_clip_by_clip() -> None:
    made = teacher("SqueezeExcite")
    x, lengths = mels(4, 60), torch.tensor([60, 35, 60, 20])
    together = made(x, lengths)
    alone = torch.cat([made(x[i : i + 1, :, :, :n]) for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(together, alone, atol=1e-6)
    with pytest.raises(TeacherError, match="no masks"):
        made.hidden(x, lengths)


def test_batch_norms_of_every_form_are_live() -> None:
    assert [type(m).__name__ for _, m in live_batch_norms(teacher("SubSpectral"))] == [
        "BatchNorm2d", "BatchNorm2d", "BatchNorm2d",
    ]  # fmt: skip
    assert len(live_batch_norms(teacher("XVector"))) == 3


def test_states_can_be_named() -> None:
    made = teacher("XVector", frames="tdnn.4", pooled="norm@in")
    assert (made.channels, made.pooled_size) == (12, 10)
    assert made.hidden(mels()).pooled_BD.shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("ScoresOverTime", {}, "pools over time and returns the result at once"),
        ("Sigmoid", {}, "seems to end in a sigmoid"),
        ("KeywordNet", {"frames": "nowhere"}, "has no module nowhere"),
        ("KeywordNet", {"frames": "classify"}, "no state with time"),
        ("KeywordNet", {"pooled": "bn1"}, "no state without time"),
        ("KeywordNet", {"layout": "B1MT"}, "Tried: B1MT"),
    ],
)
def test_what_cannot_be_opened_says_why(name: str, how: dict[str, str], said: str) -> None:
    with pytest.raises(TeacherError, match=said) as caught:
        teacher(name, **how)
    assert caught.value.fix


def test_a_teacher_of_other_bands_is_refused() -> None:
    with pytest.raises(TeacherError, match="does not turn log-mels of 24 bands"):
        ForeignTeacher(zoo.lively(zoo.KeywordNet(), "BTM"), 24, K)


def test_hooks_do_not_pile_up_hidden_states() -> None:
    made = teacher("Attention")
    made.hidden(mels())
    assert not made._seen


def test_a_network_of_fixed_length_is_refused() -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(M * 64, K))
    with pytest.raises(TeacherError, match="its clip length is fixed"):
        ForeignTeacher(fixed, M, K)
