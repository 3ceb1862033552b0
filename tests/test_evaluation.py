"""Scores by hand arithmetic, and what may be scored on what."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from kit import LABELS, SPEC, tones
from torch import nn

from frami_edge.api import evaluate
from frami_edge.checkpoint import Card, TrainedOn, save_checkpoint
from frami_edge.config import StudentArch, TeacherArch
from frami_edge.data.clips import Clip, SoundSet
from frami_edge.data.sets import load_set
from frami_edge.data.store import Features, FeatureStore
from frami_edge.errors import CheckpointError, DataError
from frami_edge.evaluation import (
    average_precision,
    check_held_out,
    check_teacher,
    d_prime,
    label_targets,
    predict,
    read_label_map,
    score,
    training_clips,
)
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge.opening import open_model


def test_average_precision_and_d_prime_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    positive = torch.tensor([True, False, True, False, False])
    assert average_precision(scores, positive) == pytest.approx((1 / 1 + 2 / 3) / 2)
    # Five of the six pairs of a positive and another clip are in order; d' by the normal table.
    assert d_prime(scores, positive) == pytest.approx(2**0.5 * 0.96742, abs=1e-4)
    ties = torch.zeros(5)
    assert average_precision(ties, positive) == pytest.approx(2 / 5)
    assert d_prime(ties, positive) == pytest.approx(0, abs=1e-12)
    assert np.isnan(average_precision(scores, ~positive & positive))
    assert np.isfinite(d_prime(scores, scores > 0.65))


def test_detectors_are_scored_on_clips_of_no_class_too():
    logits = torch.tensor([[3.0, -2.0], [-1.0, 2.0], [1.0, -3.0], [-4.0, -5.0]])
    labels = torch.tensor([0, 1, -1, -1])
    found = score(logits, labels, logits, output="sigmoid")
    assert found.accuracy == found.agreement == 1
    assert found.kl == pytest.approx(0)
    assert found.detectors[0] == [1.0, 1.0]
    assert found.mean_average_precision == 1
    assert found.confusion_KK.sum() == 2
    theirs = logits.clone()
    theirs[2, 0] = -1.0  # the teacher does not hear class 0 here
    against = score(logits, labels, theirs, output="sigmoid")
    assert against.agreement == 0.75
    assert (found.silent, against.silent) == (0.25, 0.5)
    p, q = torch.sigmoid(torch.tensor([-1.0, 1.0])).double().tolist()
    by_hand = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert against.kl == pytest.approx(by_hand / 4, abs=1e-6)


def test_classes_of_a_set_meet_labels_of_the_model_by_name_or_by_map(tmp_path):
    labels = ("Baby cry, infant cry", "Dog")
    sounds = set_of(("crying_baby", "dog", "rain"), "tiny")
    by_name = label_targets(labels, sounds, selection=True)
    assert by_name.tolist() == [[False, False], [False, True], [False, False]]
    (tmp_path / "map.csv").write_text('crying_baby,"Baby cry, infant cry"\n', "utf-8-sig")
    mapped = label_targets(
        labels, sounds, selection=True, label_map=read_label_map(tmp_path / "map.csv")
    )
    assert mapped.tolist() == [[True, False], [False, True], [False, False]]
    with_other = label_targets(("dog", "other"), sounds, selection=True)
    assert with_other.int().argmax(1).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="No class of tiny"):
        label_targets(("cat", "cow"), sounds, selection=True)
    with pytest.raises(DataError, match="names 'cat'"):
        label_targets(labels, sounds, selection=True, label_map={"dog": ["cat"]})
    (tmp_path / "map.csv").write_text("dog\n")
    with pytest.raises(DataError, match="Line 1"):
        read_label_map(tmp_path / "map.csv")


def test_predictions_come_in_the_order_of_the_clips():
    class Mean(nn.Module):
        """Logits that depend on a clip, its true length and its batch."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, lengths):
            assert len(x) <= 3
            return torch.stack([x[:, 0, 0, 0] * self.weight, lengths.float()], dim=1)

    lengths = [5, 2, 9, 2, 30, 7, 1]
    mels = [torch.full((3, n), float(i)) for i, n in enumerate(lengths)]
    logits = predict(Mean(), mels, batch_size=3)
    assert logits[:, 0].tolist() == list(range(7))
    assert logits[:, 1].tolist() == lengths


def test_the_score_counts():
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [2, 0, 0], [0, 2, 0]])
    teacher = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    result = score(logits, torch.tensor([0, 1, 1, 1]), teacher)
    assert (result.accuracy, result.agreement, result.clips) == (0.75, 0.5, 4)
    assert result.confusion_KK.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert result.per_class() == [1.0, pytest.approx(2 / 3), None]
    p, q = teacher.log_softmax(1), logits.log_softmax(1)
    assert result.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()))
    alone = score(logits, torch.tensor([0, 1, 1, 1]))
    assert (alone.agreement, alone.kl) == (None, None)


def set_of(labels=("a", "b"), name="esc10"):
    return SoundSet(name, labels, (), ("1", "2"), "", "", Path())


def trained_on(data, fold):
    return TrainedOn(data=data, test_fold=fold, clips=1, sha256="0" * 64)


