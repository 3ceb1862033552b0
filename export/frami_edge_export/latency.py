"""Latency of several graphs in the same seconds: interleaving is fair on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

MIN_ROUNDS = 15
_WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Percentiles of one graph, milliseconds."""

    p50_ms: float
    p95_ms: float
    rounds: int


def interleaved_latency(
    sessions: Mapping[str, ort.InferenceSession],
    feeds: Mapping[str, Mapping[str, npt.NDArray[np.float32]]],
    *,
    budget_s: float,
    max_rounds: int,
) -> dict[str, Latency]:
    """Time each session once a round, in an order that turns from round to round.

    Args:
        sessions: By name.
        feeds: Inputs of each session, by its name and theirs.
        budget_s: Seconds to spend in all; at least `MIN_ROUNDS` rounds are run.
        max_rounds: Stop after so many.
    """
    names = list(sessions)
    for name in names:
        for _ in range(_WARM_UP):
            sessions[name].run(None, feeds[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget_s
    rounds = 0
    while rounds < max_rounds and (rounds < MIN_ROUNDS or time.perf_counter() < end):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            sessions[name].run(None, feeds[name])
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {
        name: Latency(float(np.median(t)), float(np.percentile(t, 95)), rounds)
        for name, t in times.items()
    }
