"""Every baseline learns, keeps to its budget, and goes on after a kill to the same bank."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from frami_edge.bank import Bank, warnings
from frami_edge.config import BASELINES, BankConfig, batch_norm_keys
from frami_edge.errors import BankError, TeacherError
from frami_edge.inversion import make_bank
from frami_edge.models import ResNetTeacher
from frami_edge.sources import SOURCES
from frami_edge.sources.base import NO_LABEL, Context
from frami_edge.sources.baselines import BatchWise

Make = Callable[..., Context]
LABELS = ("a", "b", "c", "d", "e")
SHA = "0" * 64
BATCH_WISE = ("deep_inversion", "cmi", "fast")
# An adversary moves the goal; what must fall is a term that does not depend on it.
FALLS = {"dafl": "balance", "dfq": "batch_norm"} | dict.fromkeys(BATCH_WISE, "batch_norm")


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_every_name_is_a_source_of_its_own() -> None:
    assert set(BASELINES) < set(SOURCES)
    assert all(SOURCES[name].name == name for name in BASELINES)


@pytest.mark.parametrize("name", BASELINES)
def test_going_on_from_any_step_is_the_same_run(name: str, context: Make) -> None:
    settings = context(name)
    whole = SOURCES[name](settings)
    states, batches = [], []
    for i in range(12):
        file = io.BytesIO()
        torch.save(whole.state(), file)
        states.append(file)
        batches.append(whole.step(i))
    for start in (1, 6, 8):
        torch.manual_seed(99)
        resumed = SOURCES[name](settings)
        torch.manual_seed(100)  # the global stream must not matter
        states[start].seek(0)
        resumed.load_state(torch.load(states[start], weights_only=True))
        for i in range(start, 12):
            again = resumed.step(i)
            assert torch.equal(again.mels_B1MT, batches[i].mels_B1MT), (start, i)
            assert same(dict(again.metrics), dict(batches[i].metrics)), (start, i)
            assert again.keep == batches[i].keep
        assert same(resumed.state(), whole.state())


@pytest.mark.parametrize("name", BATCH_WISE)
def test_a_batch_without_a_finite_loss_is_told(
    context: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCES[name](context(name))
    assert isinstance(source, BatchWise)
    genuine = source.iterate

    def diverging(index: int, *more: Any) -> Any:
        mels, logits, terms = genuine(index, *more)
        return mels, logits, terms | ({"class": terms["class"] * torch.nan} if index > 5 else {})

    monkeypatch.setattr(source, "iterate", diverging)
    for i in range(source.steps - 1):
        source.step(i)
    # Its first batches were sound: their clips must not come again under its labels.
    with pytest.raises(BankError, match=f"{name} diverged by step 12"):
        source.step(source.steps - 1)


class Killed(BaseException):
    """What a signal would do."""


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("step", [9])
def test_a_killed_bank_goes_on_to_the_same_bank(
    tmp_path: Path, context: Make, name: str, step: int
) -> None:
    settings = context(name)
    whole = make_bank(tmp_path / "whole", settings, LABELS, SHA)

    def kill(_: str, done: int, steps: int, metrics: dict[str, float]) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        make_bank(tmp_path / "killed", settings, LABELS, SHA, kill)
    assert 0 < len(Bank.open(tmp_path / "killed")) < len(whole)
    resumed = make_bank(tmp_path / "killed", settings, LABELS, SHA)
    hashes = [[(s.clips, s.sha256) for s in bank.index.shards] for bank in (whole, resumed)]
    assert hashes[0] == hashes[1]
    assert whole.index.health == resumed.index.health
    assert not list((tmp_path / "killed").glob("state-*"))


@pytest.mark.parametrize("name", BASELINES)
def test_a_seed_repeats_and_clips_stay_in_the_range(name: str, context: Make) -> None:
    one, again, other = (SOURCES[name](context(name, seed=s)) for s in (0, 0, 1))
    kept = []
    for i in range(8):
        a, b, c = one.step(i), again.step(i), other.step(i)
        assert torch.equal(a.mels_B1MT, b.mels_B1MT)
        assert a.keep == b.keep == c.keep
        if a.keep:
            assert not torch.equal(a.mels_B1MT, c.mels_B1MT)
            kept.append(a)
    spec = context(name).spec
    floor, ceiling = torch.from_numpy(spec.floor), torch.from_numpy(spec.ceiling)
    for batch in kept:
        assert batch.mels_B1MT.shape == (8, 1, 16, 24)
        assert not batch.mels_B1MT.requires_grad
        assert (batch.mels_B1MT[:, 0] >= floor[:, None] - 1e-4).all()
        assert (batch.mels_B1MT[:, 0] <= ceiling[:, None] + 1e-4).all()


@pytest.mark.parametrize("name", ["dafl", "zskt", "dfq"])
def test_a_generator_gives_a_batch_a_step_without_labels(name: str, context: Make) -> None:
    source = SOURCES[name](context(name))
    batches = [source.step(i) for i in range(12)]
    assert [b.keep for b in batches] == [False] * 2 + [True] * 10
    assert all((b.labels_B == NO_LABEL).all() for b in batches)


@pytest.mark.parametrize("name", BATCH_WISE)
@pytest.mark.parametrize(
    ("steps", "ends"), [(12, [3, 7, 11]), (14, [4, 9, 13]), (3, [2]), (7, [6])]
)
def test_the_budget_is_shared_out_evenly(
    name: str, steps: int, ends: list[int], context: Make
) -> None:
    source = SOURCES[name](context(name, steps=steps, burn_in=0))
    batches = [source.step(i) for i in range(steps)]
    assert [i for i, b in enumerate(batches) if b.keep] == ends
    asked = torch.cat([batches[i].labels_B for i in ends])
    counts = torch.bincount(asked, minlength=5)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", BASELINES)
def test_one_step_is_one_pass_of_the_teacher_with_a_gradient(name: str, context: Make) -> None:
    settings = context(name)
    source = SOURCES[name](settings)
    passes = []
    real = settings.teacher.hidden

    def count(x: torch.Tensor, lengths: Any = None) -> Any:
        passes.append(x.requires_grad)
        return real(x, lengths)

    settings.teacher.hidden = count  # type: ignore[method-assign]
    try:
        for i in range(5):
            passes.clear()
            source.step(i)
            # CMI looks at two views, as FRAMI does.
            assert sum(passes) == (2 if name == "cmi" else 1)
    finally:
        settings.teacher.hidden = real  # type: ignore[method-assign]


@pytest.mark.parametrize("name", list(FALLS))
def test_learning_lowers_the_loss(name: str, context: Make) -> None:
    one_batch = {"iterations": 24} if name in ("cmi", "deep_inversion") else {}
    source = SOURCES[name](context(name, steps=24, **one_batch))
    rows = [float(source.step(i).metrics[FALLS[name]]) for i in range(24)]
    assert sum(rows[-4:]) < sum(rows[:4])


@pytest.mark.parametrize("name", ["cmi", "deep_inversion", "fast"])
def test_the_best_iterate_is_kept(name: str, context: Make) -> None:
    source = SOURCES[name](context(name, steps=8, iterations=8, burn_in=0, learning_rate=0.5))
    rows = [source.step(i) for i in range(8)]
    losses = [float(row.metrics["loss"]) for row in rows]
    best = min(range(8), key=losses.__getitem__)
    assert torch.equal(rows[-1].mels_B1MT, rows[best].mels_B1MT)
    for i in range(1, 8):
        changed = not torch.equal(rows[i].mels_B1MT, rows[i - 1].mels_B1MT)
        assert changed == (losses[i] < min(losses[:i]))


@pytest.mark.parametrize("name", ["zskt", "dfq", "deep_inversion", "cmi", "fast"])
def test_the_adversary_is_a_student_that_learns(name: str, context: Make) -> None:
    source: Any = SOURCES[name](context(name))
    weights = {k: v.clone() for k, v in source.sparring.student.state_dict().items()}
    rows = [source.step(i).metrics for i in range(12)]
    moved = source.sparring.student.state_dict()
    assert not all(torch.equal(weights[k], moved[k]) for k in weights)
    assert any("adversarial" in row and float(row["adversarial"]) != 0 for row in rows)
    assert source.sparring.teacher is not source.sparring.student


@pytest.mark.parametrize("name", BASELINES)
def test_the_teacher_is_left_as_it_was(name: str, context: Make, teacher: ResNetTeacher) -> None:
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    source = SOURCES[name](context(name))
    for i in range(5):
        source.step(i)
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


@pytest.mark.parametrize("name", ["deep_inversion", "dfq", "cmi", "fast"])
def test_a_teacher_without_batch_norm_needs_the_terms_off(
    name: str, context: Make, teacher: ResNetTeacher
) -> None:
    folded = Folded(teacher)
    with pytest.raises(TeacherError, match="no BatchNorm"):
        SOURCES[name](context(name, model=folded))
    keys = batch_norm_keys(context(name).config, name)
    assert f"bank.baselines.{name}.batch_norm" in keys
    off = context(name, model=folded, **{key.rpartition(".")[2]: 0 for key in keys})
    assert batch_norm_keys(off.config, name) == []
    source = SOURCES[name](off)
    for i in range(9):
        assert "batch_norm" not in source.step(i).metrics


def test_a_config_without_baselines_reads_as_before() -> None:
    plain = BankConfig(sources={"inversion": 1})
    assert "baselines" not in plain.model_dump(mode="json")
    used = BankConfig.model_validate(
        {"sources": {"cmi": 1, "zskt": 0}, "baselines": {"cmi": {"iterations": 7}}}
    )
    dumped = used.model_dump(mode="json")
    assert list(dumped["baselines"]) == ["cmi"]
    assert dumped["baselines"]["cmi"]["iterations"] == 7
    kept = BankConfig.model_validate({"baselines": {"fast": {"iterations": 2}}})
    for config in (plain, used, kept):
        assert BankConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="extra"):
        BankConfig.model_validate({"baselines": {"cmi": {"iteration": 3}}})


def test_a_warning_names_keys_that_exist() -> None:
    health = {"requested": 0.1, "batch_norm_error": 2.0, "class_share": [0.2] * 5}
    text = " ".join(warnings({"cmi": health}))
    assert "bank.inversion.steps" in text
    assert "bank.baselines.cmi.batch_norm" in text
