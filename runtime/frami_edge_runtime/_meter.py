"""What a stream counts while it runs, in bounded memory."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from frami_edge_runtime.result import StreamStats

STEPS_KEPT: Final = 1024
"""Latest steps that the percentiles are taken over: some minutes of a live stream."""


class Meter:
    """Counters and step times; cheap to add to, summed up only when asked.

    Args:
        sample_rate: Hz of the samples counted.
    """

    def __init__(self, sample_rate: int) -> None:
        """Start at zero."""
        self.samples_in = self.dropped = self.gaps = 0
        self.mel_frames = self.frames = self.results = self.steps = 0
        self.busy_s = self.max_step_s = 0.0
        self._rate = sample_rate
        self._ring = np.zeros(STEPS_KEPT)

    def step(self, begun: float) -> None:
        """Count one push, flush or gap that began at this `time.perf_counter`."""
        took = time.perf_counter() - begun
        self._ring[self.steps % STEPS_KEPT] = took
        self.steps += 1
        self.busy_s += took
        self.max_step_s = max(self.max_step_s, took)

    def stats(self, lag_s: float) -> StreamStats:
        """Everything so far."""
        kept = self._ring[: self.steps]
        p50, p99 = np.percentile(kept, (50, 99)) * 1e3 if len(kept) else (0.0, 0.0)
        return StreamStats(
            samples_in=self.samples_in,
            dropped=self.dropped,
            gaps=self.gaps,
            mel_frames=self.mel_frames,
            frames=self.frames,
            results=self.results,
            steps=self.steps,
            audio_s=self.samples_in / self._rate,
            lag_s=lag_s,
            busy_s=self.busy_s,
            p50_step_ms=float(p50),
            p99_step_ms=float(p99),
            max_step_ms=self.max_step_s * 1e3,
        )
