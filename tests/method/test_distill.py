"""The distillation loop: what it trains, and that a killed run gives the same student."""

import copy
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from frami_edge import distillation
from frami_edge.checkpoint import Teacher
from frami_edge.config import JourneyConfig
from frami_edge.distillation import ClipSampler, TensorSampler, distill, scenes
from frami_edge.errors import ConfigError
from frami_edge.losses import kl_from, logits_loss
from frami_edge.models import StudentNet
from frami_edge.runs import RunFolder
from frami_edge.teachers.selection import select_classes

OWN, REUSED = False, True
VARIANTS = {
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
Run = Callable[..., StudentNet]


class Noise:
    """Samples smooth noise."""

    def batch(self, n, generator):
        return torch.randn(n, 1, 16, 24, generator=generator).cumsum(3) / 3


def journey(seed=0, channels=16, **changes):
    recipe = {
        "steps": 6, "batch_size": 8, "crop_min_s": 0.12, "crop_max_s": 0.2, "mixup": 0.5,
        "mask_bands": 3, "mask_frames": 3, "checkpoint_steps": 2,
    }  # fmt: skip
    arch = {"channels": (8, 8, 8), "time_kernels": (3, 3, 3), "out_channels": channels}
    fields = {"bank": {"clip_s": 0.24}, "student": arch, "distill": recipe | changes, "seed": seed}
    return JourneyConfig.model_validate(fields)


@pytest.fixture
def run(opened, cpu):
    """`run(steps=3, rows=[])`: a student; the metrics of every step are appended to `rows`."""

    def distilled(seed=0, channels=16, rows=None, folder=None, **changes):
        def progress(p):
            assert (p.phase, p.total) == ("distill", changes.get("steps", 6))
            if rows is not None:
                rows.append(dict(p.metrics))

        config = journey(seed, channels, **changes)
        return distill(opened, Noise(), config, cpu, run=folder, progress=progress)

    return distilled


def equal(a, b):
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


class Killed(BaseException):
    """What a signal would do."""


@pytest.mark.parametrize(("reuse", "steps_done"), [(True, 1), (True, 5), (False, 3)])
def test_a_killed_run_continues_to_the_same_student(run, tmp_path, reuse, steps_done, monkeypatch):
    rows = []
    whole = run(reuse_head=reuse, rows=rows)
    real, calls = Noise.batch, [0]

    def batch(self, n, generator):
        calls[0] += n == 8
        if calls[0] > steps_done:
            raise Killed
        return real(self, n, generator)

    with RunFolder.create(tmp_path / "run", command="distill", config={}) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(Noise, "batch", batch)
            with pytest.raises(Killed):
                run(reuse_head=reuse, folder=folder)
        torch.manual_seed(99)  # the global stream must not matter
        again = []
        resumed = run(reuse_head=reuse, folder=folder, rows=again)
        assert again == rows[steps_done // 2 * 2 :]
        logged = folder.metrics()
    assert equal(resumed, whole)
    assert [r["step"] for r in logged] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in logged] == [r["loss"] for r in rows]


def test_a_batch_is_learned_from_again(run, tmp_path, monkeypatch):
    drawn = []
    real = Noise.batch

    def batch(self, n, generator):
        drawn.append(n)
        if len(drawn) == stop:
            raise Killed
        return real(self, n, generator)

    monkeypatch.setattr(Noise, "batch", batch)
    stop, rows = 99, list[dict[str, float]]()
    whole = run(repeats=3, steps=8, rows=rows)
    assert drawn.count(8) == 3, "steps 0, 3 and 6 take new clips"
    once = run(steps=8)
    assert not equal(whole, once)
    with RunFolder.create(tmp_path / "run", command="distill", config={}) as folder:
        drawn.clear()
        stop = len([n for n in drawn if n != 8]) + 4  # within the third new batch
        with pytest.raises(Killed):
            run(repeats=3, steps=8, folder=folder)
        stop = 99
        assert equal(run(repeats=3, steps=8, folder=folder), whole)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_its_terms_alone_and_moves_towards_the_teacher(name, run, opened):
    weights, reuse, terms = VARIANTS[name]
    x = Noise().batch(128, torch.Generator().manual_seed(7))
    target = opened(x)

    def distance(student):
        student.train()  # statistics of a batch: the averages start far from any
        with torch.no_grad():
            return float(logits_loss(student(x), target, 1.0))

    recipe = {"batch_size": 16, "crop_min_s": 0.16, "crop_max_s": 0.24, "mixup": 0}
    recipe |= {"mask_bands": 0, "mask_frames": 0, "reuse_head": reuse} | weights
    rows = []
    trained = run(steps=60, rows=rows, **recipe)
    assert set(rows[0]) == {"loss", "agreement"} | terms
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][t] for t in terms), rel=1e-5)
    assert isinstance(trained.head, torch.nn.Linear), "the head must be one matrix"
    assert not trained.training
    assert not any(p.requires_grad for p in trained.parameters())
    assert distance(trained) < 0.8 * distance(run(steps=1, learning_rate=1e-9, **recipe))


