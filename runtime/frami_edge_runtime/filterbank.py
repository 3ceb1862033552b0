"""Triangular mel filters, as torchaudio and librosa define them.

Source: S. Young et al., *The HTK Book* (2 595 log10(1 + f / 700)); M. Slaney, *Auditory Toolbox*
(linear below 1 kHz, logarithmic above).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_SLANEY_HZ_PER_MEL = 200.0 / 3
_SLANEY_KNEE_HZ = 1000.0
_SLANEY_LOG_STEP = math.log(6.4) / 27.0


def hz_to_mel(hz: npt.ArrayLike, scale: str) -> npt.NDArray[np.float64]:
    """Frequency in Hz to mel, on the ``htk`` or ``slaney`` scale."""
    f = np.asarray(hz, dtype=np.float64)
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + f / 700.0))
    knee_mel = _SLANEY_KNEE_HZ / _SLANEY_HZ_PER_MEL
    above = knee_mel + np.log(np.maximum(f, 1e-10) / _SLANEY_KNEE_HZ) / _SLANEY_LOG_STEP
    return np.where(f >= _SLANEY_KNEE_HZ, above, f / _SLANEY_HZ_PER_MEL)


def mel_to_hz(mel: npt.ArrayLike, scale: str) -> npt.NDArray[np.float64]:
    """The inverse of `hz_to_mel`."""
    m = np.asarray(mel, dtype=np.float64)
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (m / 2595.0) - 1.0))
    knee_mel = _SLANEY_KNEE_HZ / _SLANEY_HZ_PER_MEL
    above = _SLANEY_KNEE_HZ * np.exp(_SLANEY_LOG_STEP * (m - knee_mel))
    return np.where(m >= knee_mel, above, _SLANEY_HZ_PER_MEL * m)


def mel_filterbank(
    *,
    n_freqs: int,
    f_min: float,
    f_max: float,
    n_mels: int,
    sample_rate: int,
    norm: str,
    mel_scale: str,
) -> npt.NDArray[np.float32]:
    """Triangles linear in Hz between mel-spaced corners.

    Returns:
        (F, M) float32, contiguous, so that a product with power spectra (T, F) gives (T, M).
    """
    freqs_F = np.linspace(0.0, sample_rate / 2, n_freqs)
    corners = mel_to_hz(
        np.linspace(hz_to_mel(f_min, mel_scale), hz_to_mel(f_max, mel_scale), n_mels + 2), mel_scale
    )
    width = np.diff(corners)
    slopes = corners[None, :] - freqs_F[:, None]
    rising = -slopes[:, :-2] / width[:-1]
    falling = slopes[:, 2:] / width[1:]
    bank_FM = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        bank_FM *= 2.0 / (corners[2:] - corners[:-2])
    return np.ascontiguousarray(bank_FM, dtype=np.float32)
