"""How far the answers of two models are apart.

Shape legend: N clips, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frami_edge.errors import ModelFileError
from frami_edge_export.scoring import sqnr_db


@dataclass(frozen=True)
class Answers:
    """Logits of a second model against those of a first, on the same clips."""

    clips: int
    agreement: float
    """Share of clips on which both name the same class."""
    max_abs_difference: float
    """Largest |difference| of a logit."""
    kl_nats: float
    """Mean KL(first ‖ second) over the clips."""
    sqnr_db: float | None
    """Signal of the first to the difference, dB; None where there is none."""
    worst_clip: str
    """Where the largest difference is."""
    disagreeing: tuple[str, ...]
    """Clips on which they name different classes, the first 8."""


def compare_answers(
    first_NK: npt.NDArray[np.floating], second_NK: npt.NDArray[np.floating], names: list[str]
) -> Answers:
    """Compare (N, K) with (N, K).

    Raises:
        ModelFileError: A logit is not finite, or the shapes differ.
    """
    a, b = first_NK.astype(np.float64), second_NK.astype(np.float64)
    if a.shape != b.shape:
        raise ModelFileError(
            f"The first model answers {a.shape}, the second {b.shape}.",
            fix="Compare two models of the same classes.",
        )
    for which, z in (("first", a), ("second", b)):
        if not np.isfinite(z).all():
            where = names[int((~np.isfinite(z)).any(axis=1).argmax())]
            raise ModelFileError(
                f"The {which} model answers with values that are not finite on {where}.",
                fix="Its weights overflow: distil the student again.",
            )
    apart = np.abs(a - b).max(axis=1)
    same = a.argmax(axis=1) == b.argmax(axis=1)
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    kl = (np.exp(log_a) * (log_a - log_b)).sum(axis=1)
    return Answers(
        clips=len(a),
        agreement=float(same.mean()),
        max_abs_difference=float(apart.max()),
        kl_nats=float(np.maximum(kl, 0).mean()),
        sqnr_db=sqnr_db(a, b),
        worst_clip=names[int(apart.argmax())],
        disagreeing=tuple(names[i] for i in np.flatnonzero(~same)[:8]),
    )


def _log_softmax(z_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = z_NK - z_NK.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
