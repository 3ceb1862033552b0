"""Feeds beside the bank: clips in memory and real clips, for control rows.

Shape legend: N clips, M mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frami_edge.augment import random_crop


def repeat_to(mel_MT: Tensor, frames: int) -> Tensor:
    """Repeat a clip from its start until it has ``frames`` frames; longer ones stay as they are."""
    t = mel_MT.shape[-1]
    return mel_MT if t >= frames else mel_MT[..., torch.arange(frames) % t]


class TensorFeed:
    """Random clips of equal length that lie in memory.

    Args:
        mels_N1MT: Normalised log-mels.
    """

    def __init__(self, mels_N1MT: Tensor) -> None:
        self.mels = mels_N1MT

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T)."""
        return self.mels[torch.randint(0, len(self.mels), (n,), generator=generator)]


class ClipFeed:
    """Random stretches of real clips of any length: a control, never a part of the journey.

    Args:
        mels: (M, T_i) normalised log-mels.
        frames: T of every stretch; shorter clips are repeated.
    """

    def __init__(self, mels: Sequence[Tensor], frames: int) -> None:
        self.mels, self.frames = [repeat_to(m, frames) for m in mels], frames

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T)."""
        index = torch.randint(0, len(self.mels), (n,), generator=generator).tolist()
        clips = [random_crop(self.mels[i][None, None], self.frames, generator) for i in index]
        return torch.cat(clips)
