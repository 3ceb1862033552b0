"""Procedural audio and the two noises: clips that no teacher had a hand in.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frami_edge.distributed import Rows, world
from frami_edge.inversion.controls import smooth_noise_mels, white_noise_mels
from frami_edge.inversion.procedural import procedural_mels
from frami_edge.inversion.sources.base import NO_LABEL, Batch, Context, named_seed


def shared_procedural(context: Context, n: int, name: str) -> Tensor:
    """(n, 1, M, T) procedural clips, each made by one process of the run and given to all."""
    spec, frames, seed = context.spec, context.config.frames, named_seed(context.seed, name)
    if n < world().size:
        return procedural_mels(spec, n, frames, seed)
    rows = Rows(n)
    own = procedural_mels(spec, rows.size, frames, seed, start=rows.start)
    # Through the device, which the group of processes speaks on.
    device = context.choice.device
    return rows.gather(own.to(device)).cpu() if world().size > 1 else own


class Procedural:
    """Procedural audio through the real front end: no recording and no teacher involved."""

    name = "procedural"
    block = 250

    def __init__(self, context: Context) -> None:
        self.context = context
        self.clips = context.config.procedural_clips
        self.steps = -(-self.clips // self.block)

    def step(self, index: int) -> Batch:
        """The next block of clips."""
        n = min(self.block, self.clips - index * self.block)
        mels = self.make(n, index)
        return Batch(mels, torch.full((n,), NO_LABEL), True, {})

    def make(self, n: int, index: int) -> Tensor:
        """(n, 1, M, T) clips that depend on the seed and on the index only."""
        c = self.context
        return shared_procedural(c, n, f"{self.name}/{index}")

    def state(self) -> dict[str, Any]:
        """Nothing: the clips depend on seed and step alone."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class SmoothNoise(Procedural):
    """Control: multi-scale smooth noise in the mel plane."""

    name = "smooth_noise"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.clips = context.config.control_clips
        self.steps = -(-self.clips // self.block)

    def make(self, n: int, index: int) -> Tensor:
        """(n, 1, M, T) clips."""
        c = self.context
        return smooth_noise_mels(
            c.spec, n, c.config.frames, named_seed(c.seed, f"{self.name}/{index}")
        )


class WhiteNoise(SmoothNoise):
    """Control: white Gaussian noise with the mean and standard deviation of the teacher's input."""

    name = "white_noise"

    def make(self, n: int, index: int) -> Tensor:
        """(n, 1, M, T) clips."""
        c = self.context
        return white_noise_mels(
            c.spec, n, c.config.frames, named_seed(c.seed, f"{self.name}/{index}")
        )