def test_a_set_of_the_models_classes_is_scored_by_name():
    """In any order and form of Unicode, and where a class is missing; a class more is refused."""
    labels = ("c", unicodedata.normalize("NFD", "é"), "a")
    sounds = set_of(("a", unicodedata.normalize("NFC", "é")))
    assert label_targets(labels, sounds, selection=False).int().argmax(1).tolist() == [2, 1]
    with pytest.raises(DataError, match="has 2 classes, the model 2; unknown to the model: b"):
        label_targets(("a", "c"), set_of(), selection=False)


@pytest.mark.parametrize(
    ("data", "fold", "refused"),
    [
        ("esc10", "1", False),
        ("esc10", "2", True),
        ("esc50", "1", True),  # the same recordings, whatever the fold is called
        ("fsdd", "1", False),
    ],
)
def test_training_clips_are_never_scored(data, fold, refused):
    check_held_out(None, set_of(), "1")
    if refused:
        with pytest.raises(DataError, match="mean nothing"):
            check_held_out(trained_on(data, fold), set_of(), "1")
    else:
        check_held_out(trained_on(data, fold), set_of(), "1")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return tones(tmp_path_factory.mktemp("sounds"), train=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory, sounds):
    """A teacher, another one, and a student of the first."""
    folder = tmp_path_factory.mktemp("models")
    train = FeatureStore(SPEC, folder / "cache").load(load_set(f"folder:{sounds}").split("test")[0])
    update = {"audio": TrainedOn.pack(train.audio)}
    known = trained_on(f"folder:{sounds.name}", "test").model_copy(update=update)
    common = {"mel": SPEC.to_dict(), "labels": LABELS}
    arch = StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=8)
    paths = {name: folder / f"{name}.safetensors" for name in ("teacher", "other", "student")}
    hashes = []
    for seed, name in enumerate(("teacher", "other")):
        torch.manual_seed(seed)
        teacher = ResNetTeacher(TeacherArch(channels=(8, 8), blocks=1), 16, 2).eval()
        card = Card(kind="teacher", arch=teacher.arch.model_dump(), trained_on=known, **common)
        hashes.append(save_checkpoint(paths[name], teacher, card))
    student = StudentNet(arch, 16, 2)
    with torch.no_grad():
        student(torch.randn(40, 1, 16, 40))
    card = Card(
        kind="student", arch=arch.model_dump(), teacher_sha256=hashes[0],
        teacher_trained_on=known, **common,
    )  # fmt: skip
    save_checkpoint(paths["student"], student.eval(), card)
    return paths


def copied(sounds, to, sides, suffix=".flac", change=1.0):
    """Clips of these sides as CLASS/SIDE-N.flac, times `change`."""
    for path in sorted(sounds.rglob("*.wav")):
        if path.parts[-3] in sides:
            samples, rate = soundfile.read(path)
            copy = to / path.parts[-2] / f"{path.parts[-3]}-{path.stem}{suffix}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(copy, change * samples, rate)
    return f"folder:{to}"


def test_training_clips_are_known_by_their_audio(models, sounds, tmp_path, monkeypatch):
    """Under another name, in another layout and container; a set of the same name is another."""
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    student = models["student"]
    with pytest.raises(DataError, match="trained on all 8 clips: fold all of folder:copy"):
        evaluate(student, data=copied(sounds, tmp_path / "copy", ["train"]), fold="all")
    mixed = evaluate(student, data=copied(sounds, tmp_path / "both", ["train", "test"]), fold="all")
    assert (mixed.score.clips, mixed.heard) == (8, 8)
    assert mixed.to_dict()["training_clips"] == 8
    assert "8 of 16 clips have the same audio" in " ".join(str(mixed).split())
    official = evaluate(student, data=f"folder:{sounds}")
    assert (official.score.clips, official.heard, official.notes) == (8, 0, ())
    same_name = copied(sounds, tmp_path / sounds.name, ["train"], change=0.5)
    assert evaluate(student, data=same_name, fold="all").score.clips == 8


@pytest.mark.parametrize(("fold", "kept"), [("1", True), ("2", False)])
def test_an_official_fold_keeps_its_duplicates(fold, kept, caplog):
    """They are counted; from any other fold they are left out; old cards hold no hashes."""
    audio = [f"{i:016x}" for i in range(4)]
    clips = [Clip(Path(f"{i}.wav"), 0, fold) for i in range(4)]
    features = Features(
        [torch.zeros(1, 1)] * 4, torch.zeros(4).long(), clips, audio, [], "", SPEC, audio
    )
    known = TrainedOn(
        data="esc10", test_fold="1", clips=1, sha256="0" * 64, audio=TrainedOn.pack(audio[:1])
    )
    found = training_clips(features, known, set_of(), fold)
    assert (found.count, found.kept) == (1, kept)
    assert len(found.left_out(features)) == (4 if kept else 3)
    assert "1 of 4 clips" in found.note
    old = known.model_copy(update={"audio": "", "data": "folder:other"})
    found = training_clips(features, old, set_of(), fold)
    assert (found.count, caplog.messages[1:]) == (0, [found.note])
    assert "holds no hashes" in found.note


def test_the_teacher_must_be_the_students_own(models):
    opened = {name: open_model(path) for name, path in models.items()}
    check_teacher(opened["student"], opened["teacher"])
    with pytest.raises(CheckpointError, match="is not a teacher"):
        check_teacher(opened["student"], opened["student"])
    with pytest.raises(CheckpointError, match="another teacher"):
        check_teacher(opened["student"], opened["other"])
