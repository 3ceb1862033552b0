"""The training loop, and the two commands that use it, on a folder of tones."""

from __future__ import annotations

import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

from frami_edge.checkpoint import load_checkpoint
from frami_edge.cli import app
from frami_edge.config import TeacherArch, TeacherConfig, TrainConfig, load_config
from frami_edge.data.sets import Clip
from frami_edge.data.store import Features
from frami_edge.device import Compute
from frami_edge.errors import TeacherError
from frami_edge.models import ResNetTeacher
from frami_edge.runs import read_manifest
from frami_edge.training import TeacherTrainer
from frami_edge_runtime.melspec import MelSpec

CPU = Compute(torch.device("cpu"), torch.float32, False, "a test")
RECIPE = {
    "epochs": 3, "batch_size": 4, "crop_frames": 20, "mixup": 0.5, "mask_bands": 3,
    "mask_frames": 3, "gain": 0.3,
}  # fmt: skip


@pytest.fixture
def features() -> Features:
    """13 clips of 2 classes that differ in level; 13 leaves a batch of one."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(13) % 2
    mels = [
        torch.randn(16, 18 + i, generator=rng) + 1.5 * float(label)
        for i, label in enumerate(labels)
    ]
    clips = [Clip(Path(f"{i}.wav"), int(label), "train") for i, label in enumerate(labels)]
    return Features(mels, labels, clips, [""] * 13, [], "abc", MelSpec(n_mels=16))


def trainer(features: Features, seed: int = 0, **changes: Any) -> TeacherTrainer:
    torch.manual_seed(7)
    model = ResNetTeacher(TeacherArch(channels=(8, 8), blocks=1, dropout=0.2), 16, 2)
    config = TrainConfig.model_validate(RECIPE | changes)
    return TeacherTrainer(model, features, config, CPU, seed)


def same(a: TeacherTrainer, b: TeacherTrainer) -> bool:
    x, y = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_training_is_the_uninterrupted_one(features: Features, stop: int) -> None:
    states: list[bytes] = []
    rows: list[dict[str, float]] = []
    whole = trainer(features)

    def keep(row: dict[str, float]) -> None:
        file = io.BytesIO()
        torch.save(whole.state(), file)
        states.append(file.getvalue())
        rows.append(row)

    whole.run(on_epoch=keep)
    assert len(rows) == 3
    assert whole.steps_done == whole.steps
    resumed = trainer(features)
    torch.manual_seed(99)  # the global stream, which dropout uses, must not matter
    resumed.load_state(torch.load(io.BytesIO(states[stop - 1]), weights_only=True))
    again: list[dict[str, float]] = []
    resumed.run(on_epoch=again.append)
    assert again == rows[stop:]
    assert same(whole, resumed)
    assert not whole.model.training


def test_the_seed_decides(features: Features) -> None:
    one, again, other = trainer(features), trainer(features), trainer(features, seed=1)
    for t in (one, again, other):
        t.run()
    assert same(one, again)
    assert not same(one, other)


def test_no_clip_is_trained_on_alone(features: Features) -> None:
    t = trainer(features)
    for epoch in range(20):
        batches = t._batches(epoch)
        assert min(len(b) for b in batches) >= 2
        assert sorted(i for b in batches for i in b) == list(range(13))


def test_it_learns(features: Features) -> None:
    t = trainer(features, epochs=25, mixup=0.0, crop_frames=0)
    rows: list[dict[str, float]] = []
    t.run(on_epoch=rows.append)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["train_accuracy"] > 0.9
    assert rows[-1]["lr"] < rows[5]["lr"]


def test_other_clips_cannot_be_gone_on_with(features: Features) -> None:
    state = trainer(features).state()
    other = copy.copy(features)
    other.sha256 = "def"
    with pytest.raises(TeacherError, match="no longer those"):
        trainer(other).load_state(state)


def test_a_training_that_diverges_ends_with_its_reason(features: Features) -> None:
    features.mels[3][:] = float("nan")
    with pytest.raises(TeacherError, match="diverged"):
        trainer(features).run()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tones; one training file holds no audio."""
    root = tmp_path_factory.mktemp("root") / "tones"
    rng = np.random.default_rng(0)
    for side, n in (("train", 8), ("test", 4)):
        for label, hz in (("high", 2000.0), ("low", 300.0)):
            for i in range(n):
                t = np.arange(1600 + 400 * i) / 8000
                wave = 0.3 * np.sin(2 * np.pi * hz * t) + 0.01 * rng.standard_normal(len(t))
                path = root / side / label / f"{i}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, 8000)
    (root / "train" / "low" / "broken.wav").write_bytes(b"RIFF, but no audio")
    return root


