"""NumPy's float32 real FFT, by the shortest way that this NumPy has.

``np.fft.rfft`` computes float32 frames in float64 unless a norm is given, and its Python wrapper
takes as long as the transform of a short frame. NumPy 2's own ufunc is called directly where a
trial shows that it gives the same bits; otherwise the public function is called.

On some machines (arm64) NumPy transforms a few rows at once in one vector, and rounds a row
differently when it is alone. There only whole groups of rows are transformed, so that a frame's
spectrum never depends on its company.

Shape legend: n frames, N samples of a frame, F = N // 2 + 1 frequency bins.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Rfft = Callable[[npt.NDArray[np.float32], npt.NDArray[np.complex64]], None]

# Before NumPy 2 the FFT knows float64 only and takes no output array.
_MODERN: Final = int(np.__version__.split(".")[0]) >= 2


@functools.lru_cache(maxsize=16)  # the trial costs more than a push
def rfft_over_n(n_fft: int) -> Rfft:
    """A function of frames (n, N) that puts their spectra, divided by N, into an array (n, F).

    Args:
        n_fft: Samples of a frame (N).
    """
    direct = _direct(n_fft) if _MODERN else None
    if direct is not None:
        return direct
    return _public if _MODERN else _old


@functools.lru_cache(maxsize=16)
def rows_together(n_fft: int, group: int) -> int:
    """How many rows have to be transformed together for equal bits in any company.

    Args:
        n_fft: Samples of a frame (N).
        group: Rows that the caller can always give together.

    Returns:
        1, or ``group``; 0 where not even whole groups are alike: then one row at a time.
    """
    rfft = rfft_over_n(n_fft)
    frames = np.cos(np.arange(4 * group * n_fft, dtype=np.float32) ** 2).reshape(-1, n_fft)

    def alike(rows: int) -> bool:
        expected = np.concatenate(
            [_spectra(rfft, part) for part in np.split(frames, len(frames) // rows)]
        )
        counts = range(rows, len(frames) + 1, rows)
        return all(np.array_equal(_spectra(rfft, frames[:n]), expected[:n]) for n in counts)

    return next((rows for rows in (1, group) if alike(rows)), 0)


def one_by_one(rfft: Rfft) -> Rfft:
    """The same transform, a row at a time."""

    def single(frames_nN: npt.NDArray[np.float32], spectra_nF: npt.NDArray[np.complex64]) -> None:
        for i in range(len(frames_nN)):
            rfft(frames_nN[i : i + 1], spectra_nF[i : i + 1])

    return single


def _spectra(rfft: Rfft, frames_nN: npt.NDArray[np.float32]) -> npt.NDArray[np.complex64]:
    spectra_nF = np.empty((len(frames_nN), frames_nN.shape[1] // 2 + 1), np.complex64)
    rfft(frames_nN, spectra_nF)
    return spectra_nF


def _public(frames_nN: npt.NDArray[np.float32], spectra_nF: npt.NDArray[np.complex64]) -> None:
    out: Any = spectra_nF  # NumPy's stubs know complex128 only
    np.fft.rfft(frames_nN, axis=1, norm="forward", out=out)


def _old(frames_nN: npt.NDArray[np.float32], spectra_nF: npt.NDArray[np.complex64]) -> None:
    spectra_nF[...] = np.fft.rfft(frames_nN, axis=1, norm="forward")


def _direct(n_fft: int) -> Rfft | None:
    try:
        ufuncs: Any = importlib.import_module("numpy.fft._pocketfft_umath")
        ufunc = ufuncs.rfft_n_odd if n_fft % 2 else ufuncs.rfft_n_even
        scale = np.array(np.reciprocal(n_fft, dtype=np.float32))

        def direct(
            frames_nN: npt.NDArray[np.float32], spectra_nF: npt.NDArray[np.complex64]
        ) -> None:
            ufunc(frames_nN, scale, spectra_nF)

        trial = np.cos(np.arange(3 * n_fft, dtype=np.float32) ** 2).reshape(3, n_fft)
        ours, theirs = np.zeros((2, 3, n_fft // 2 + 1), np.complex64)
        direct(trial, ours)
        _public(trial, theirs)
    except Exception:  # whatever a private name may do in another NumPy
        return None
    return direct if np.array_equal(ours, theirs) else None