def test_the_teacher_stays_unchanged(run, opened):
    before = copy.deepcopy(opened.model.state_dict())
    run(learning_rate=0.1)
    after = opened.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not opened.model.training


def test_a_head_that_nothing_trains_is_refused(run, opened, monkeypatch):
    with pytest.raises(ValidationError, match="needs reuse_head"):
        run(logits=0, reuse_head=False)
    with pytest.raises(ConfigError, match="No term would train the student's head"):
        run(channels=8, logits=0, after_pooling=0)
    monkeypatch.setattr(type(opened.model), "head", None)  # as where the map is not affine
    with pytest.raises(ConfigError, match="No term would train"):
        run(logits=0)


def test_a_scene_is_clips_of_the_bank_one_after_the_other(run):
    rng = torch.Generator().manual_seed(0)
    bank = TensorSampler(torch.arange(9.0).reshape(9, 1, 1, 1).repeat(1, 1, 2, 3))
    made = scenes(bank, 40, 3, rng)
    assert made.shape == (40, 1, 2, 9)
    parts_N3 = made[:, 0, 0, ::3]
    assert torch.equal(made[:, 0, 1], parts_N3.repeat_interleave(3, dim=1))
    assert len(set(map(tuple, parts_N3.tolist()))) > 30, "the clips of a scene are independent"
    audio = TensorSampler(torch.randn(9, 50))
    assert scenes(audio, 4, 2, rng).shape == (4, 100)
    alone, same = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(scenes(bank, 8, 1, alone), bank.batch(8, same))
    with pytest.raises(ValidationError, match=r"exceeds distill.join 2 x bank.clip_s"):
        run(join=2, crop_max_s=3.0)
    run(join=2, crop_min_s=0.3, crop_max_s=0.4)


def test_samplers_of_controls():
    rng = torch.Generator().manual_seed(0)
    drawn = TensorSampler(torch.arange(3.0)[:, None, None, None]).batch(50, rng)
    assert drawn.shape == (50, 1, 1, 1)
    assert set(drawn.flatten().tolist()) == {0, 1, 2}
    clips = [torch.arange(4.0).expand(2, 4), torch.arange(100, 120.0).expand(2, 20)]
    x = ClipSampler(clips, 8).batch(30, rng)
    assert x.shape == (30, 1, 2, 8)
    short = x[x[:, 0, 0, 0] < 100]
    assert torch.equal(short, torch.tensor([0.0, 1, 2, 3] * 2).expand_as(short))
    assert (x[x[:, 0, 0, 0] >= 100].diff(dim=3) == 1).all()


def test_detectors_are_distilled(opened, cpu):
    card = opened.card.model_copy(update={"output": "sigmoid"})
    tagger = Teacher(opened.model, card, opened.mel, opened.sha256)
    x = Noise().batch(128, torch.Generator().manual_seed(7))
    far = [kl_from(tagger(x), train(tagger, cpu, steps)(x), "sigmoid").mean() for steps in (1, 60)]
    assert far[1] < 0.5 * far[0]


def train(teacher, cpu, steps):
    config = journey(steps=steps, batch_size=16, mixup=0, mask_bands=0, mask_frames=0)
    return distill(teacher, Noise(), config, cpu)


def test_a_selection_also_learns_the_classes_that_are_not_kept(opened, cpu):
    selected, rows = select_classes(opened, ["a", "c"]), []

    def progress(p):
        rows.append(dict(p.metrics))

    student = distill(selected, Noise(), journey(roll=True), cpu, progress=progress)
    assert "whole" in rows[0]
    assert rows[0]["loss"] == pytest.approx(
        sum(rows[0][t] for t in rows[0] if t in TERMS), rel=1e-5
    )
    assert not [name for name, _ in student.named_parameters() if "whole" in name]


def test_a_large_batch_is_heard_in_parts(opened, cpu, monkeypatch):
    selected, losses = select_classes(opened, ["a", "c"]), []

    def progress(p):
        losses.append(p.metrics["loss"])

    config = journey(steps=3)
    distill(selected, Noise(), config, cpu, progress=progress)
    monkeypatch.setattr(distillation, "_AT_ONCE", 1000)
    distill(selected, Noise(), config, cpu, progress=progress)
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-4)


TERMS = ("logits", "before", "after", "whole")
