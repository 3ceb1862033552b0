"""A small depthwise-separable student and synthetic log-mels: no data, no network.

Shape legend: B batch, M mel bands, T frames, C channels, K classes.
"""

import numpy as np
import torch
from torch import nn

from frami_edge_export.options import ExportOptions
from frami_edge_runtime.melspec import MelSpec

MEL = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=32, mean=-6.0, std=4.0
)
FAST = ExportOptions(bench_budget_s=0.05, bench_rounds=15)


class MeanOverFrequency(nn.Module):
    def forward(self, h):
        return h.mean(dim=2)


def conv_bn(c_in, c_out, **kw):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, bias=False, **kw), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class TinyStudent(nn.Module):
    """Stem with stride (2, 2) and depthwise-separable blocks, no padding along time."""

    def __init__(self, channels=24, blocks=2, classes=6):
        super().__init__()
        layers = [conv_bn(1, channels, kernel_size=3, stride=2, padding=(1, 0))]
        for _ in range(blocks):
            layers += [
                conv_bn(
                    channels, channels, kernel_size=3, stride=(2, 1), padding=(1, 0),
                    groups=channels,
                ),
                conv_bn(channels, channels, kernel_size=1),
            ]  # fmt: skip
        self.trunk = nn.Sequential(*layers, MeanOverFrequency())
        self.receptive_field = 3 + 2 * 2 * blocks
        self.stride = 2
        self.context = (self.receptive_field // 2, self.receptive_field // 2)
        self.channels = channels
        self.pool_eps = 1e-5
        self.head = nn.Linear(2 * channels, classes)

    def collapsed_head(self):
        return self.head.weight, self.head.bias

    def forward(self, mel_BMT):
        h_BCT = self.trunk(nn.functional.pad(mel_BMT, self.context))
        var_BC = h_BCT.var(dim=2, correction=0)
        std_BC = torch.sqrt(var_BC.clamp_min(0) + self.pool_eps)
        logits = self.head(torch.cat([h_BCT.mean(dim=2), std_BC], dim=1))
        return logits


def synthetic_mels(count, frames, classes=6, seed=0):
    """Smooth log-mels with one ridge a class: (N, 1, M, T) normalised, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    bands = np.arange(MEL.n_mels)[None, :, None]
    time = np.arange(frames)[None, None, :]
    centre = (3 + 4.5 * labels + rng.normal(0, 0.5, count))[:, None, None]
    sway = rng.uniform(0, 2, (count, 1, 1)) * np.sin(time / rng.uniform(5, 15, (count, 1, 1)))
    gate = 0.6 + 0.4 * np.sin(
        time / rng.uniform(3, 12, (count, 1, 1)) + rng.uniform(0, 6, (count, 1, 1))
    )
    ridge = np.exp(-0.5 * ((bands - centre - sway) / 1.5) ** 2) * gate
    tilt = np.linspace(0.3, -0.8, MEL.n_mels)[None, :, None]
    x = tilt + 2.2 * ridge - 0.6 + rng.normal(0, 0.25, (count, MEL.n_mels, frames))
    x = np.clip(x, MEL.floor[None, :, None], MEL.ceiling[None, :, None])
    return torch.from_numpy(x.astype(np.float32))[:, None], torch.from_numpy(labels)


def train(student, steps, seed=0):
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    student.train()
    for step in range(steps):
        x, y = synthetic_mels(48, 40, seed=1000 + step)
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(student(x), y))
        optimiser.step()
    return student.eval()
