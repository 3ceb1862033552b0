"""Control sources: noise mels, with neither a teacher nor a sound behind them.

Students distilled on them show what the inversion and the procedural prior add.
Shape legend: M mel bands, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from frami_edge.sources import SourceContext
from frami_edge.sources.procedural import Procedural
from frami_edge_runtime.melspec import MelSpec

_SCALE_STD = 0.7  # each finer scale is weaker by this: the sum is smooth with some texture
_GAIN = (0.5, 1.5)  # contrast of one mel relative to another
_OFFSET_STD = 0.7  # standard deviation of one mel's level, in units of the sum's own


def smooth_noise_mels(spec: MelSpec, n: int, frames: int, seed: int) -> Tensor:
    """Multi-scale smooth noise in the mel plane.

    Gaussian noise at 2x2, 4x4, ... cells, bilinearly enlarged and summed, with a random gain and
    offset per mel; zero mean and unit standard deviation over the set, then clamped to the range of
    the front end.

    Returns:
        (n, 1, M, T) float32 on the CPU, normalised units.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (spec.n_mels, frames)
    mels = torch.zeros(n, 1, *size)
    cells, weight, shape = 2, 1.0, (0, 0)
    while shape != size:
        shape = (min(cells, size[0]), min(cells, size[1]))
        noise = torch.randn(n, 1, *shape, generator=generator)
        mels += weight * F.interpolate(noise, size, mode="bilinear", align_corners=False)
        cells, weight = cells * 2, weight * _SCALE_STD
    low, high = _GAIN
    gain = low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)
    offset = _OFFSET_STD * mels.std() * torch.randn(n, 1, 1, 1, generator=generator)
    mels = mels * gain + offset
    mels = (mels - mels.mean()) / mels.std(correction=0).clamp_min(1e-6)
    floor_M1, ceiling_M1 = (torch.from_numpy(x)[:, None] for x in (spec.floor, spec.ceiling))
    return mels.clamp(floor_M1, ceiling_M1)


def white_noise_mels(spec: MelSpec, n: int, frames: int, seed: int) -> Tensor:
    """Gaussian noise of mean 0 and standard deviation 1, the teacher's input scale; not clamped.

    Returns:
        (n, 1, M, T) float32 on the CPU, normalised units.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, spec.n_mels, frames, generator=generator)


class SmoothNoise(Procedural):
    """Control: multi-scale smooth noise in the mel plane."""

    name = "smooth_noise"
    audible = False

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        self.clips = context.config.control_clips

    def make(self, n: int, seed: int) -> Tensor:
        """(n, 1, M, T) clips."""
        return smooth_noise_mels(self.context.spec, n, self.context.frames, seed)


class WhiteNoise(SmoothNoise):
    """Control: white Gaussian noise with the mean and standard deviation of the teacher's input."""

    name = "white_noise"

    def make(self, n: int, seed: int) -> Tensor:
        """(n, 1, M, T) clips."""
        return white_noise_mels(self.context.spec, n, self.context.frames, seed)
