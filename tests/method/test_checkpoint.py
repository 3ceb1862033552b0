import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frami_edge.checkpoint import Card, TrainedOn, load_checkpoint, save_checkpoint
from frami_edge.errors import CheckpointError

KEY = "frami.card"
LABELS = ("a", "b", "c", "d", "e")
KNOWN = TrainedOn(data="esc10", test_fold="5", clips=320, sha256="0" * 64)


@pytest.fixture
def file(tmp_path, teacher, spec):
    arch, mel = teacher.arch.model_dump(mode="json"), spec.to_dict()
    card = Card(kind="teacher", arch=arch, mel=mel, labels=LABELS, trained_on=KNOWN)
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, card)
    return tmp_path / "teacher.safetensors"


def refusal(path, **kwargs):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **kwargs)
    assert caught.value.fix
    assert path.name in caught.value.message
    return caught.value.message


def rewrite(path, change=None, **card):
    with safe_open(path, framework="pt") as opened:
        fields = json.loads(opened.metadata()[KEY])
    tensors = load_file(path)
    if change:
        change(tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(fields | card)})


def test_what_was_saved_comes_back(file, teacher, spec):
    loaded = load_checkpoint(file, "teacher")
    x = torch.randn(2, 1, 16, 30)
    assert torch.equal(loaded.model(x), teacher(x))
    assert loaded.mel == spec
    assert loaded.card.labels == LABELS
    assert loaded.card.real_clips == loaded.card.trained_on
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_collapsed_student_comes_back(tmp_path, student, spec):
    arch, mel = student.arch.model_dump(mode="json"), spec.to_dict()
    card = Card(kind="student", arch=arch, mel=mel, labels=LABELS, teacher_trained_on=KNOWN)
    shipped = student.collapse()
    save_checkpoint(tmp_path / "s.safetensors", shipped, card)
    loaded = load_checkpoint(tmp_path / "s.safetensors")
    x = torch.randn(2, 1, 16, 30)
    assert torch.equal(loaded.model(x), shipped(x))
    assert loaded.card.real_clips == KNOWN


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ({"schema_version": 99}, "another version"),
        ({"labels": ["only one"]}, "damaged"),
        ({"kind": "oracle"}, "damaged"),
        ({"labels": ["a", "b", "c"]}, "do not fit"),
        ({"mel": {"n_mels": -1}}, "do not fit"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(file, card, word):
    rewrite(file, **card)
    assert word in refusal(file)


def test_a_file_that_is_no_whole_checkpoint_of_the_kind_is_refused(file):
    assert "no checkpoint" in refusal(file.with_name("nowhere.safetensors"))
    assert "holds a teacher, and a student is needed" in refusal(file, kind="student")
    rewrite(file, lambda tensors: tensors["fc.weight"].fill_(float("nan")))
    assert "not finite" in refusal(file)
    rewrite(file, lambda tensors: tensors.pop("fc.weight"))
    assert "do not fit" in refusal(file)
    data = file.read_bytes()
    for damaged in (b"", data[:-100], data[:8] + b"\xff" * 32 + data[40:]):
        file.write_bytes(damaged)
        assert "not a whole safetensors file" in refusal(file)
    save_file({"w": torch.zeros(3)}, file)
    assert "no card" in refusal(file)
