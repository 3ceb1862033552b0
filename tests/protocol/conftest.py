"""A protocol of seconds: two tones in two folds, networks of a few weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

TEACHER = """
data: {name: tones, fold: "1"}
mel: {sample_rate: 8000, n_fft: 256, win_length: 200, hop_length: 80, n_mels: 16}
arch: {channels: [8, 12], blocks: 1}
train: {epochs: 2, batch_size: 4, crop_frames: 24}
"""
STUDENT = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  frames: 24
  procedural_clips: 24
  control_clips: 24
  inversion: {steps: 4, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
  translator: {steps: 4, burn_in: 1, batch_size: 8}
distill: {steps: 4, batch_size: 8, crop_min: 16, crop_max: 24}
"""
PROTOCOL = """
title: Two tones
data: folder:{data}
teacher: {here}/t.yaml
student: {here}/s.yaml
folds: [1, 2]
seeds: [0, 1]
curve_steps: 2
methods:
  mixed: {{what: everything}}
  inversion: {{bank_of: mixed, set: {{bank.sources: {{inversion: 1}}}}, seeds: [0]}}
  few: {{bank_of: mixed, mels: 6, seeds: [0]}}
  noise: {{control: smooth_noise, folds: [1], seeds: [0]}}
  scratch: {{control: scratch, folds: [1], seeds: [0]}}
compare: [[mixed, inversion]]
"""


@pytest.fixture
def tones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A protocol file beside its data set; the cache of features is this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for fold in ("fold1", "fold2"):
        for label, hz in (("high", 1500), ("low", 300)):
            folder = tmp_path / "tones" / fold / label
            folder.mkdir(parents=True)
            for i in range(3):
                t = np.arange(4000 + 400 * i) / 8000
                x = 0.3 * np.sin(2 * np.pi * hz * t) + 0.01 * rng.standard_normal(len(t))
                soundfile.write(folder / f"{i}.wav", x, 8000)
    (tmp_path / "t.yaml").write_text(TEACHER)
    (tmp_path / "s.yaml").write_text(STUDENT)
    path = tmp_path / "p.yaml"
    path.write_text(PROTOCOL.format(data=tmp_path / "tones", here=tmp_path))
    return path
