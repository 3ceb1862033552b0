from __future__ import annotations

import pytest
import torch

from frami_edge.device import generator
from frami_edge.losses import (
    FeatureInvariantContrast,
    adversarial_loss,
    class_loss,
    contrastive_view,
)
from frami_edge.models import Hidden, ResNetTeacher


def hidden(seed: int, n: int = 12, channels: int = 6) -> Hidden:
    rng = torch.Generator().manual_seed(seed)
    frames = torch.randn(n, channels, 9, generator=rng)
    return Hidden(frames, torch.randn(n, 2 * channels, generator=rng), torch.zeros(n, 3))


def contrast(memory: int = 64) -> FeatureInvariantContrast:
    torch.manual_seed(0)
    return FeatureInvariantContrast(6, 12, embedding=8, memory=memory)


def rolled(h: Hidden) -> Hidden:
    return Hidden(h.frames_BCT.roll(1, 0), h.pooled_BD.roll(1, 0), h.logits_BK)


def test_matching_pairs_cost_less_than_others() -> None:
    loss = contrast()
    h = hidden(0)
    assert loss(h, h)[0] < loss(h, rolled(h))[0] - 0.5


def test_keys_are_of_unit_length_and_carry_no_gradient() -> None:
    h = hidden(0)
    h.frames_BCT.requires_grad_()
    value, keys = contrast()(h, h)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(12))
    assert not keys.requires_grad
    assert value.requires_grad


def test_the_memory_adds_negatives() -> None:
    loss, h = contrast(), hidden(0)
    before = float(loss(h, h)[0].detach())
    loss.remember(loss.embed(hidden(1)))
    after = float(loss(h, h)[0].detach())
    assert after > before


def test_an_empty_memory_is_no_negative() -> None:
    """Rows that were never written must not count: their similarity would be 0 to everything."""
    h = hidden(0)
    small, large = (float(contrast(size)(h, h)[0].detach()) for size in (8, 4096))
    assert small == pytest.approx(large)


def test_the_memory_wraps_over_the_oldest() -> None:
    loss = contrast(memory=5)
    keys = torch.arange(1, 10.0)[:, None].expand(9, 16)
    loss.remember(keys[:3])
    assert loss.memory[:, 0].tolist() == [1, 2, 3, 0, 0]
    loss.remember(keys[3:7])
    assert loss.memory[:, 0].tolist() == [6, 7, 3, 4, 5]
    loss.remember(keys)
    assert sorted(loss.memory[:, 0].tolist()) == [5, 6, 7, 8, 9]


def test_the_memory_is_part_of_the_state() -> None:
    loss, again = contrast(), contrast()
    loss.remember(loss.embed(hidden(1)))
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.memory, loss.memory)
    assert int(again.filled) == 12


def test_views_have_another_length_and_the_same_clips(teacher: ResNetTeacher) -> None:
    x = torch.randn(8, 1, 16, 40)
    views = [contrastive_view(x, generator(i, "view")) for i in range(12)]
    lengths = {v.shape[3] for v in views}
    assert len(lengths) > 3
    assert all(20 <= n <= 40 for n in lengths)
    assert torch.equal(views[0], contrastive_view(x, generator(0, "view")))
    assert all(v.shape[:3] == x.shape[:3] for v in views)


def test_class_loss_prefers_the_requested_class() -> None:
    logits = torch.eye(3) * 5
    assert class_loss(logits, torch.arange(3)) < class_loss(logits, torch.tensor([1, 2, 0]))


def test_the_adversarial_term_counts_agreeing_clips_only() -> None:
    teacher = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)  # agrees, disagrees
    loss = adversarial_loss(teacher, student)
    p, q = teacher.log_softmax(1)[0], student.detach().log_softmax(1)[0]
    assert float(loss.detach()) == pytest.approx(-float((p.exp() * (p - q)).sum()) / 2, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad[0].abs().sum() > 0
    assert student.grad[1].abs().sum() == 0
