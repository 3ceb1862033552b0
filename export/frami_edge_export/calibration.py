"""The calibration set: checked, clamped to what the front end can give, split from its judges.

Shape legend: N samples, M mel bands, T mel frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from frami_edge_export.errors import CalibrationError
from frami_edge_export.files import sha256
from frami_edge_export.options import ExportOptions
from frami_edge_export.scoring import with_context
from frami_edge_runtime.melspec import MelSpec

MIN_SAMPLES: Final = 16
MAX_CLAMPED: Final = 0.5
"""More than this share outside the physical range is another front end or normalisation."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CalibrationSet:
    """Two parts of one set, (N, 1, M, T) each with the clip's context; the second sets no range."""

    ranges: Array
    holdout: Array
    clamped: float
    """Share of values that lay outside the physical range."""
    digest: str
    """SHA-256 of ``ranges``."""


def prepare_calibration(
    samples: npt.NDArray[np.floating] | None,
    mel: MelSpec,
    context: tuple[int, int],
    options: ExportOptions,
) -> CalibrationSet:
    """Check, clamp, split, and give every clip its context, so that ranges include it.

    Clamping to the front end's floor and ceiling is worth 9 dB of SQNR on inverted mels, whose
    outliers no microphone can produce and which would stretch every range.

    Args:
        samples: (N, 1, M, T) normalised log-mels.
        mel: The front end.
        context: The student's, in mel frames.
        options: Sizes of the parts, and the seed of the split.

    Raises:
        CalibrationError: The set cannot be log-mels of this front end.
    """
    x = _checked(samples, mel)
    low, high = mel.floor[None, None, :, None], mel.ceiling[None, None, :, None]
    slack = np.float32(1e-3)
    clamped = float(((x < low - slack) | (x > high + slack)).mean())
    if clamped > MAX_CLAMPED:
        raise CalibrationError(
            f"{clamped:.0%} of the calibration values lie outside what the front end can give "
            f"({float(mel.floor.min()):.2f} to {float(mel.ceiling.max()):.2f} normalised).",
            fix="Pass normalised log-mels of this MelSpec: (log(mel) - mean) / std.",
        )
    x = np.clip(x, low, high)
    order = np.random.default_rng(options.seed).permutation(len(x))
    count = min(options.max_calibration, len(x) - max(1, int(len(x) * options.holdout_fraction)))
    ranges = with_context(x[order[:count]], context)
    holdout = with_context(x[order[count : count + options.max_holdout]], context)
    return CalibrationSet(ranges, holdout, clamped, sha256(ranges.tobytes()))


def at_other_levels(
    mels_N1MT: Array, mel: MelSpec, context: tuple[int, int], gain_db: float, seed: int
) -> Array:
    """The same clips louder or softer, each by its own gain between -gain_db and +gain_db.

    A gain shifts a log-mel; the result is clamped to the front end's floor and ceiling.

    Args:
        mels_N1MT: (N, 1, M, T) normalised log-mels with their context, which stays as it is.
        mel: The front end.
        context: The student's, in mel frames.
        gain_db: Largest gain, dB of the waveform.
        seed: Draws the gains.
    """
    per_db = mel.power * math.log(10) / 20 * mel.log_scale / np.asarray(mel.std)
    gains_N = np.random.default_rng(seed).uniform(-gain_db, gain_db, len(mels_N1MT))
    shift_N1M1 = (gains_N[:, None] * np.broadcast_to(per_db, mel.n_mels))[:, None, :, None]
    low, high = mel.floor[None, None, :, None], mel.ceiling[None, None, :, None]
    left, right = context
    clip = slice(left, mels_N1MT.shape[3] - right)
    shifted = mels_N1MT.copy()
    shifted[..., clip] = np.clip(mels_N1MT[..., clip] + shift_N1M1, low, high)
    return shifted


def _checked(samples: npt.NDArray[np.floating] | None, mel: MelSpec) -> Array:
    if samples is None:
        raise CalibrationError(
            "int8 needs a calibration set, and none was given.",
            fix="Pass synthetic mels of the bank, or export without int8.",
        )
    x = np.asarray(samples)
    if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] != mel.n_mels or x.shape[3] == 0:
        raise CalibrationError(
            f"The calibration set has shape {x.shape}, not (N, 1, {mel.n_mels}, T).",
            fix="Use mels of the student's own MelSpec, with a channel axis.",
        )
    if not np.issubdtype(x.dtype, np.floating):
        raise CalibrationError(
            f"The calibration set is {x.dtype}, not float.",
            fix="Pass float32 log-mels, normalised; images of 8 bits are no substitute.",
        )
    if len(x) < MIN_SAMPLES:
        raise CalibrationError(
            f"The calibration set has {len(x)} samples; at least {MIN_SAMPLES} are needed.",
            fix="Take more samples of the bank.",
        )
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise CalibrationError(
            "The calibration set holds values that are not finite.", fix="Make the bank again."
        )
    return x