@pytest.fixture
def config(tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tones.yaml"
    path.write_text(
        f"data: {{name: 'folder:{sounds}', fold: test}}\n"
        "mel: {sample_rate: 8000, n_fft: 256, win_length: 200, hop_length: 80, n_mels: 16}\n"
        "arch: {channels: [8, 8], blocks: 1}\n"
        "train: {epochs: 4, batch_size: 8}\n"
    )
    return path


def call(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result


def train(config: Path, out: str, *more: object, code: int = 0) -> Result:
    return call("train-teacher", config, "--out", out, "--device", "cpu", "--precision", "fp32",
                *more, code=code)  # fmt: skip


def test_a_teacher_is_trained_and_scored(config: Path, sounds: Path, tmp_path: Path) -> None:
    result = train(config, "run", "--json")
    found = json.loads(result.stdout)
    assert (found["test_fold"], found["train_clips"], found["test_clips"]) == ("test", 16, 8)
    assert "1 of 17 training clips cannot be used" in result.stderr
    assert "broken.wav" in result.stderr
    run = tmp_path / "run"
    loaded = load_checkpoint(run / "teacher.safetensors", "teacher")
    assert loaded.sha256 == found["sha256"]
    assert loaded.card.labels == ("high", "low")
    assert loaded.card.trained_on is not None
    assert loaded.card.trained_on.data == "folder:tones"
    assert isinstance(loaded.spec.mean, float)
    assert loaded.spec.mean != 0
    assert str(sounds.parent) not in json.dumps(loaded.card.model_dump()["trained_on"])
    manifest = read_manifest(run)
    assert manifest["status"] == "finished"
    assert manifest["data"]["train"]["rejected"] == 1
    assert manifest["accuracy"] == found["accuracy"]
    for picture in ("curves", "confusion"):
        assert (run / "plots" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    card = (run / "README.md").read_text()
    assert "license:" not in card  # it is not known
    assert "pipeline_tag: audio-classification" in card
    assert not (run / "train-state.pt").exists()


def test_mean_and_std_are_those_of_the_training_clips(config: Path, sounds: Path) -> None:
    train(config, "run", "-q")
    spec = load_checkpoint(Path("run/teacher.safetensors")).spec
    from frami_edge.data.sets import load_set
    from frami_edge.data.store import FeatureStore, measure_normalisation

    settings = load_config(TeacherConfig, config)
    heard, tested = load_set(f"folder:{sounds}").split("test")
    store = FeatureStore(settings.mel.spec())
    assert (spec.mean, spec.std) == measure_normalisation(store.load(heard))
    assert (spec.mean, spec.std) != measure_normalisation(store.load([*heard, *tested]))


def test_a_killed_training_is_resumed_to_the_same_teacher(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, "whole", "-q")
    real = TeacherTrainer._step

    def step(self: TeacherTrainer, indices: list[int]) -> tuple[float, float]:
        value = real(self, indices)
        if self.epochs_done == 2:  # after the first step of the third epoch
            raise KeyboardInterrupt
        return value

    with monkeypatch.context() as patch:
        patch.setattr(TeacherTrainer, "_step", step)
        patch.setattr(sys, "argv", ["/somewhere/frami-edge", "train-teacher", "x.yaml"])
        stopped = train(config, "killed", code=130)
    assert "frami-edge train-teacher x.yaml --resume" in stopped.stderr
    assert read_manifest("killed")["status"] == "interrupted"
    assert not Path("killed/teacher.safetensors").exists()
    assert "already holds an unfinished run" in train(config, "killed", code=1).stderr
    assert "another config" in train(config, "killed", "--resume", "--set", "seed=1", code=1).stderr
    resumed = train(config, "killed", "--resume")
    assert "Going on after epoch 2 of 4" in resumed.stderr
    one, other = (load_checkpoint(Path(f"{n}/teacher.safetensors")) for n in ("whole", "killed"))
    assert one.sha256 == other.sha256
    texts = [Path(f"{n}/metrics.jsonl").read_text() for n in ("whole", "killed")]
    assert texts[0] == texts[1]
    # A finished run is only tested again.
    train(config, "killed", "--resume", "-q")
    assert load_checkpoint(Path("killed/teacher.safetensors")).sha256 == one.sha256


def test_mistakes_leave_no_run_behind(config: Path) -> None:
    for change, word in (
        ("data.name=folder:nowhere", "no folder"),
        ("data.fold=9", "no fold"),
        ("train.epoch=3", "did you mean"),
    ):
        assert word in train(config, "run", "--set", change, code=1).stderr
        assert not Path("run").exists()


def test_evaluate_repeats_the_score(config: Path, sounds: Path) -> None:
    trained = json.loads(train(config, "run", "--json").stdout)
    data = ("--data", f"folder:{sounds}")
    out = call("evaluate", trained["teacher"], *data, "--json", "--out", "scores",
               "--teacher", trained["teacher"])  # fmt: skip
    found = json.loads(out.stdout)
    assert found["fold"] == "test"
    assert found["accuracy"] == trained["accuracy"] == found["teacher_accuracy"]
    assert (found["agreement"], found["kl_nats"]) == (1.0, pytest.approx(0, abs=1e-6))
    assert sum(map(sum, found["confusion"])) == found["clips"] == 8
    assert Path(found["plots"]["confusion"]).read_bytes().startswith(b"\x89PNG")
    assert read_manifest("scores")["accuracy"] == found["accuracy"]
    table = call("evaluate", trained["teacher"], *data).stdout
    assert "high" in table
    assert "teacher's" not in table
    assert "no fold" in call("evaluate", trained["teacher"], *data, "--fold", "3", code=1).stderr
    assert "no model" in call("evaluate", "nowhere.onnx", *data, code=1).stderr
    call("evaluate", trained["teacher"], code=2)
