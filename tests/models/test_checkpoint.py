from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from frami_edge.checkpoint import Card, TrainedOn, load_checkpoint, save_checkpoint
from frami_edge.errors import CheckpointError
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge_runtime.melspec import MelSpec

KEY = "frami.card"
LABELS = ("a", "b", "c", "d", "e")


@pytest.fixture
def file(tmp_path: Path, teacher: ResNetTeacher, spec: MelSpec) -> Path:
    card = Card(
        kind="teacher",
        arch=teacher.arch.model_dump(mode="json"),
        mel=spec.to_dict(),
        labels=LABELS,
        trained_on=TrainedOn(data="esc10", test_fold="5", clips=320, sha256="0" * 64),
        metrics={"accuracy": 0.9},
    )
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, card)
    return tmp_path / "teacher.safetensors"


def refusal(path: Path, **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **kwargs)
    assert caught.value.fix
    assert path.name in caught.value.message
    return caught.value.message


def rewrite(path: Path, change: Any = None, **card: Any) -> None:
    """Save the file again with a changed card or changed tensors."""
    from safetensors import safe_open

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
    heard = TrainedOn(data="esc10", test_fold="5", clips=320, sha256="0" * 64)
    card = Card(
        kind="student",
        arch=student.arch.model_dump(mode="json"),
        mel=spec.to_dict(),
        labels=LABELS,
        teacher_trained_on=heard,
    )
    shipped = student.collapse()
    save_checkpoint(tmp_path / "s.safetensors", shipped, card)
    loaded = load_checkpoint(tmp_path / "s.safetensors")
    x = torch.randn(2, 1, 16, 30)
    assert torch.equal(loaded.model(x), shipped(x))
    assert loaded.card.real_clips == heard


def test_the_hash_is_the_files(file: Path, teacher: ResNetTeacher) -> None:
    loaded = load_checkpoint(file)
    again = save_checkpoint(file.with_name("again.safetensors"), teacher, loaded.card)
    assert again == loaded.sha256


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no checkpoint" in refusal(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    assert "not a whole safetensors file" in refusal(file)


def test_a_corrupted_header_is_refused(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(data)
    assert "not a whole safetensors file" in refusal(file)


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_pickle_is_never_run(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Trap()))
    refusal(path)
    torch.save({"weight": torch.zeros(3)}, path)
    refusal(path)
    assert not Path("pwned").exists()


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    assert "no card" in refusal(tmp_path / "foreign.safetensors")


def test_the_other_kind_is_refused(file: Path) -> None:
    assert "holds a teacher, and a student is needed" in refusal(file, kind="student")


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ({"schema_version": 99}, "another version"),
        ({"labels": ["only one"]}, "damaged"),
        ({"surprise": 1}, "damaged"),
        ({"kind": "oracle"}, "damaged"),
        ({"labels": ["a", "b", "c"]}, "do not fit"),
        ({"arch": {"channels": [8, 12]}}, "do not fit"),
        ({"arch": {"layers": 3}}, "do not fit"),
        ({"mel": {"n_mels": -1}}, "do not fit"),
        ({"mel": {"bands": 16}}, "do not fit"),
    ],
)
def test_a_card_that_lies_is_refused(file: Path, card: dict[str, Any], word: str) -> None:
    rewrite(file, **card)
    assert word in refusal(file)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000])
def test_a_card_that_is_no_object_is_refused(file: Path, text: str) -> None:
    save_file(load_file(file), file, metadata={KEY: text})
    assert "damaged" in refusal(file)


def test_weights_that_are_not_finite_are_refused(file: Path) -> None:
    rewrite(file, lambda tensors: tensors["fc.weight"].fill_(float("nan")))
    assert "not finite" in refusal(file)


def test_missing_and_unknown_weights_are_refused(file: Path) -> None:
    rewrite(file, lambda tensors: tensors.pop("fc.weight"))
    assert "do not fit" in refusal(file)
