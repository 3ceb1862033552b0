"""What all cases start from: a tiny trained teacher, student, bank, export, clips and configs.

It is made once, in a folder that no case may change; a case works in a folder of its own.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch
from torch import nn

from frami_edge.inversion.procedural import procedural_mels
from frami_edge.models.checkpoint import Card, TrainedOn, save_checkpoint
from frami_edge.models.config import TeacherArch
from frami_edge.models.teacher import ResNetTeacher
from frami_edge_runtime.melspec import MelSpec

SPEC: Final = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)
LABELS: Final = ("high", "low")
CONFIG: Final = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  frames: 24
  procedural_clips: 24
  control_clips: 24
  shard_clips: 16
  inversion: {steps: 2, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
  translator: {steps: 2, burn_in: 1, batch_size: 8}
distill: {steps: 2, batch_size: 8, crop_min: 16, crop_max: 24, checkpoint_steps: 1}
seed: 3
"""
FOREIGN: Final = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, bands=16, classes=2):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(bands, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.flat(self.pool(self.body(x))))
"""


@dataclass(frozen=True)
class Material:
    """Paths of intact files.

    Attributes:
        root: The folder that holds all of them.
    """

    root: Path

    teacher = property(lambda self: self.root / "teacher.safetensors")
    run = property(lambda self: self.root / "run")
    student = property(lambda self: self.root / "run" / "student.safetensors")
    bank = property(lambda self: self.root / "run" / "bank")
    export = property(lambda self: self.root / "export")
    sounds = property(lambda self: self.root / "tones")
    config = property(lambda self: self.root / "tiny.yaml")
    description = property(lambda self: self.root / "foreign.yaml")
    weights = property(lambda self: self.root / "foreign.pt")

    @cached_property
    def models(self) -> list[bytes]:
        """Exported models: fp32 and int8."""
        return [path.read_bytes() for path in sorted(self.export.glob("*.onnx"))][:3]

    @cached_property
    def clip(self) -> Any:
        """(N,) float32, a second and a half of tones and noise at 8 kHz."""
        return _wave(0, 0)

    @classmethod
    def make(cls, root: Path) -> Material:
        """Train, distil and export; about ten seconds."""
        root.mkdir(parents=True, exist_ok=True)
        made = cls(root)
        make_teacher(made.teacher, LABELS)
        made.config.write_text(CONFIG)
        for side, count in (("train", 3), ("test", 2)):
            for k, label in enumerate(LABELS):
                folder = made.sounds / side / label
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    soundfile.write(folder / f"{i}.wav", _wave(k, i), SPEC.sample_rate)
        made._distil()
        made._foreign()
        return made

    def _distil(self) -> None:
        from frami_edge.calibrating import bank_mels
        from frami_edge.exporting import facts_of
        from frami_edge.models.checkpoint import load_checkpoint
        from frami_edge.models.student import Student
        from frami_edge_export import ExportOptions, export_student
        from fuzzing.program import call

        words = ["distill", self.config, "--teacher", self.teacher, "--out", self.run, "--json"]
        done = call([*words, "--device", "cpu", "--precision", "fp32"])
        assert done.code == 0, done.err
        loaded = load_checkpoint(self.student, "student")
        assert isinstance(loaded.model, Student)
        options = ExportOptions(
            min_agreement=0.0, max_range_ratio=1e9, max_range_shift=1e9, bench_budget_s=0.02,
            bench_rounds=15,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export_student(
                loaded.model.collapse(), facts_of(loaded), self.export, int8=True,
                calibration=bank_mels(self.bank, loaded, 24).mels, source="bank", options=options,
            )  # fmt: skip

    def _foreign(self) -> None:
        (self.root / "fuzznet.py").write_text(FOREIGN)
        scope: dict[str, Any] = {}
        exec(compile(FOREIGN, "fuzznet", "exec"), scope)
        torch.manual_seed(0)
        torch.save(scope["Net"]().state_dict(), self.weights)
        self.description.write_text(
            "factory: fuzznet:Net\nweights: foreign.pt\nlabels: [high, low]\n"
            f"mel: {json.dumps(SPEC.to_dict())}\n"
        )


def make_teacher(path: Path, labels: tuple[str, ...]) -> None:
    """Random weights with BatchNorm statistics of procedural clips, as after a training."""
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 12), blocks=1), SPEC.n_mels, len(labels))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(procedural_mels(SPEC, 32, 24, seed=5))
    heard = TrainedOn(data="folder:tones", test_fold="test", clips=6, sha256="0" * 64)
    card = Card(
        kind="teacher", arch=model.arch.model_dump(mode="json"), mel=SPEC.to_dict(), labels=labels,
        trained_on=heard, licence="CC-BY-SA-4.0",
    )  # fmt: skip
    save_checkpoint(path, model.eval(), card)


def audio(samples: Any, kind: str) -> bytes:
    """The samples as a file of a kind: ``wav``, ``float``, ``flac``, ``ogg`` or ``mp3``."""
    forms = {
        "wav": ("WAV", "PCM_16"), "wav24": ("WAV", "PCM_24"), "float": ("WAV", "FLOAT"),
        "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III"),
    }  # fmt: skip
    buffer = io.BytesIO()
    form, subtype = forms[kind]
    soundfile.write(buffer, samples, SPEC.sample_rate, format=form, subtype=subtype)
    return buffer.getvalue()


def _wave(k: int, i: int) -> Any:
    t = np.arange(12_000 - 800 * i) / SPEC.sample_rate
    noise = np.random.default_rng([k, i]).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (2000, 300)[k] * t) + 0.02 * noise).astype(np.float32)
