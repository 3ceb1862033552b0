from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from frami_edge.checkpoint import Card, TrainedOn, save_checkpoint
from frami_edge.config import StudentArch, TeacherArch
from frami_edge.data.sets import SoundSet, load_set
from frami_edge.data.store import FeatureStore
from frami_edge.errors import CheckpointError, DataError
from frami_edge.evaluation import (
    check_held_out,
    check_labels,
    check_teacher,
    logits_of,
    predict,
    score,
)
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge.opening import open_model
from frami_edge.progress import Progress
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts
from frami_edge_export.options import ExportOptions
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)


class Mean(nn.Module):
    """Logits that tell a clip by its mean, its true length and its batch-mates' padding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.batches: list[int] = []

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.stack([x[:, 0, 0, 0] * self.weight, lengths.float()], dim=1)


def test_predictions_come_in_the_order_of_the_clips() -> None:
    lengths = [5, 2, 9, 2, 30, 7, 1]
    mels = [torch.full((3, n), float(i)) for i, n in enumerate(lengths)]
    model = Mean()
    logits = predict(model, mels, batch_size=3)
    assert logits[:, 0].tolist() == list(range(7))
    assert logits[:, 1].tolist() == lengths
    assert max(model.batches) <= 3
    assert not logits.requires_grad


def test_the_score_counts() -> None:
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


def set_of(labels: tuple[str, ...] = ("a", "b"), name: str = "esc10") -> SoundSet:
    return SoundSet(name, labels, (), ("1", "2"), "", "", Path())


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (("b", "a"), "another order"),
        (("a", "c"), "unknown to the model: b; not in the data: c"),
        (("a", "b", "c"), "has 2 classes, the model 3"),
    ],
)
def test_other_labels_are_refused(labels: tuple[str, ...], word: str) -> None:
    check_labels(("a", "b"), set_of())
    with pytest.raises(DataError, match=word) as caught:
        check_labels(labels, set_of())
    assert caught.value.fix


def trained_on(data: str, fold: str) -> TrainedOn:
    return TrainedOn(data=data, test_fold=fold, clips=1, sha256="0" * 64)


@pytest.mark.parametrize(
    ("data", "fold", "refused"),
    [
        ("esc10", "1", False),
        ("esc10", "2", True),
        ("esc50", "1", True),  # the same recordings, whatever the fold is called
        ("fsdd", "1", False),
        ("folder:mine", "2", False),
    ],
)
def test_clips_that_the_teacher_was_trained_on_are_refused(
    data: str, fold: str, refused: bool
) -> None:
    if not refused:
        check_held_out(trained_on(data, fold), set_of(), "1")
        return
    with pytest.raises(DataError, match="mean nothing") as caught:
        check_held_out(trained_on(data, fold), set_of(), "1")
    assert caught.value.fix


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tones at 8 and 16 kHz, of several lengths."""
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for side, n in (("train", 6), ("test", 4)):
        for label, hz in (("high", 2000.0), ("low", 300.0)):
            for i in range(n):
                rate = (8000, 16000)[i % 2]
                t = np.arange(int(rate * (0.2 + 0.1 * i))) / rate
                wave = 0.3 * np.sin(2 * np.pi * hz * t) + 0.01 * rng.standard_normal(len(t))
                path = root / side / label / f"{i}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, rate)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, sounds: Path) -> dict[str, Path]:
    """A teacher, a student of it, and the student as ONNX."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    teacher = ResNetTeacher(TeacherArch(channels=(8, 8), blocks=1), 16, 2)
    arch = StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=8)
    student = StudentNet(arch, 16, 2)
    with torch.no_grad():
        for _ in range(10):
            x = torch.randn(4, 1, 16, 40)
            teacher(x), student(x)
    teacher.eval(), student.eval()
    common: dict[str, Any] = {"mel": SPEC.to_dict(), "labels": ("high", "low")}
    known = trained_on(f"folder:{sounds.name}", "test")
    paths = {"teacher": folder / "t.safetensors", "student": folder / "s.safetensors"}
    card = Card(kind="teacher", arch=teacher.arch.model_dump(), trained_on=known, **common)
    sha = save_checkpoint(paths["teacher"], teacher, card)
    card = Card(
        kind="student", arch=arch.model_dump(), teacher_sha256=sha,
        teacher_trained_on=known, **common,
    )  # fmt: skip
    save_checkpoint(paths["student"], student, card)
    facts = StudentFacts(mel=SPEC, labels=("high", "low"), teacher_sha256=sha)
    options = ExportOptions(bench_budget_s=0.01, bench_rounds=2)
    export_student(
        student, facts, folder / "onnx", int8=False, calibration=None, source="none",
        options=options,
    )  # fmt: skip
    return paths | {"onnx": folder / "onnx" / "student.fp32.onnx"}


def test_a_student_and_its_onnx_file_agree(
    models: dict[str, Path], sounds: Path, tmp_path: Path
) -> None:
    clips = [c for c in load_set(f"folder:{sounds}").clips if c.fold == "test"]
    features = FeatureStore(SPEC, tmp_path).load(clips)
    student, exported = open_model(models["student"]), open_model(models["onnx"])
    assert (student.kind, exported.kind) == ("student", "streaming")
    assert (student.mel, student.labels) == (exported.mel, exported.labels)
    seen: list[Progress] = []
    torch.testing.assert_close(
        logits_of(exported, features, seen.append),
        logits_of(student, features),
        atol=1e-3,
        rtol=1e-3,
    )
    assert [p.done for p in seen] == list(range(1, 9))


def test_the_teacher_must_be_the_students_own(models: dict[str, Path], tmp_path: Path) -> None:
    student, teacher = open_model(models["student"]), open_model(models["teacher"])
    check_teacher(student, teacher)
    check_teacher(open_model(models["onnx"]), teacher)
    with pytest.raises(CheckpointError, match="is not a teacher"):
        check_teacher(student, student)
    other = ResNetTeacher(TeacherArch(channels=(8, 8), blocks=1), 16, 2)
    assert teacher.network is not None
    card = teacher.network.card
    save_checkpoint(tmp_path / "other.safetensors", other, card)
    with pytest.raises(CheckpointError, match="another teacher"):
        check_teacher(student, open_model(tmp_path / "other.safetensors"))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model"):
        open_model(tmp_path / "nowhere.onnx")
    for name, error in (("x.onnx", ModelFileError), ("x.safetensors", CheckpointError)):
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(error):
            open_model(tmp_path / name)
