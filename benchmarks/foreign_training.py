"""A training script as its owner would write it: torch, torchaudio, and a mel written down."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
import torchaudio
from torch import Tensor, nn

DIGITS = tuple(str(digit) for digit in range(10))
RATE = 8000
FRAMES = (32, 48, 80)
"""Mel frames of a training batch, one at random: shorter clips are repeated, longer ones cut."""
LOGS = {"log10": torch.log10, "log2": torch.log2, "db": lambda x: 10 * torch.log10(x)}


def digits(root: Path) -> tuple[list[Tensor], Tensor, list[bool]]:
    """Clips, their digit, and whether the official split tests on them (takes 0 to 4)."""
    files = sorted((root / "recordings").glob("*.wav"))
    waves, labels, tests = [], [], []
    for file in files:
        digit, _, take = file.stem.split("_")
        wave, rate = soundfile.read(file, dtype="float32")
        assert rate == RATE
        waves.append(torch.from_numpy(wave))
        labels.append(int(digit))
        tests.append(int(take) < 5)
    return waves, torch.tensor(labels), tests


def log_mels(waves: list[Tensor], mel: dict[str, Any]) -> list[Tensor]:
    """(M, T_i) of each clip, with torchaudio."""
    transform = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=mel["n_fft"], win_length=mel["win_length"], hop_length=mel["hop_length"],
        n_mels=mel["n_mels"], f_min=mel["f_min"], power=mel["power"], center=mel["center"],
        mel_scale=mel["mel_scale"], norm=None if mel["norm"] == "none" else mel["norm"],
    )  # fmt: skip
    log = LOGS[mel["log"]]
    return [log(transform(wave) + mel["log_eps"]) for wave in waves]


def fitted(x_MT: Tensor, frames: int, rng: random.Random) -> Tensor:
    """A window of it, at random; a short clip is repeated."""
    repeated = x_MT.repeat(1, -(-(frames + 1) // x_MT.shape[1]))
    start = rng.randrange(repeated.shape[1] - frames)
    return repeated[:, start : start + frames]


def train(
    net: nn.Module,
    mel: dict[str, Any],
    root: Path,
    *,
    epochs: int,
    rate: float,
    as_sequence: bool,
    seed: int,
) -> tuple[dict[str, Any], float, float]:
    """Train it; returns the mel with its mean and std, accuracy on the test clips, seconds.

    The last epoch is what counts; the test clips are looked at once, after it.
    """
    begun = time.monotonic()
    rng = random.Random(seed)
    waves, labels, tests = digits(root)
    mels = log_mels(waves, mel)
    heard = [i for i, test in enumerate(tests) if not test]
    everything = torch.cat([mels[i] for i in heard], 1)
    mel = mel | {"mean": float(everything.mean()), "std": float(everything.std())}
    mels = [(x - mel["mean"]) / mel["std"] for x in mels]

    def batch(rows: list[Tensor]) -> Tensor:
        x = torch.stack(rows)
        return x.transpose(1, 2) if as_sequence else x[:, None]

    steps = epochs * (len(heard) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    net.train()
    for epoch in range(epochs):
        rng.shuffle(heard)
        for i in range(len(heard) // 64):
            chosen = heard[64 * i : 64 * i + 64]
            loudness = [rng.uniform(-0.5, 0.5) for _ in chosen]
            frames = rng.choice(FRAMES)
            x = [fitted(mels[k], frames, rng) + g for k, g in zip(chosen, loudness, strict=True)]
            loss = nn.functional.cross_entropy(net(batch(x)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    net.eval()
    with torch.no_grad():
        right = [
            int(net(batch([mels[i]])).argmax()) == int(labels[i])
            for i, test in enumerate(tests)
            if test
        ]
    return mel, sum(right) / len(right), time.monotonic() - begun
