"""A further term is one file: it is found by name, weighted, counted and trained on."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from frami_edge.device import Choice
from frami_edge.distillation.config import DistillConfig
from frami_edge.distillation.extra import extra_loss, extra_names
from frami_edge.distillation.losses import FeatureScale, HiddenMatch
from frami_edge.distillation.terms import Terms
from frami_edge.models.hidden import Hidden
from frami_edge.models.student import Student
from frami_edge.models.teacher import ResNetTeacher

X = torch.randn(6, 1, 16, 40, generator=torch.Generator().manual_seed(3))


def terms(student: Student, teacher: ResNetTeacher, **fields: object) -> Terms:
    config = DistillConfig.model_validate(fields)
    torch.manual_seed(0)  # of the projector
    match = HiddenMatch(student, teacher, FeatureScale.measure(teacher.hidden(X)))
    choice = Choice(torch.device("cpu"), torch.float32, False, "a test")
    return Terms(student, match, config, choice, False)


def test_its_weight_multiplies_it_and_the_rest_is_as_without(
    student: Student, teacher: ResNetTeacher
) -> None:
    hidden = teacher.hidden(X)
    plain, _ = terms(student, teacher)(X, hidden)
    more = terms(student, teacher, extra={"logit_mse": 0.5})
    found, logits = more(X, hidden)
    assert more.names == ("logits", "before", "after", "logit_mse")
    torch.testing.assert_close(found[:3], plain)
    expected = 0.5 * torch.mean((logits - hidden.logits_BK) ** 2)
    torch.testing.assert_close(found[3], expected)


@pytest.mark.parametrize("name", extra_names())
def test_every_term_is_a_mean_over_clips_with_a_gradient(name: str) -> None:
    def random(seed: int, rows: slice = slice(None)) -> Hidden:
        g = torch.Generator().manual_seed(seed)
        parts = [torch.randn(8, *shape, generator=g) for shape in ((6, 5), (12,), (4,))]
        return Hidden(*(part[rows] for part in parts))

    loss = extra_loss(name)
    whole = loss(random(0), random(1))
    halves = [loss(random(0, r), random(1, r)) for r in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    student = random(0)
    student.logits_BK.requires_grad_()
    student.frames_BCT.requires_grad_()
    student.pooled_BD.requires_grad_()
    loss(student, random(1)).backward()
    leaves = (student.logits_BK, student.frames_BCT, student.pooled_BD)
    assert any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves)


def test_a_recipe_without_one_is_written_as_ever() -> None:
    assert "extra" not in DistillConfig().model_dump(mode="json")
    kept = DistillConfig(extra={"logit_mse": 0.5}).model_dump(mode="json")
    assert kept["extra"] == {"logit_mse": 0.5}


@pytest.mark.parametrize(
    ("extra", "words"),
    [({"os": 1.0}, "unknown term 'os'"), ({"logit_mse": 0.0}, "must be a positive number")],
)
def test_mistakes_are_told(extra: dict[str, float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DistillConfig(extra=extra)
