"""An untrained teacher, a configuration that takes a second, and clips of two tones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
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
LABELS = ("high", "low")
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

Call = Callable[..., Result]
CPU = ("--device", "cpu", "--precision", "fp32")


def make_teacher(path: Path, seed: int = 0, data: str = "folder:tones") -> Path:
    """Random weights; BatchNorm statistics of procedural clips, as after a training."""
    torch.manual_seed(seed)
    model = ResNetTeacher(TeacherArch(channels=(8, 12), blocks=1), SPEC.n_mels, len(LABELS))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(procedural_mels(SPEC, 64, 24, seed=5))
    heard = TrainedOn(data=data, test_fold="test", clips=8, sha256="0" * 64)
    card = Card(
        kind="teacher", arch=model.arch.model_dump(mode="json"), mel=SPEC.to_dict(), labels=LABELS,
        trained_on=heard, licence="CC-BY-SA-4.0",
    )  # fmt: skip
    save_checkpoint(path, model.eval(), card)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture
def new_teacher() -> Callable[..., Path]:
    """`new_teacher(path, seed=1)` writes another one."""
    return make_teacher


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def tones(root: Path, seed: int = 0, labels: tuple[str, ...] = LABELS) -> Path:
    """A folder of noisy tones, in train and test."""
    rng = np.random.default_rng(seed)
    for side, n in (("train", 6), ("test", 4)):
        for k, label in enumerate(labels):
            for i in range(n):
                t = np.arange(2400 + 400 * i) / 8000
                wave = 0.3 * np.sin(2 * np.pi * (2000, 300)[k] * t)
                path = root / side / label / f"{i}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave + 0.02 * rng.standard_normal(len(t)), 8000)
    return root


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture
def call() -> Call:
    """`call("distill", ..., code=0)`: the program in this process; its exit code is checked."""

    def run(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert "Internal error" not in result.output
        return result

    return run


@pytest.fixture
def invert(call: Call, config: Path, teacher: Path, tmp_path: Path) -> Call:
    def run(*more: object, code: int = 0, **changes: object) -> Result:
        use = {"config": config, "--teacher": teacher, "--out": tmp_path / "bank"} | changes
        first = use.pop("config")
        named = [part for pair in use.items() for part in pair]
        return call("invert", first, *named, *CPU, *more, code=code)

    return run


@pytest.fixture
def distill(call: Call, config: Path, teacher: Path) -> Call:
    def run(out: Path, *more: object, code: int = 0) -> Result:
        weak = "--allow-weak"  # six steps
        return call(
            "distill", config, "--teacher", teacher, "--out", out, weak, *CPU, *more, code=code
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def student(
    tmp_path_factory: pytest.TempPathFactory, teacher: Path, config: Path
) -> dict[str, Any]:
    """What `distill --json` said of a finished run; its bank lies in `run_dir`/bank."""
    out = tmp_path_factory.mktemp("student") / "run"
    arguments = ["distill", config, "--teacher", teacher, "--out", out, "--json", *CPU]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 3, "six steps make no student"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, student: dict[str, Any]) -> Path:
    """The student's export: fp32, whole classifier, int8 and waveform, without gates."""
    from frami_edge.bank import Bank
    from frami_edge.checkpoint import load_checkpoint
    from frami_edge.journey import calibration_mels, facts_of
    from frami_edge.models import StudentNet
    from frami_edge_export.exporter import export_student
    from frami_edge_export.options import ExportOptions

    run = Path(student["run_dir"])
    loaded = load_checkpoint(run / "student.safetensors", "student")
    assert isinstance(loaded.model, StudentNet)
    out = tmp_path_factory.mktemp("exported")
    # Six steps of training leave BatchNorm far from the bank, and answers of no meaning.
    options = ExportOptions(
        min_agreement=0.0,
        max_range_ratio=1e9,
        max_range_shift=1e9,
        bench_budget_s=0.02,
        bench_rounds=15,
    )
    calibration = calibration_mels(loaded, Bank.open(run / "bank"), count=64).mels
    export_student(
        loaded.model.collapse(), facts_of(loaded), out, int8=True, calibration=calibration,
        source="bank", waveform=True, options=options,
    )  # fmt: skip
    return out
