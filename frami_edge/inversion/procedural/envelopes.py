"""Random loudness over time, drawn at a low control rate and interpolated."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from frami_edge.inversion.procedural import ranges
from frami_edge.inversion.procedural.draw import (
    Rng,
    Samples,
    amplitude,
    chance,
    log_uniform,
    stretch,
    wander,
)

_CONTROL_HZ = 1000
"""Hz: a millisecond, the shortest attack that is not a click."""

_ATTACK_S = (0.002, 0.5)
_DECAY_S = (0.01, 2.0)
"""Seconds, log: plucked and struck to blown and bowed."""

_WANDER_HZ = (0.5, 16.0)
"""Hz, log: from breathing and wind to the rate of syllables."""

_WANDER_STD_DB = 9.0
"""dB, largest standard deviation of the loudness of one sound."""


def envelope(rng: Rng, n: int, sample_rate: int, *, sustained: bool) -> Samples:
    """(n,) gains in [0, about 3]: attack and decay, swell, gate or plateau, with random modulation.

    Args:
        rng: Source of chance.
        n: Samples.
        sample_rate: Hz.
        sustained: No onset and no end, only modulation.
    """
    seconds = n / sample_rate
    m = max(int(seconds * _CONTROL_HZ), 8)
    t = np.linspace(0.0, seconds, m)
    gain = np.ones(m)
    if not sustained:
        shape = (_attack_decay, _swell, _gates, _plateau)[int(rng.integers(4))]
        gain = shape(rng, t) * _fades(rng, t)
    if chance(rng, 0.5):
        knots = int(seconds * log_uniform(rng, *_WANDER_HZ)) + 2
        db = wander(rng, m, knots) * rng.uniform(0.0, _WANDER_STD_DB)
        gain *= 10.0 ** (np.minimum(db, _WANDER_STD_DB) / 20.0)
    if chance(rng, 0.25):
        rate = log_uniform(rng, *ranges.AM_HZ)
        depth = rng.uniform(0.2, 1.0)
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (rate * t + rng.random()))
        gain *= 1.0 - depth + depth * wave ** rng.uniform(0.5, 4.0)
    return stretch(gain, n)


def dips(rng: Rng, n: int, sample_rate: int) -> Samples:
    """(n,) gains with one to three segments of near-silence of 5 to 40 % of the clip each."""
    m = max(n * _CONTROL_HZ // sample_rate, 8)
    gain = np.ones(m)
    for _ in range(int(rng.integers(1, 4))):
        width = max(int(m * rng.uniform(0.05, 0.4)), 1)
        start = int(rng.integers(0, m))
        gain[start : start + width] = amplitude(-rng.uniform(*ranges.DIP_DB))
    return stretch(gain, n)


def _attack_decay(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    attack = min(log_uniform(rng, *_ATTACK_S), 0.5 * t[-1])
    decay = log_uniform(rng, *_DECAY_S)
    after = np.maximum(t - attack, 0.0)
    return np.asarray(np.minimum(t / attack, 1.0) * np.exp(-after / decay))


def _swell(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # x**skew moves the peak away from the middle: rising, falling or even.
    x = (t / t[-1]) ** log_uniform(rng, 0.4, 2.5)
    return np.asarray(np.abs(np.sin(np.pi * x)) ** rng.uniform(0.5, 3.0))


def _gates(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    period = log_uniform(rng, 0.04, max(t[-1] / 2, 0.05))
    count = max(int(t[-1] / period), 1)
    edges = np.sort(rng.uniform(0.0, t[-1], 2 * count))
    is_open = np.searchsorted(edges, t) % 2 == int(rng.integers(2))
    closed = amplitude(-rng.uniform(12.0, ranges.DIP_DB[1]))
    return np.where(is_open, 1.0, closed)


def _plateau(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.ones_like(t)


def _fades(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Of at most a third of the event each, so that something remains between them.
    fade_in, fade_out = (min(log_uniform(rng, 0.002, 0.2), t[-1] / 3) for _ in range(2))
    return np.asarray(np.minimum(t / fade_in, 1.0) * np.minimum((t[-1] - t) / fade_out, 1.0))
