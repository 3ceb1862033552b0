"""Which synthetic clips calibrate int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from frami_edge.bank import Bank, BankIndex, Clips
from frami_edge.checkpoint import Card, Student
from frami_edge.config import StudentArch
from frami_edge.journey import calibration_mels
from frami_edge.models import StudentNet
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=3.0
)
LABELS = ("bell", "dog", "rain")
TEACHER = "c" * 64
RECIPE: dict[str, Any] = {
    "frames": 16,
    "sources": {"inversion": 3, "procedural": 1, "translator": 0},
}


def student(recipe: dict[str, Any] | None = None) -> Student:
    arch = StudentArch(channels=(8, 12), time_kernels=(3, 3), out_channels=12)
    card = Card(
        kind="student",
        arch=arch.model_dump(mode="json"),
        mel=SPEC.to_dict(),
        labels=LABELS,
        teacher_sha256=TEACHER,
        recipe={"bank": recipe} if recipe else {},
    )
    return Student(StudentNet(arch, SPEC.n_mels, len(LABELS)).eval(), card, SPEC, "s" * 64)


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
    found = calibration_mels(student(RECIPE), bank=folder, count=40)
    assert found.clips == {"inversion": 30, "procedural": 10}
    assert found.mels.shape == (40, 1, 16, 16)


def test_without_a_recipe_all_but_the_controls_count(tmp_path: Path) -> None:
    folder = bank(tmp_path / "b", "inversion", "procedural", "white_noise")
    assert calibration_mels(student(), bank=folder, count=40).clips == {
        "inversion": 20,
        "procedural": 20,
    }


def test_a_student_of_noise_is_calibrated_on_noise(tmp_path: Path) -> None:
    folder = bank(tmp_path / "b", "white_noise")
    recipe = RECIPE | {"sources": {"white_noise": 1}}
    assert calibration_mels(student(recipe), bank=folder, count=8).clips == {"white_noise": 8}
