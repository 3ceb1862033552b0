"""Where int8's ranges come from: a bank as the student learned from it, or a small one made now."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from frami_edge.bank import Bank, BankIndex, Clips
from frami_edge.checkpoint import Card, Teacher
from frami_edge.config import StudentArch, TeacherArch
from frami_edge.device import Compute
from frami_edge.errors import TeacherError
from frami_edge.exporting import calibration_mels, small_bank
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=3.0
)
LABELS = ("bell", "dog", "rain")
TEACHER = "c" * 64
CPU = Compute(torch.device("cpu"), torch.float32, False, "a test")
TINY = {"steps": 30, "burn_in": 25, "batch_size": 8}
RECIPE: dict[str, Any] = {
    "frames": 16,
    "sources": {"inversion": 3, "procedural": 1, "translator": 0},
    "inversion": TINY | {"latent": 8, "width": 8, "contrastive_memory": 20},
    "translator": TINY,
}


def loaded(kind: str, recipe: dict[str, Any] | None = None) -> Teacher:
    torch.manual_seed(0)
    if kind == "student":
        arch: Any = StudentArch(channels=(8, 12), time_kernels=(3, 3), out_channels=12)
        model: Any = StudentNet(arch, SPEC.n_mels, len(LABELS))
    else:
        arch = TeacherArch(channels=(8, 12), blocks=1)
        model = ResNetTeacher(arch, SPEC.n_mels, len(LABELS))
        with torch.no_grad():
            model.train()(torch.randn(16, 1, SPEC.n_mels, 40))
    card = Card(
        kind=kind,
        arch=arch.model_dump(mode="json"),
        mel=SPEC.to_dict(),
        labels=LABELS,
        teacher_sha256=TEACHER if kind == "student" else None,
        recipe={"bank": recipe} if recipe else {},
    )
    return Teacher(model.eval().requires_grad_(False), card, SPEC, TEACHER)


def bank(folder: Path, *sources: str) -> Path:
    index = BankIndex(
        mel=SPEC.to_dict(), frames=16, labels=LABELS, teacher_sha256=TEACHER, config={}, seed=0
    )
    made = Bank.create(folder, index)
    for i, source in enumerate(sources):
        mels = torch.full((40, 1, 16, 16), float(i))
        made.append(source, Clips(mels, torch.zeros(40).long(), torch.zeros(40, 3)), 0, 1)
    return folder


def test_sources_count_as_the_student_learned_from_them(tmp_path: Path) -> None:
    folder = bank(tmp_path / "b", "inversion", "procedural", "translator", "white_noise")
    found = calibration_mels(loaded("student", RECIPE), bank=folder, count=40)
    assert found.clips == {"inversion": 30, "procedural": 10}
    assert found.mels.shape == (40, 1, 16, 16)


def test_without_a_recipe_all_but_the_controls_count(tmp_path: Path) -> None:
    folder = bank(tmp_path / "b", "inversion", "procedural", "white_noise")
    assert calibration_mels(loaded("student"), bank=folder, count=40).clips == {
        "inversion": 20,
        "procedural": 20,
    }


def test_a_student_of_noise_is_calibrated_on_noise(tmp_path: Path) -> None:
    folder = bank(tmp_path / "b", "white_noise")
    recipe = RECIPE | {"sources": {"white_noise": 1}}
    assert calibration_mels(loaded("student", recipe), bank=folder, count=8).clips == {
        "white_noise": 8
    }


def test_the_teacher_makes_a_small_bank_of_the_same_recipe() -> None:
    student, teacher = loaded("student", RECIPE), loaded("teacher")
    found = calibration_mels(student, teacher=teacher, count=32, compute=CPU)
    assert found.source == "teacher"
    assert found.clips == {"inversion": 24, "procedural": 8}
    again = calibration_mels(student, teacher=teacher, count=32, compute=CPU)
    assert (found.mels == again.mels).all()


def test_a_small_bank_never_takes_more_steps_than_the_recipe() -> None:
    config = small_bank(RECIPE, 10_000)
    assert (config.inversion.steps, config.inversion.burn_in) == (30, 20)
    assert small_bank(RECIPE, 16).inversion.steps == 22
    assert config.procedural_clips == 10_000


def test_another_teacher_is_refused() -> None:
    other = dataclasses.replace(loaded("teacher"), sha256="d" * 64)
    with pytest.raises(TeacherError, match="distilled from the teacher cccccccccccc"):
        calibration_mels(loaded("student", RECIPE), teacher=other, count=8, compute=CPU)
