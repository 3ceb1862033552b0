"""An untrained teacher, and a configuration that takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from frami_edge.checkpoint import Card, TrainedOn, save_checkpoint
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


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 12), blocks=1), SPEC.n_mels, 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(procedural_mels(SPEC, 64, 24, seed=5))
    known = TrainedOn(data="folder:x", test_fold="test", clips=8, sha256="0" * 64)
    card = Card(
        kind="teacher", arch=model.arch.model_dump(mode="json"), mel=SPEC.to_dict(),
        labels=("high", "low"), trained_on=known, licence="CC0-1.0",
    )  # fmt: skip
    save_checkpoint(tmp_path / "teacher.safetensors", model.eval(), card)
    return tmp_path / "teacher.safetensors"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written and not drawn, which takes longer than everything else."""
    from matplotlib.figure import Figure

    def savefig(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"picture")

    monkeypatch.setattr(Figure, "savefig", savefig)
