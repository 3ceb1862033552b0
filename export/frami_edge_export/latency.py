"""Latency of several graphs in the same seconds: interleaving is fair on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

MIN_ROUNDS = 15
_WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Percentiles of one graph or call, milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    rounds: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Latency:
        """Of the times of all rounds, milliseconds."""
        p50, p95, p99 = (float(np.percentile(times_ms, p)) for p in (50, 95, 99))
        return cls(p50, p95, p99, len(times_ms))


def interleaved_latency(
    sessions: Mapping[str, ort.InferenceSession],
    feeds: Mapping[str, Mapping[str, npt.NDArray[np.float32]]],
    *,
    budget_s: float,
    max_rounds: int,
) -> dict[str, Latency]:
    """`interleaved` runs of ONNX Runtime sessions.

    Args:
        sessions: By name.
        feeds: Inputs of each session, by its name and theirs.
        budget_s: Seconds to spend in all; at least `MIN_ROUNDS` rounds are run.
        max_rounds: Stop after so many.
    """

    def call(name: str) -> Callable[[], object]:
        return lambda: sessions[name].run(None, feeds[name])

    return interleaved({n: call(n) for n in sessions}, budget_s=budget_s, max_rounds=max_rounds)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, budget_s: float, max_rounds: int
) -> dict[str, Latency]:
    """Time each call once a round, in an order that turns from round to round.

    Args:
        calls: By name; each does the same work every time.
        budget_s: Seconds to spend in all; at least `MIN_ROUNDS` rounds are run.
        max_rounds: Stop after so many.
    """
    names = list(calls)
    for name in names:
        for _ in range(_WARM_UP):
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget_s
    rounds = 0
    while rounds < max_rounds and (rounds < MIN_ROUNDS or time.perf_counter() < end):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            # Untimed: a device runs one model, so the others must not have emptied its caches.
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {name: Latency.of(t) for name, t in times.items()}
