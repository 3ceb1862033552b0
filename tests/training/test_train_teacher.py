"""Teacher training: it learns, resumes to the same bits, and scores the held-out fold once."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from kit import tones

from frami_edge.checkpoint import load_checkpoint
from frami_edge.config import TeacherArch, TeacherConfig, TrainConfig
from frami_edge.data.clips import Clip
from frami_edge.data.sets import load_set
from frami_edge.data.store import Features, FeatureStore, measure_normalisation
from frami_edge.device import Compute
from frami_edge.errors import DataError, TeacherError
from frami_edge.models import ResNetTeacher
from frami_edge.runs import RunFolder, read_manifest
from frami_edge.training import train_epochs, train_teacher
from frami_edge_runtime.melspec import MelSpec

CPU = Compute(torch.device("cpu"), torch.float32, False, "a test")
RECIPE = {
    "epochs": 3, "batch_size": 4, "crop_s": 0.2, "mixup": 0.5, "mask_bands": 3,
    "mask_frames": 3, "gain": 0.3,
}  # fmt: skip


@pytest.fixture
def features():
    """13 clips of 2 classes that differ in level; 13 leaves a batch of one."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(13) % 2
    mels = [
        torch.randn(16, 18 + i, generator=rng) + 1.5 * float(label)
        for i, label in enumerate(labels)
    ]
    clips = [Clip(Path(f"{i}.wav"), int(label), "train") for i, label in enumerate(labels)]
    return Features(mels, labels, clips, [""] * 13, [], "abc", MelSpec(n_mels=16))


def stop_at(step):
    def progress(update):
        if update.phase == "train" and update.done == step:
            raise KeyboardInterrupt

    return progress


def trained(features, folder=None, *, seed=0, stop=0, **changes):
    """Weights after the last epoch, and the losses of the steps."""
    torch.manual_seed(7)
    model = ResNetTeacher(TeacherArch(channels=(8, 8), blocks=1, dropout=0.2), 16, 2)
    torch.manual_seed(99 + stop)  # the global stream, which dropout uses, must not matter
    losses = []

    def progress(update):
        losses.append(update.metrics["loss"])
        stop_at(stop)(update)

    train_epochs(
        model, features, TrainConfig.model_validate(RECIPE | changes), compute=CPU, seed=seed,
        checkpoint=folder / "state.pt" if folder else None, progress=progress,
    )  # fmt: skip
    assert not model.training
    return b"".join(v.numpy().tobytes() for v in model.state_dict().values()), losses


def test_a_resumed_training_gives_the_same_teacher(features, tmp_path):
    whole, losses = trained(features)
    assert (whole, losses) == trained(features)
    assert whole != trained(features, seed=1)[0]
    with pytest.raises(KeyboardInterrupt):
        trained(features, tmp_path, stop=len(losses) * 2 // 3 + 1)
    resumed, rest = trained(features, tmp_path)
    assert resumed == whole
    assert rest == losses[-len(losses) // 3 :]
    other = copy.copy(features)
    other.sha256 = "def"
    with pytest.raises(TeacherError, match="not those"):
        trained(other, tmp_path)


def test_it_learns_or_ends_with_the_reason(features):
    _, losses = trained(features, epochs=25, mixup=0.0, crop_s=0)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    features.mels[3][:] = float("nan")
    with pytest.raises(TeacherError, match="diverged"):
        trained(features)


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Two classes of tones; one training file holds no audio."""
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    root = tones(tmp_path / "tones", train=8)
    (root / "train" / "low" / "broken.wav").write_bytes(b"RIFF, but no audio")
    return root


def config(sounds, **changes):
    mel = {"sample_rate": 8000, "n_fft": 256, "win_length": 200, "hop_length": 80, "n_mels": 16}
    return TeacherConfig.model_validate(
        {
            "data": {"name": f"folder:{sounds}", "fold": "test"} | changes,
            "mel": mel,
            "arch": {"channels": (8, 8), "blocks": 1},
            "train": {"epochs": 4, "batch_size": 8},
        }
    )


def test_a_run_trains_scores_and_resumes(sounds, tmp_path, caplog):
    settings = config(sounds)
    with RunFolder.create(tmp_path / "whole", command="train-teacher", config=settings) as run:
        result = train_teacher(run, settings, None, CPU)
    assert "1 of 17 clips cannot be used" in caplog.text
    assert "broken.wav" in caplog.text
    loaded = load_checkpoint(result.path, "teacher")
    assert loaded.sha256 == result.sha256
    assert loaded.labels == ("high", "low")
    known = loaded.card.trained_on
    assert (known.data, known.test_fold, known.clips) == ("folder:tones", "test", 16)
    assert str(sounds.parent) not in json.dumps(known.model_dump())
    train, test = load_set(f"folder:{sounds}").split("test")
    store = FeatureStore(settings.mel.spec())
    statistics = (loaded.mel.mean, loaded.mel.std)
    assert statistics == measure_normalisation(store.load(train))
    assert statistics != measure_normalisation(store.load([*train, *test]))
    manifest = read_manifest(run.folder)
    assert manifest["data"]["train"]["rejected"] == 1
    assert known.heard(store.load(train).audio) == [True] * 16
    assert not any(known.heard(store.load(test).audio))
    assert manifest["accuracy"] == result.score.accuracy
    files = {p.name for p in run.folder.rglob("*") if p.is_file()}
    assert {"README.md", "curves.png", "confusion.png"} <= files
    assert "train-state.pt" not in files

    killed = tmp_path / "killed"
    create = {"path": killed, "command": "train-teacher", "config": settings}
    with pytest.raises(KeyboardInterrupt), RunFolder.create(**create) as run:
        train_teacher(run, settings, None, CPU, stop_at(5))
    assert not (killed / "teacher.safetensors").exists()
    for _ in range(2):  # the second time it is only tested again
        with RunFolder.create(**create, resume=True) as run:
            assert train_teacher(run, settings, None, CPU).sha256 == result.sha256
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert rows[0] == rows[1]


def test_test_clips_that_are_training_clips_are_said_and_not_scored(sounds, tmp_path, caplog):
    samples, rate = soundfile.read(sounds / "train" / "low" / "3.wav")
    soundfile.write(sounds / "test" / "low" / "copy.flac", samples, rate)
    settings = config(sounds)
    with RunFolder.create(tmp_path / "run", command="train-teacher", config=settings) as run:
        result = train_teacher(run, settings, None, CPU)
    assert result.score.clips == 8
    said = "1 of 9 clips have the same audio as a training clip"
    assert said in caplog.text
    assert said in (run.folder / "README.md").read_text()
    data = read_manifest(run.folder)["data"]
    assert data["test"]["training_clips"] == 1
    assert said in data["notes"][0]


def test_a_class_without_a_usable_training_clip_is_named(sounds, tmp_path):
    for path in (sounds / "train" / "low").glob("*.wav"):
        path.rename(path.with_suffix(".m4a")).write_bytes(b"\0\0\0 ftypM4A ")
    settings = config(sounds)
    with (
        pytest.raises(DataError, match="No training clip of low can be used"),
        RunFolder.create(tmp_path / "run", command="train-teacher", config=settings) as run,
    ):
        train_teacher(run, settings, None, CPU)
