"""Control inputs: mels with neither a teacher nor a sound behind them.

Students distilled on them show what the inversion and the procedural prior add.
Shape legend: M mel bands, T frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from frami_edge.errors import ConfigError
from frami_edge_runtime.melspec import MelSpec

_COARSEST_SCALE = 2
"""Cells per axis of the coarsest noise; every next scale has twice as many, up to the full mel."""

_SCALE_STD = 0.7
"""Each finer scale is weaker by this, so that the sum is smooth with some texture."""

_GAIN = (0.5, 1.5)
"""Contrast of one mel relative to another."""

_OFFSET_STD = 0.7
"""Standard deviation of one mel's level, in units of the sum's own."""


def smooth_noise_mels(spec: MelSpec, n: int, frames: int, seed: int) -> torch.Tensor:
    """Multi-scale smooth noise in mel space.

    Gaussian noise at 2x2, 4x4, ... cells, bilinearly enlarged to the mel and summed, with a random
    gain and offset a mel; zero mean and unit standard deviation over the set, then clamped.

    Args:
        spec: The teacher's front end: bands, floor and ceiling.
        n: Number of mels.
        frames: Frames (T) of each.
        seed: Seed of all draws.

    Returns:
        (n, 1, M, T) float32 on the CPU, normalised units.

    Raises:
        ConfigError: ``n`` or ``frames`` is out of range.
    """
    generator = _generator(n, frames, seed)
    size = (spec.n_mels, frames)
    mels = torch.zeros(n, 1, *size)
    if n == 0:
        return mels
    cells, weight = _COARSEST_SCALE, 1.0
    while True:
        shape = (min(cells, size[0]), min(cells, size[1]))
        noise = torch.randn(n, 1, *shape, generator=generator)
        mels += weight * F.interpolate(noise, size, mode="bilinear", align_corners=False)
        if shape == size:
            break
        cells, weight = cells * 2, weight * _SCALE_STD
    low, high = _GAIN
    gain = low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)
    offset = _OFFSET_STD * mels.std() * torch.randn(n, 1, 1, 1, generator=generator)
    mels = mels * gain + offset
    mels = (mels - mels.mean()) / mels.std(correction=0).clamp_min(1e-6)
    return mels.clamp(
        torch.from_numpy(spec.floor)[:, None], torch.from_numpy(spec.ceiling)[:, None]
    )


def white_noise_mels(spec: MelSpec, n: int, frames: int, seed: int) -> torch.Tensor:
    """Independent Gaussian noise of mean 0 and standard deviation 1: the teacher's input scale.

    It is not clamped: the control is the noise itself.

    Args:
        spec: The teacher's front end: bands.
        n: Number of mels.
        frames: Frames (T) of each.
        seed: Seed of all draws.

    Returns:
        (n, 1, M, T) float32 on the CPU, normalised units.

    Raises:
        ConfigError: ``n`` or ``frames`` is out of range.
    """
    return torch.randn(n, 1, spec.n_mels, frames, generator=_generator(n, frames, seed))


def _generator(n: int, frames: int, seed: int) -> torch.Generator:
    if n < 0 or frames < 1 or seed < 0:
        raise ConfigError(
            f"Control mels: n {n}, frames {frames}, seed {seed} is out of range.",
            fix="n and seed must not be negative, frames must be at least 1.",
        )
    return torch.Generator().manual_seed(seed)
