from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from frami_edge.config import BASELINES, BankConfig
from frami_edge.errors import TeacherError
from frami_edge.models import ResNetTeacher
from frami_edge.sources import SOURCES
from frami_edge.sources.base import NO_LABEL, Context

Make = Callable[..., Context]
LEARNED = ("inversion", "translator")
OURS = [name for name in SOURCES if name not in BASELINES]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.mark.parametrize("name", OURS)
def test_a_step_depends_on_the_seed_alone(name: str, context: Make) -> None:
    one, again, other = (SOURCES[name](context(seed=s)) for s in (0, 0, 1))
    a, b, c = one.step(0), again.step(0), other.step(0)
    assert torch.equal(a.mels_B1MT, b.mels_B1MT)
    assert not torch.equal(a.mels_B1MT, c.mels_B1MT)
    assert a.mels_B1MT.shape[1:] == (1, 16, 16)
    assert a.mels_B1MT.dtype == torch.float32
    assert not a.mels_B1MT.requires_grad
    assert torch.isfinite(a.mels_B1MT).all()


@pytest.mark.parametrize("name", OURS)
def test_going_on_from_the_state_is_the_same_run(
    name: str, context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in LEARNED:
        monkeypatch.setattr(SOURCES[name], "block", 3)
    settings = context(inversion={"adversarial": {"weight": 0.1, "warmup_steps": 1}})
    whole = SOURCES[name](settings)
    for i in range(2):
        whole.step(i)
    halved = SOURCES[name](settings)
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    halved.load_state(torch.load(file, weights_only=True))
    for i in range(2, 4):
        a, b = whole.step(i), halved.step(i)
        assert torch.equal(a.mels_B1MT, b.mels_B1MT)
        assert a.metrics == b.metrics
    assert same(whole.state(), halved.state())


@pytest.mark.parametrize("name", ["procedural", "smooth_noise", "white_noise"])
def test_what_is_not_learned_makes_the_clips_asked_for(
    name: str, context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SOURCES[name], "block", 4)
    source = SOURCES[name](context())
    batches = [source.step(i) for i in range(source.steps)]
    assert sum(len(b.labels_B) for b in batches) == 10
    assert all((b.labels_B == NO_LABEL).all() for b in batches)
    assert all(b.keep for b in batches)


@pytest.mark.parametrize("name", LEARNED)
def test_classes_are_asked_for_in_turn_and_burn_in_is_thrown_away(name: str, context: Make) -> None:
    source = SOURCES[name](context(inversion={"batch_steps": 1}))
    batches = [source.step(i) for i in range(source.steps)]
    counts = torch.bincount(torch.cat([b.labels_B for b in batches]))
    assert counts.max() - counts.min() <= 1
    assert [b.keep for b in batches] == [False, False, True, True, True, True]


def test_a_batch_of_the_inversion_is_worked_on_for_some_steps(context: Make) -> None:
    source = SOURCES["inversion"](context(inversion={"batch_steps": 2}))
    labels = [source.step(i).labels_B for i in range(4)]
    assert torch.equal(labels[0], labels[1])
    assert torch.equal(labels[2], labels[3])
    assert not torch.equal(labels[0], labels[2])


def test_every_term_has_a_switch(context: Make) -> None:
    every = {"class_loss": 1, "batch_norm": 1, "contrastive": 1}
    full = SOURCES["inversion"](
        context(inversion=every | {"adversarial": {"weight": 1, "warmup_steps": 0}})
    )
    terms = {"class", "batch_norm", "contrastive", "adversarial"}
    assert terms <= set(full.step(0).metrics)
    for name, term in (("class_loss", "class"), ("batch_norm", "batch_norm"),
                       ("contrastive", "contrastive")):  # fmt: skip
        source = SOURCES["inversion"](context(inversion=every | {name: 0}))
        assert set(source.step(0).metrics) & terms == terms - {term, "adversarial"}


@pytest.mark.parametrize("name", LEARNED)
def test_learning_lowers_the_loss(name: str, context: Make) -> None:
    recipe = {"steps": 40, "learning_rate": 1e-2, "batch_size": 16}
    source = SOURCES[name](context(**{name: recipe}))
    losses = [source.step(i).metrics["batch_norm"] for i in range(40)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_the_teacher_is_left_as_it_was(context: Make, teacher: ResNetTeacher) -> None:
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    for name in LEARNED:
        SOURCES[name](context()).step(0)
    assert same(before, dict(teacher.state_dict()))
    assert not any(m._forward_pre_hooks for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


class Folded(nn.Module):
    """A teacher without BatchNorm."""

    channels, frame_stride, frame_offset = 6, 4, 0.0

    def __init__(self, teacher: ResNetTeacher) -> None:
        super().__init__()
        self.inner = teacher
        for name, module in list(teacher.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent = teacher.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], nn.Identity())
        self.channels, self.pooled_size = teacher.channels, teacher.pooled_size
        self.hidden = teacher.hidden


@pytest.mark.parametrize("name", LEARNED)
def test_a_teacher_without_batch_norm_needs_the_term_off(
    name: str, context: Make, teacher: ResNetTeacher
) -> None:
    folded = Folded(teacher)
    with pytest.raises(TeacherError, match="no BatchNorm"):
        SOURCES[name](context(model=folded))
    source = SOURCES[name](context(model=folded, **{name: {"batch_norm": 0}}))
    assert "batch_norm" not in source.step(0).metrics


@pytest.mark.parametrize(
    "sources", [{}, {"inversion": 0}, {"inversion": -1, "procedural": 2}, {"dreams": 1}]
)
def test_impossible_mixes_are_refused(sources: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BankConfig(sources=sources)


def test_shares_sum_to_one_and_leave_out_what_is_off() -> None:
    config = BankConfig(sources={"inversion": 3, "procedural": 1, "translator": 0})
    assert config.shares == {"inversion": 0.75, "procedural": 0.25}
