from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from frami_edge.config import DistillConfig, StudentArch
from frami_edge.device import Compute
from frami_edge.distillation import Distiller
from frami_edge.models import ResNetTeacher, ReusedHead, StudentNet

Make = Callable[..., Distiller]


class Noise:
    """A feed of smooth noise."""

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 1, 16, 24, generator=generator).cumsum(3) / 3


@pytest.fixture
def distiller(teacher: ResNetTeacher) -> Make:
    def make(seed: int = 0, **changes: Any) -> Distiller:
        fields: dict[str, Any] = {
            "steps": 6, "batch_size": 8, "crop_min": 12, "crop_max": 20, "mixup": 0.5,
            "mask_bands": 3, "mask_frames": 3, "checkpoint_steps": 2,
        }  # fmt: skip
        config = DistillConfig.model_validate(fields | changes)
        torch.manual_seed(5)
        arch = StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=16)
        student = StudentNet(arch, 16, 5, teacher.head if config.reuse_head else None)
        compute = Compute(torch.device("cpu"), torch.float32, False, "a test")
        return Distiller(teacher, student, config, compute, seed, Noise())

    return make


def equal(a: StudentNet, b: StudentNet) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_is_the_uninterrupted_one(distiller: Make, reuse: bool, stop: int) -> None:
    states: dict[int, bytes] = {}
    rows: list[dict[str, float]] = []
    whole = distiller(reuse_head=reuse)

    def keep(state: dict[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(state, file)
        states[state["done"]] = file.getvalue()

    result = whole.run(lambda _, m: rows.append(m), keep)
    assert list(states) == [2, 4, 6]
    torch.manual_seed(99)
    resumed = distiller(reuse_head=reuse)
    torch.manual_seed(100)  # the global stream must not matter
    resumed.load_state(torch.load(io.BytesIO(states[stop]), weights_only=True))
    again: list[dict[str, float]] = []
    assert equal(resumed.run(lambda _, m: again.append(m)), result)
    assert again == rows[stop:]
    assert not result.training


def test_another_seed_is_another_run(distiller: Make) -> None:
    assert not equal(distiller(0).run(), distiller(1).run())


def test_terms_are_switched_off_by_their_weight(distiller: Make) -> None:
    terms = {"logits": "logits", "before_pooling": "before", "after_pooling": "after"}
    assert set(terms.values()) <= set(distiller().step())
    for key, term in terms.items():
        row = distiller(**{key: 0}).step()
        assert term not in row
        rest = [row[name] for name in terms.values() if name in row]
        assert row["loss"] == pytest.approx(sum(rest), rel=1e-5)


def test_the_teacher_and_its_head_stay_as_they_are(distiller: Make, teacher: ResNetTeacher) -> None:
    before = copy.deepcopy(teacher.state_dict())
    student = distiller(learning_rate=0.1).run()
    after = teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert isinstance(student.head, ReusedHead)
    assert torch.equal(student.head.head.weight, teacher.head.weight)
    assert not teacher.training


def test_the_student_learns(distiller: Make) -> None:
    rows: list[dict[str, float]] = []
    distiller(steps=60, mixup=0, mask_bands=0, mask_frames=0).run(lambda _, m: rows.append(m))
    for term in ("logits", "before", "after"):
        early, late = (sum(r[term] for r in part) for part in (rows[:10], rows[-10:]))
        assert late < 0.9 * early, term


def test_a_finished_run_has_nothing_left_to_do(distiller: Make) -> None:
    whole = distiller()
    whole.run()
    weights = copy.deepcopy(whole.student.state_dict())
    whole.run()
    assert all(torch.equal(v, weights[k]) for k, v in whole.student.state_dict().items())
