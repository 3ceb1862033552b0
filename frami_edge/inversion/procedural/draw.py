"""Small random draws that the rest of procedural audio is made of."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Rng: TypeAlias = np.random.Generator
Samples: TypeAlias = npt.NDArray[np.float32]


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """One number between two positive ones, uniform in its logarithm."""
    return float(low * (max(high, low) / low) ** rng.random())


def chance(rng: Rng, share: float) -> bool:
    """True in the given share of draws."""
    return bool(rng.random() < share)


def amplitude(db: float) -> float:
    """Decibels to an amplitude ratio."""
    return float(10.0 ** (db / 20.0))


def wander(rng: Rng, n: int, knots: int) -> npt.NDArray[np.float64]:
    """(n,) smooth random curve: standard normal values at ``knots`` places, linear between them."""
    heights = rng.standard_normal(max(knots, 2))
    return np.interp(np.linspace(0.0, len(heights) - 1.0, n), np.arange(len(heights)), heights)


def stretch(curve: npt.NDArray[np.float64], n: int) -> Samples:
    """(n,) float32: a curve at control rate, linearly interpolated to n samples."""
    at = np.linspace(0.0, len(curve) - 1.0, n)
    return np.interp(at, np.arange(len(curve)), curve).astype(np.float32)


def peak_normalised(x: Samples) -> Samples:
    """The samples scaled to a largest magnitude of 1; silence stays silence."""
    peak = float(np.abs(x).max(initial=0.0))
    return x / np.float32(peak) if peak > 1e-12 else x


def fast_length(n: int) -> int:
    """The smallest of 2^k, 5 2^(k-2), 3 2^(k-1) at or above n: lengths whose FFT is fast."""
    power = 1 << max(3, math.ceil(math.log2(max(n, 2))))
    return next(size for size in (power // 8 * 5, power // 4 * 3, power) if size >= n)
