"""The verdict on a student: what makes it ready, what is named, and what must not enter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frami_edge import inversion, readiness
from frami_edge.bank import Bank
from frami_edge.checkpoint import Teacher
from frami_edge.config import BankConfig, JourneyConfig
from frami_edge.device import Compute
from frami_edge.inversion import invert
from frami_edge.models import StudentNet
from frami_edge.readiness import Readiness, judge

SOURCES = {"inversion": 1.0, "procedural": 1.0, "translator": 1.0, "smooth_noise": 1.0}
FOUND = {k: [0.2] * 5 for k in ("hit_rate_per_class", "class_share")}


@pytest.fixture(autouse=True)
def _few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "CLIPS", 80)
    monkeypatch.setattr(inversion, "HELD_OUT", 80)


@pytest.fixture
def bank(
    opened: Teacher, cpu: Compute, bank_config: Callable[..., BankConfig], tmp_path: Path
) -> Bank:
    return invert(opened, bank_config(sources=SOURCES), tmp_path / "bank", cpu, 0)


@pytest.fixture
def verdict_on(opened: Teacher, cpu: Compute, bank: Bank) -> Callable[..., Readiness]:
    config = JourneyConfig(
        bank=BankConfig(clip_s=0.16), distill={"crop_min_s": 0.1, "crop_max_s": 0.16}
    )  # type: ignore[arg-type]

    def verdict(student: Any, output: Any = "softmax") -> Readiness:
        card = opened.card.model_copy(update={"output": output})
        teacher = Teacher(opened.model, card, opened.mel, opened.sha256)
        return judge(teacher, student, config, cpu, opened.mel, bank)

    return verdict


def all_sources(bank: Bank, missing: int | None = None) -> None:
    """Health of a bank that has every class, or all but one."""
    found: dict[str, Any] = {name: list(values) for name, values in FOUND.items()}
    if missing is not None:
        for values in found.values():
            values[missing] = 0.0
    bank.index = bank.index.model_copy(update={"health": dict.fromkeys(SOURCES, found)})


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_copy_of_the_teacher_is_ready(
    opened: Teacher, bank: Bank, verdict_on: Callable[..., Readiness], output: str
) -> None:
    all_sources(bank)
    verdict = verdict_on(opened.model, output)
    assert verdict
    assert set(verdict.agreement.values()) == {1.0}
    assert set(verdict.held_out) == set(SOURCES) - {"smooth_noise"}
    assert verdict.to_dict()["ready"]


def test_another_network_is_not_and_every_reason_is_named(
    student: StudentNet, bank: Bank, verdict_on: Callable[..., Readiness]
) -> None:
    all_sources(bank, missing=3)
    verdict = verdict_on(student)
    assert not verdict
    text = str(verdict)
    assert text.startswith("Not ready. It agrees with its teacher on ")
    assert "(75 % is the least)" in text
    assert "The bank lacks d." in text
    assert verdict.requested == {"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.0, "e": 0.2}


def test_a_class_that_the_student_never_gives_is_named(
    opened: Teacher, bank: Bank, verdict_on: Callable[..., Readiness]
) -> None:
    """The mean over classes hides it."""
    all_sources(bank)
    teacher = opened.model

    def deaf(x: torch.Tensor) -> torch.Tensor:
        z_BK = teacher(x)
        z_BK[:, 1] = -99.0
        return z_BK

    verdict = verdict_on(deaf)
    assert verdict.by_class["b"] == 0
    assert "It agrees on fewer than 50 % of the clips of b." in verdict.reasons


def test_detectors_that_nothing_triggers_are_judged_at_their_boundary(
    opened: Teacher, student: StudentNet, bank: Bank, verdict_on: Callable[..., Readiness]
) -> None:
    all_sources(bank)
    assert opened.model.head is not None
    with torch.no_grad():
        opened.model.head.bias.fill_(-99)

    def silent(x: torch.Tensor) -> torch.Tensor:
        return student(x) - 999

    verdict = verdict_on(opened.model, "sigmoid")
    assert set(verdict.agreement.values()) == {None}
    assert verdict.mean == 1
    assert verdict_on(silent, "sigmoid").mean == 0


def test_held_out_clips_are_in_no_shard(bank: Bank) -> None:
    for source in ("inversion", "translator"):
        kept = bank.held_out(source)
        assert kept is not None
        assert len(kept) == 80
        trained = bank.read(source).mels_N1MT.flatten(1)
        assert torch.cdist(kept.flatten(1), trained).min() > 0.1
    assert bank.held_out("procedural") is None


def test_real_audio_does_not_enter(
    opened: Teacher, bank: Bank, verdict_on: Callable[..., Readiness]
) -> None:
    """Shards renamed to recordings are what a bank of a user's audio holds."""
    all_sources(bank)
    shards = tuple(
        s.model_copy(update={"source": "recordings"}) if s.source == "smooth_noise" else s
        for s in bank.index.shards
    )
    bank.index = bank.index.model_copy(update={"shards": shards})
    assert "recordings" in bank.sources
    heard = {name: {k: [0.0] * 5 for k in FOUND} for name in SOURCES} | {"recordings": FOUND}
    bank.index = bank.index.model_copy(update={"health": heard})
    verdict = verdict_on(opened.model)
    assert "recordings" not in verdict.agreement
    assert len(verdict.missing) == 5
