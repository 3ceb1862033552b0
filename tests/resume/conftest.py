"""A teacher that nobody trained, a configuration that takes a second, and the program on them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from frami_edge.checkpoint import Card, TrainedOn, save_checkpoint
from frami_edge.cli import app
from frami_edge.config import TeacherArch
from frami_edge.models import ResNetTeacher
from frami_edge.sources.procedural import procedural_mels
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)
CONFIG = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  frames: 24
  sources: {inversion: 1, procedural: 1}
  procedural_clips: 40
  shard_clips: 16
  inversion: {steps: 6, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
distill: {steps: 6, batch_size: 8, crop_min: 16, crop_max: 24, checkpoint_steps: 2}
seed: 3
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)


@pytest.fixture
def new_teacher() -> Callable[..., Path]:
    """`new_teacher(path, seed=1)` writes one."""

    def make(path: Path, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        model = ResNetTeacher(TeacherArch(channels=(8, 12), blocks=1), SPEC.n_mels, 2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            model(procedural_mels(SPEC, 64, 24, seed=5))
        heard = TrainedOn(data="folder:x", test_fold="test", clips=8, sha256="0" * 64)
        card = Card(
            kind="teacher", arch=model.arch.model_dump(mode="json"), mel=SPEC.to_dict(),
            labels=("high", "low"), trained_on=heard, licence="CC0-1.0",
        )  # fmt: skip
        save_checkpoint(path, model.eval(), card)
        return path

    return make


@pytest.fixture
def teacher(tmp_path: Path, new_teacher: Callable[..., Path]) -> Path:
    return new_teacher(tmp_path / "teacher.safetensors")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written and not drawn, which takes longer than everything else."""
    from matplotlib.figure import Figure

    def savefig(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"picture")

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def call(pictures: None) -> Callable[..., Result]:
    """`call("distill", ..., code=0)`: the program in this process; its exit code is checked."""

    def run(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert "Internal error" not in result.output
        return result

    return run


@pytest.fixture
def distill(call: Callable[..., Result], config: Path, teacher: Path) -> Callable[..., Result]:
    """`distill(out, "--resume")` on the CPU in fp32."""

    def run(out: Path, *more: object, code: int = 0) -> Result:
        cpu = ("--device", "cpu", "--precision", "fp32")
        return call("distill", config, "--teacher", teacher, "--out", out, *cpu, *more, code=code)

    return run


@pytest.fixture
def process() -> Callable[..., subprocess.Popen[str]]:
    """`process("distill", ...)`: the program in a process of its own."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "frami_edge", *(str(a) for a in arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    return start
