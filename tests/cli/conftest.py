"""An untrained teacher, a configuration that takes a second, and clips of two tones."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from kit import CPU, LABELS, SPEC, UNGATED, settled, tones
from typer.testing import CliRunner

import frami_edge as fe
from frami_edge.checkpoint import Card, TrainedOn, save_checkpoint
from frami_edge.cli import app
from frami_edge.config import TeacherArch
from frami_edge.models import ResNetTeacher

CONFIG = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  clip_s: 0.24
  procedural_clips: 40
  control_clips: 40
  shard_clips: 16
  inversion: {steps: 5, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
  translator: {steps: 5, burn_in: 1, batch_size: 8}
distill: {steps: 6, batch_size: 8, crop_min_s: 0.16, crop_max_s: 0.24, checkpoint_steps: 2}
seed: 3
"""


TAGGER = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        print("as other people's networks do")
        return self.head(self.body(x).mean((2, 3)))
"""


def make_teacher(path, seed=0, data="folder:tones"):
    torch.manual_seed(seed)
    model = ResNetTeacher(TeacherArch(channels=(8, 12), blocks=1), SPEC.n_mels, len(LABELS))
    heard = TrainedOn(data=data, test_fold="test", clips=8, sha256="0" * 64)
    card = Card(
        kind="teacher", arch=model.arch.model_dump(mode="json"), mel=SPEC.to_dict(), labels=LABELS,
        trained_on=heard, licence="CC-BY-SA-4.0",
    )  # fmt: skip
    save_checkpoint(path, settled(model), card)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture
def tagger(tmp_path, monkeypatch):
    """A network with four detectors, and the options that describe it."""
    (tmp_path / "net.py").write_text(TAGGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    torch.manual_seed(0)
    torch.save(importlib.import_module("net").Net().state_dict(), tmp_path / "net.pt")
    (tmp_path / "labels.txt").write_text("Dog\nCat\nSiren\nSmoke alarm\n")
    (tmp_path / "mel.yaml").write_text(yaml.safe_dump(SPEC.to_dict()))
    files = {"--weights": "net.pt", "--mel": "mel.yaml", "--labels": "labels.txt"}
    named = [word for option, name in files.items() for word in (option, tmp_path / name)]
    return ["net:Net", *named, "--output", "sigmoid"]


@pytest.fixture
def new_teacher():
    """`new_teacher(path, seed=1)` writes another one."""
    return make_teacher


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    return tones(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture
def call():
    """`call("distill", ..., code=0)`: the program in this process; its exit code is checked."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert "Internal error" not in result.output
        return result

    return run


@pytest.fixture
def invert(call, config, teacher, tmp_path):
    def run(*more, code=0, **changes):
        use = {"config": config, "--teacher": teacher, "--out": tmp_path / "bank"} | changes
        first = use.pop("config")
        named = [part for pair in use.items() for part in pair]
        return call("invert", first, *named, *CPU, *more, code=code)

    return run


@pytest.fixture
def distill(call, config, teacher):
    def run(out, *more, code=0):
        use = ("--teacher", teacher, "--out", out, "--allow-weak", *CPU)  # six steps
        return call("distill", config, *use, *more, code=code)

    return run


@pytest.fixture(scope="session")
def student(tmp_path_factory, teacher, config):
    """What `distill --json` said of a finished run; its bank lies in `run_dir`/bank."""
    out = tmp_path_factory.mktemp("student") / "run"
    arguments = ["distill", config, "--teacher", teacher, "--out", out, "--json", *CPU]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 3, "six steps make no student"
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, student):
    """The student's export: fp32, whole classifier, int8 and waveform, without gates."""
    out, run = tmp_path_factory.mktemp("exported"), Path(student["run_dir"])
    options = {"samples": 64, "options": UNGATED(), "with_frontend": True}
    fe.export(run / "student.safetensors", bank=run / "bank", int8=True, out=out, **options)
    return out
