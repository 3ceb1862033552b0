"""Logits from a trunk graph, as the runtime computes them: float64 statistics, affine head.

Shape legend: B batch, C channels, T' trunk frames, D = 2C, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from frami_edge_runtime.modelfile import TRUNK_INPUT, TRUNK_OUTPUT
from frami_edge_runtime.pooling import mean_std

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

BATCH = 32
"""Mels per run: bounds memory."""


@dataclass(frozen=True)
class Head:
    """Pooling and the affine head, in float64."""

    weight: Array64
    """(K, D)."""
    bias: Array64
    """(K,)."""
    eps: float

    def __call__(self, frames_BCT: npt.NDArray[np.floating]) -> Array64:
        """Frames (B, C, T') to logits (B, K)."""
        logits: Array64 = mean_std(frames_BCT, self.eps) @ self.weight.T + self.bias
        return logits


def with_context(mels_B1MT: Array, context: tuple[int, int]) -> Array:
    """Mel frames of 0, the training mean, before the start and after the end of every clip."""
    return np.pad(mels_B1MT, ((0, 0), (0, 0), (0, 0), tuple(context)))


def run_trunk(session: ort.InferenceSession, mels_B1MT: Array) -> Array:
    """Frames (B, C, T') of many mels, a few at a time."""
    parts = [
        session.run([TRUNK_OUTPUT], {TRUNK_INPUT: mels_B1MT[i : i + BATCH]})[0]
        for i in range(0, len(mels_B1MT), BATCH)
    ]
    return np.concatenate(parts)


def sqnr_db(reference: npt.NDArray[np.floating], found: npt.NDArray[np.floating]) -> float | None:
    """Signal to quantisation noise in dB: 10 log10(Σ ref² / Σ (ref - found)²).

    None where the two are equal.
    """
    reference = reference.astype(np.float64)
    noise = float(((reference - found) ** 2).sum())
    signal = float((reference**2).sum())
    if noise == 0.0:
        return None
    return float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


@dataclass(frozen=True)
class Comparison:
    """Logits of one graph against a reference's, on the same mels."""

    agreement: float
    max_abs_difference: float
    sqnr_db: float | None

    @classmethod
    def of(cls, reference_BK: Array64, found_BK: Array64) -> Comparison:
        """Compare (B, K) with (B, K)."""
        same = reference_BK.argmax(axis=1) == found_BK.argmax(axis=1)
        return cls(
            float(same.mean()),
            float(np.abs(reference_BK - found_BK).max()),
            sqnr_db(reference_BK, found_BK),
        )
