"""How loud it was, by the sample clock, in bounded memory."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import INT16_SCALE

BLOCK_S: Final = 0.01
MOST_BLOCKS: Final = 4096
QUIETEST_DB: Final = -120.0


class LevelMeter:
    """Mean power of any latest stretch, to within one block at each end.

    Args:
        sample_rate: Hz.
        span_s: How far back can be asked; blocks are 10 ms, longer for very long spans.
    """

    def __init__(self, sample_rate: int, span_s: float) -> None:
        """Allocate."""
        seconds = max(BLOCK_S, span_s / MOST_BLOCKS)
        self._block = max(1, round(seconds * sample_rate))
        self._rate = sample_rate
        size = math.ceil(span_s * sample_rate / self._block) + 2
        self._energy = np.zeros(size)
        self._count = np.zeros(size)
        self._clock = 0

    def push(self, samples: npt.NDArray[Any]) -> None:
        """Take (N,) int16 or float samples with full scale at 32768 or 1."""
        most = (len(self._energy) - 1) * self._block
        for begin in range(0, len(samples), most):
            self._add(samples[begin : begin + most])

    def _add(self, samples: npt.NDArray[Any]) -> None:
        index, used = divmod(self._clock, self._block)
        x = samples.astype(np.float64)
        if samples.dtype.kind == "i":
            x *= float(INT16_SCALE)
        starts = np.arange(-used, len(x), self._block)
        starts[0] = 0
        at = (index + np.arange(len(starts))) % len(self._energy)
        fresh = at[1:] if used else at
        self._energy[fresh] = self._count[fresh] = 0
        self._energy[at] += np.add.reduceat(x * x, starts)
        self._count[at] += np.diff(starts, append=len(x))
        self._clock += len(x)

    def lose(self, samples: int) -> None:
        """Let time pass unheard."""
        first, last = self._clock // self._block, (self._clock + samples) // self._block
        for index in range(max(first + 1, last - len(self._energy) + 1), last + 1):
            self._energy[index % len(self._energy)] = self._count[index % len(self._energy)] = 0
        self._clock += samples

    def level_db(self, t0: float, t1: float) -> float:
        """RMS of what was heard from ``t0`` to ``t1`` s, in dB of full scale, -120 at least.

        A full-scale sine has -3 dB. What is farther back than the span is left out.
        """
        newest = self._clock // self._block
        first = max(int(t0 * self._rate / self._block), newest - len(self._energy) + 1)
        last = min(math.ceil(t1 * self._rate / self._block), newest + 1)
        at = np.arange(first, max(first, last)) % len(self._energy)
        count = self._count[at].sum()
        power = self._energy[at].sum() / count if count else 0.0
        return max(QUIETEST_DB, 10 * math.log10(power) if power > 0 else QUIETEST_DB)
