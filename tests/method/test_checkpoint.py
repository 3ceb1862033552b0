from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frami_edge.checkpoint import Card, TrainedOn, load_checkpoint, save_checkpoint
from frami_edge.errors import CheckpointError
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge_runtime.melspec import MelSpec

KEY = "frami.card"
LABELS = ("a", "b", "c", "d", "e")
KNOWN = TrainedOn(data="esc10", test_fold="5", clips=320, sha256="0" * 64)


@pytest.fixture
def file(tmp_path: Path, teacher: ResNetTeacher, spec: MelSpec) -> Path:
    arch, mel = teacher.arch.model_dump(mode="json"), spec.to_dict()
    card = Card(kind="teacher", arch=arch, mel=mel, labels=LABELS, trained_on=KNOWN)
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, card)
    return tmp_path / "teacher.safetensors"


def refusal(path: Path, **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **kwargs)
    assert caught.value.fix
    assert path.name in caught.value.message
    return caught.value.message


def rewrite(path: Path, change: Any = None, **card: Any) -> None:
    with safe_open(path, framework="pt") as opened:
        fields = json.loads(opened.metadata()[KEY])
    tensors = load_file(path)
    if change:
        change(tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(fields | card)})


def test_what_was_saved_comes_back(file: Path, teacher: ResNetTeacher, spec: MelSpec) -> None:
    loaded = load_checkpoint(file, "teacher")
    x = torch.randn(2, 1, 16, 30)
    assert torch.equal(loaded.model(x), teacher(x))
    assert loaded.mel == spec
    assert loaded.card.labels == LABELS
    assert loaded.card.real_clips == loaded.card.trained_on
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_collapsed_student_comes_back(tmp_path: Path, student: StudentNet, spec: MelSpec) -> None:
    arch, mel = student.arch.model_dump(mode="json"), spec.to_dict()
    card = Card(kind="student", arch=arch, mel=mel, labels=LABELS, teacher_trained_on=KNOWN)
    shipped = student.collapse()
    save_checkpoint(tmp_path / "s.safetensors", shipped, card)
    loaded = load_checkpoint(tmp_path / "s.safetensors")
    x = torch.randn(2, 1, 16, 30)
    assert torch.equal(loaded.model(x), shipped(x))
    assert loaded.card.real_clips == KNOWN


@pytest.mark.parametrize("keep", [0, 100, 0.99])
def test_a_damaged_file_is_refused(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    assert "not a whole safetensors file" in refusal(file)
    file.write_bytes(data[:8] + b"\xff" * 32 + data[40:])
    assert "not a whole safetensors file" in refusal(file)


def test_a_file_of_something_else_is_refused(file: Path) -> None:
    assert "no checkpoint" in refusal(file.with_name("nowhere.safetensors"))
    assert "holds a teacher, and a student is needed" in refusal(file, kind="student")
    save_file({"w": torch.zeros(3)}, file)
    assert "no card" in refusal(file)


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ({"schema_version": 99}, "another version"),
        ({"labels": ["only one"]}, "damaged"),
        ({"kind": "oracle"}, "damaged"),
        ({"labels": ["a", "b", "c"]}, "do not fit"),
        ({"arch": {"channels": [8, 12]}}, "do not fit"),
        ({"mel": {"n_mels": -1}}, "do not fit"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(file: Path, card: dict[str, Any], word: str) -> None:
    rewrite(file, **card)
    assert word in refusal(file)


def test_damaged_weights_are_refused(file: Path) -> None:
    rewrite(file, lambda tensors: tensors["fc.weight"].fill_(float("nan")))
    assert "not finite" in refusal(file)
    rewrite(file, lambda tensors: tensors.pop("fc.weight"))
    assert "do not fit" in refusal(file)
