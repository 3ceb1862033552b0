"""Sizes of a distillation: by the teacher, and by a budget of time."""

import pytest
import torch

import frami_edge as fe
from frami_edge.checkpoint import Card, Teacher
from frami_edge.config import BankConfig, JourneyConfig, TeacherArch, frames_in
from frami_edge.errors import ConfigError
from frami_edge.models import ResNetTeacher
from frami_edge.runs import read_manifest
from frami_edge.sizing import doubt, fitted, parse_budget, scaled_keys, sized_for

CPU = {"device": "cpu", "precision": "fp32"}


def teacher_of(spec, classes):
    torch.manual_seed(0)
    arch = TeacherArch(channels=(4, 8), blocks=1)
    model = ResNetTeacher(arch, spec.n_mels, classes).eval().requires_grad_(False)
    labels = tuple(f"class {k}" for k in range(classes))
    card = Card(kind="teacher", arch=arch.model_dump(), mel=spec.to_dict(), labels=labels)
    return Teacher(model, card, spec, "0" * 64)


def small(**distill):
    learned = {"steps": 8, "burn_in": 2, "batch_size": 8}
    fields = {
        "student": {"channels": [8, 8], "time_kernels": [3, 3], "out_channels": 8},
        "bank": {
            "clip_s": 0.24, "procedural_clips": 20,
            "inversion": learned | {"latent": 8, "width": 8}, "translator": learned,
        },
        "distill": {"steps": 10, "batch_size": 8, "crop_min_s": 0.16, "crop_max_s": 0.24} | distill,
    }  # fmt: skip
    return JourneyConfig.model_validate(fields)


def test_more_classes_get_more_steps_and_longer_hops_the_same_seconds(spec):
    ten, many = sized_for(teacher_of(spec, 10)), sized_for(teacher_of(spec, 35))
    assert ten.distill.steps == 1600
    assert many.distill.steps > 3 * ten.distill.steps
    assert many.bank.inversion.batch_size == 2 * 35
    assert many.bank.procedural_clips > 2 * ten.bank.procedural_clips
    slow = spec.replace(hop_length=2 * spec.hop_length)
    own = sized_for(teacher_of(slow, 10))
    assert own.distill.crop_min_s >= 31 * slow.hop_s, "a crop must fill the student's field"
    assert frames_in(0.96, slow) == frames_in(0.96, spec) / 2
    assert "are few for 35 classes" in doubt(teacher_of(spec, 35), ten)
    assert doubt(teacher_of(spec, 10), ten) == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), ("40", 40), (7, 7)]
)
def test_a_budget_is_a_time(text, seconds):
    assert parse_budget(text) == seconds


def test_a_budget_scales_bank_and_student(spec, cpu):
    teacher, config = teacher_of(spec, 2), small()
    most, line = fitted(teacher, config, cpu, 1e6, mel=spec)
    assert most == {
        "distill.steps": 40, "bank.inversion.steps": 32, "bank.inversion.burn_in": 8,
        "bank.procedural_clips": 80, "bank.translator.steps": 32, "bank.translator.burn_in": 8,
    }  # fmt: skip
    assert "4.00 times" in line
    every = {"refinement": 1, "breeding": 1, "recordings": 1, "cmi": 1}
    other = JourneyConfig(bank=BankConfig(sources=every, recordings="sounds"))
    assert scaled_keys(other, bank=True) == [
        "distill.steps", "bank.refinement.steps", "bank.breeding.steps", "bank.breeding.burn_in",
        "bank.recordings_clips", "bank.inversion.steps", "bank.inversion.burn_in",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="is the least here"):
        fitted(teacher, config, cpu, 1e-4, mel=spec)
    for wrong in ("soon", "0", "-3min"):
        with pytest.raises(ConfigError, match="is not a time"):
            parse_budget(wrong)
    with pytest.raises(ConfigError, match="both decide"):
        fe.distill(teacher, config=config, steps=3, budget="1h", **CPU)


def test_a_resumed_run_keeps_its_numbers(spec, tmp_path):
    teacher, run = teacher_of(spec, 2), tmp_path / "run"

    def stop(progress):
        if (progress.phase, progress.done) == ("distill", 15) and (run / "bank").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fe.distill(teacher, config=small(), budget=1e6, out=run, progress=stop, **CPU)
    student = fe.distill(teacher, config=small(), budget="1s", out=run, resume=True, **CPU)
    assert student.card.metrics["steps"] == 40
    assert read_manifest(run)["resumes"] == 1
    fixed = small(steps=40).model_dump()
    fixed["bank"] |= student.card.recipe["bank"]
    same = fe.distill(teacher, config=JourneyConfig.model_validate(fixed), **CPU)
    assert same.sha256 == student.sha256, "timing must not touch what the seeds decide"
