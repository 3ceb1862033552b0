"""The verdict on a student: what makes it ready, what is named, and what must not enter."""

import pytest
import torch

from frami_edge.checkpoint import Teacher
from frami_edge.config import BankConfig, JourneyConfig
from frami_edge.filling import invert
from frami_edge.readiness import judge

SOURCES = {"inversion": 1.0, "procedural": 1.0, "translator": 1.0, "smooth_noise": 1.0}
FOUND = {k: [0.2] * 5 for k in ("hit_rate_per_class", "class_share")}


@pytest.fixture
def bank(opened, cpu, bank_config, tmp_path):
    return invert(opened, bank_config(sources=SOURCES), tmp_path / "bank", cpu, 0)


@pytest.fixture
def verdict_on(opened, cpu, bank):
    config = JourneyConfig(
        bank=BankConfig(clip_s=0.16), distill={"crop_min_s": 0.1, "crop_max_s": 0.16}
    )

    def verdict(student, output="softmax"):
        card = opened.card.model_copy(update={"output": output})
        teacher = Teacher(opened.model, card, opened.mel, opened.sha256)
        return judge(teacher, student, config, cpu, opened.mel, bank)

    return verdict


def all_sources(bank, missing=None):
    """Health of a bank that has every class, or all but one."""
    found = {name: list(values) for name, values in FOUND.items()}
    if missing is not None:
        for values in found.values():
            values[missing] = 0.0
    bank.index = bank.index.model_copy(update={"health": dict.fromkeys(SOURCES, found)})


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_copy_of_the_teacher_is_ready(opened, bank, verdict_on, output):
    all_sources(bank)
    verdict = verdict_on(opened.model, output)
    assert verdict
    assert set(verdict.agreement.values()) == {1.0}
    assert set(verdict.held_out) == set(SOURCES) - {"smooth_noise"}
    assert verdict.to_dict()["ready"]


def test_another_network_is_not_and_every_reason_is_named(student, bank, verdict_on):
    all_sources(bank, missing=3)
    verdict = verdict_on(student)
    assert not verdict
    text = str(verdict)
    assert text.startswith("Not ready. Its agreement with the teacher, averaged over classes, is ")
    assert "(85 % is the least)" in text
    assert "The bank lacks d." in text
    assert verdict.requested == {"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.0, "e": 0.2}


def test_a_class_that_the_student_never_gives_is_named(opened, bank, verdict_on):
    """The mean over classes hides it."""
    all_sources(bank)
    teacher = opened.model

    def deaf(x):
        z_BK = teacher(x)
        z_BK[:, 1] = -99.0
        return z_BK

    verdict = verdict_on(deaf)
    assert verdict.by_class["b"] == 0
    assert "The agreement on b is below 50 %." in verdict.reasons


def test_clips_that_the_teacher_is_sure_of_count_more(opened, bank, verdict_on):
    """Two students that differ from their teacher on every second clip."""
    all_sources(bank)

    def differing(where):
        def student(x):
            z_BK = opened.model(x)
            first, second = z_BK.softmax(1).topk(2).values.T
            apart_B = where(first - second, (first - second).median())
            z_BK[apart_B] = z_BK[apart_B].roll(1, dims=1)
            return z_BK

        return student

    sure, torn = (verdict_on(differing(where)) for where in (torch.ge, torch.lt))
    assert sure.mean < 0.5 < torn.mean
    assert all(sure.by_class[k] < share for k, share in torn.by_class.items() if share is not None)


def test_detectors_that_nothing_triggers_are_judged_at_their_boundary(
    opened, student, bank, verdict_on
):
    all_sources(bank)
    assert opened.model.head is not None
    with torch.no_grad():
        opened.model.head.bias.fill_(-99)

    def silent(x):
        return student(x) - 999

    verdict = verdict_on(opened.model, "sigmoid")
    assert set(verdict.agreement.values()) == {None}
    assert verdict.mean == 1
    assert verdict_on(silent, "sigmoid").mean == 0

    def rare(x):  # four of the procedural clips, one of each other source: too few for a share
        z_BK = opened.model(x)
        z_BK[0] = 99
        return z_BK

    assert set(verdict_on(rare, "sigmoid").agreement.values()) == {None}


def test_held_out_clips_are_in_no_shard(bank):
    for source in ("inversion", "translator"):
        kept = bank.held_out(source)
        assert len(kept) == 80
        trained = bank.read(source).mels_N1MT.flatten(1)
        assert torch.cdist(kept.flatten(1), trained).min() > 0.1
    assert bank.held_out("procedural") is None


def test_real_audio_does_not_enter(opened, bank, verdict_on):
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
