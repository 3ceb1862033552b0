"""Every variant of the distillation that the tables compare is reachable, and trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from frami_edge.config import DistillConfig, StudentArch
from frami_edge.device import Compute
from frami_edge.distillation import Distiller
from frami_edge.errors import ConfigError
from frami_edge.losses import logits_loss
from frami_edge.models import ResNetTeacher, ReusedHead, StudentNet

OWN, REUSED = False, True
VARIANTS: dict[str, tuple[dict[str, float], bool, set[str]]] = {
    "logits only": ({"before_pooling": 0, "after_pooling": 0}, OWN, {"logits"}),
    "head reuse only": ({"before_pooling": 0, "after_pooling": 0}, REUSED, {"logits"}),
    "logits and before pooling": ({"after_pooling": 0}, OWN, {"logits", "before"}),
    "logits and after pooling": ({"before_pooling": 0}, OWN, {"logits", "after"}),
    "before pooling only": ({"logits": 0, "after_pooling": 0}, REUSED, {"before"}),
    "after pooling only": ({"logits": 0, "before_pooling": 0}, REUSED, {"after"}),
    "hidden states only": ({"logits": 0}, REUSED, {"before", "after"}),
    "all without the head": ({}, OWN, {"logits", "before", "after"}),
    "all": ({}, REUSED, {"logits", "before", "after"}),
}


class Noise:
    """A feed of smooth noise."""

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 1, 16, 24, generator=generator).cumsum(3) / 3


def distiller(
    teacher: ResNetTeacher, weights: dict[str, float], reuse: bool, channels: int = 16
) -> Distiller:
    fields: dict[str, Any] = {"steps": 60, "batch_size": 16, "crop_min": 16, "crop_max": 24}
    config = DistillConfig.model_validate(fields | weights | {"reuse_head": reuse, "mixup": 0})
    torch.manual_seed(5)
    arch = StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=channels)
    student = StudentNet(arch, 16, 5, teacher.head if reuse else None)
    compute = Compute(torch.device("cpu"), torch.float32, False, "a test")
    return Distiller(teacher, student, config, compute, 0, Noise())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_its_terms_alone_and_comes_nearer_to_the_teacher(
    name: str, teacher: ResNetTeacher
) -> None:
    weights, reuse, terms = VARIANTS[name]
    run = distiller(teacher, weights, reuse)
    assert isinstance(run.student.head, ReusedHead) == reuse
    x = Noise().batch(128, torch.Generator().manual_seed(7))
    target = teacher(x)

    def distance() -> float:
        run.student.train()  # statistics of a batch: the averages start far from any
        with torch.no_grad():
            return float(logits_loss(run.student(x), target, 1.0))

    before = distance()
    rows: list[dict[str, float]] = []
    result = run.run(lambda _, row: rows.append(row))
    assert set(rows[0]) == {"loss", "agreement"} | terms
    assert distance() < 0.8 * before
    shipped = result.collapse().eval()
    assert isinstance(shipped.head, torch.nn.Linear)
    with torch.no_grad():
        torch.testing.assert_close(shipped(x), result.eval()(x), atol=1e-4, rtol=1e-4)


def test_a_head_that_nothing_trains_is_refused(teacher: ResNetTeacher) -> None:
    with pytest.raises(ValidationError, match="needs reuse_head"):
        distiller(teacher, {"logits": 0}, OWN)
    before = {"logits": 0, "after_pooling": 0}
    with pytest.raises(ConfigError, match="No term would train the student's head"):
        distiller(teacher, before, REUSED, channels=8)
    # As with a teacher whose way to the logits is not affine: it has no head to lend.
    alone = distiller(teacher, {}, OWN).student
    config = DistillConfig.model_validate({"crop_max": 24, "crop_min": 16, "logits": 0})
    compute = Compute(torch.device("cpu"), torch.float32, False, "a test")
    with pytest.raises(ConfigError, match="No term would train"):
        Distiller(teacher, alone, config, compute, 0, Noise())
