"""What counts as audio, and the one rule for clips that are too short."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import AudioError

INT16_SCALE: Final = np.float32(1 / 32768)
FULL_SCALE_LIMIT: Final = 16.0
"""Float samples beyond this (24 dB over full scale) are integers in disguise, not audio."""
LOWEST_RATE: Final = 1_000
HIGHEST_RATE: Final = 768_000
_KINDS: Final = "hfd"  # int16, float32, float64
_SHORT_CHUNK: Final = 4096


def check_samples(samples: Any) -> npt.NDArray[Any]:
    """Mono samples as int16 or float32, otherwise unchanged; may be empty.

    The rules: 1-D; int16 (full scale 32768) or float32 / float64 (full scale 1, float64 is rounded
    to float32); finite, and within +-16, so that int16 values in a float array are an error and not
    a wrong answer. Any strides and byte order.

    Raises:
        AudioError: Anything else: stereo, other dtypes, NaN or infinity, lists of integers.
    """
    x = samples if type(samples) is np.ndarray else _as_array(samples)
    kind = x.dtype.char
    if kind not in _KINDS:
        raise AudioError(
            f"Samples must be int16, float32 or float64, not {x.dtype}.", fix=_dtype_fix(x.dtype)
        )
    if x.ndim != 1:
        mean = "samples.mean(axis=...)" + (".astype(np.int16)" if x.dtype == np.int16 else "")
        raise AudioError(
            f"Samples must be mono, of shape (N,), not {x.shape}.",
            fix=f"Take one channel, or average them: {mean}.",
        )
    if kind == "h":
        return x
    if x.size and not _within_limit(x):
        raise AudioError(_why_unusable(x), fix=_value_fix(x))
    return x if kind == "f" else x.astype(np.float32)


def check_rate(sample_rate: Any) -> int:
    """A sample rate in Hz as a plain integer.

    Raises:
        AudioError: Not a whole number of Hz in 1,000..768,000.
    """
    integer = isinstance(sample_rate, (int, np.integer)) and not isinstance(sample_rate, bool)
    whole = isinstance(sample_rate, (float, np.floating)) and float(sample_rate).is_integer()
    if not (integer or whole) or not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise AudioError(
            f"sample_rate must be a whole number of Hz in {LOWEST_RATE}..{HIGHEST_RATE}, "
            f"not {str(sample_rate)[:40]}.",
            fix="Give the rate that the samples were recorded at, for example 48000.",
        )
    return int(sample_rate)


def repeat_to(x: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """The rule for what is too short: repeat it from its start, in order, up to ``length``.

    It is used by the offline and the streaming path alike, on samples that are fewer than
    `MelSpec.min_samples`. What is long enough is returned unchanged. Repetition keeps the
    statistics of the sound, which zeros would not.

    Args:
        x: (N, ...) with N >= 1; repeated along the first axis.
        length: Wanted N.

    Raises:
        AudioError: ``x`` is empty: there is nothing to repeat.
    """
    if len(x) >= length:
        return x
    if len(x) == 0:
        raise AudioError(
            "There are no samples to classify.", fix="Pass at least one sample of audio."
        )
    return np.take(x, np.arange(length) % len(x), axis=0)


def _within_limit(x: npt.NDArray[Any]) -> bool:
    # NaN fails every comparison, so none of these lets it pass. On a short chunk one dot product is
    # twice as fast as two reductions, and usually settles it.
    if x.size <= _SHORT_CHUNK and x.dot(x) <= FULL_SCALE_LIMIT**2:
        return True
    return bool(x.max() <= FULL_SCALE_LIMIT and x.min() >= -FULL_SCALE_LIMIT)


def _as_array(samples: Any) -> npt.NDArray[Any]:
    if np.ma.isMaskedArray(samples) and np.ma.is_masked(samples):
        raise AudioError(
            "Some samples are masked.", fix="Decide what they are: samples.filled(0) is silence."
        )
    try:
        return np.asarray(samples)
    except Exception:  # whatever a foreign array raises, such as a tensor that needs gradients
        raise AudioError(
            f"Samples of type {type(samples).__name__} are no array of numbers.",
            fix="Pass a 1-D NumPy array of int16 or float32.",
        ) from None


def _dtype_fix(dtype: np.dtype[Any]) -> str:
    if dtype == np.uint8:
        return "For 8-bit PCM pass (samples.astype(np.float32) - 128) / 128."
    if dtype == np.int32:
        return "For 32-bit PCM pass samples / 2**31; for 24-bit in 32, samples / 2**23."
    if dtype.kind in "iub":
        return "Pass samples.astype(np.int16) if the values are 16-bit PCM."
    return "Pass samples.astype(np.float32) with full scale at 1."


def _why_unusable(x: npt.NDArray[Any]) -> str:
    if not np.isfinite(x).all():
        return f"Samples hold {int((~np.isfinite(x)).sum())} values that are NaN or infinite."
    return f"Float samples reach {float(np.abs(x).max()):.6g}; full scale is 1."


def _value_fix(x: npt.NDArray[Any]) -> str:
    if not np.isfinite(x).all():
        return "Check the capture or decoding step; numpy.nan_to_num hides it at your own risk."
    return "If these are 16-bit values, divide by 32768 or pass them as int16."
