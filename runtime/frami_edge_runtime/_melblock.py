"""The arithmetic of a block of log-mel frames, in memory that is allocated once.

The spectrum is computed in float64 and rounded once: NumPy 1 knows no other FFT, and so the
features are the same on every NumPy, with the error of the float32 FFT gone.

Two habits of NumPy shape the code. Ufuncs on strided 2-D arrays go through slow buffers, so all
arithmetic runs on flat contiguous views. And a slice costs as much as the arithmetic on a short
frame, so views are made once for every (row, number of frames).

Shape legend: F frequency bins, M mel bands, n frames.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.melspec import MelSpec

ROWS: Final = 8
"""Frames in one filter-bank product; small enough for a single frame, large enough for a clip."""
_BLOCK_BYTES: Final = 1 << 18
_LONGEST_BLOCK: Final = 64
# Before NumPy 2 the FFT takes no output array.
_RFFT_OUT: Final[bool] = int(np.__version__.split(".")[0]) >= 2


class _Views(NamedTuple):
    windowed: npt.NDArray[np.float64]  # (n, win), strided
    flat: npt.NDArray[np.float64]  # (n * n_fft,)
    taper: npt.NDArray[np.float64]  # (n * n_fft,)
    frames: npt.NDArray[np.float64]  # (n, n_fft)
    spectrum: Any  # (n, F) complex128
    pairs: npt.NDArray[np.float64]  # (n * F * 2,)
    real: npt.NDArray[np.float64]  # (n * F,), strided
    imag: npt.NDArray[np.float64]  # (n * F,), strided
    power: npt.NDArray[np.float32]  # (n * F,)
    groups: npt.NDArray[np.float32]  # (groups, ROWS, F)
    bands: npt.NDArray[np.float32]  # (groups, ROWS, M)
    mel: npt.NDArray[np.float32]  # (n, M)


class MelBlock:
    """Working memory and arithmetic for up to ``size`` frames.

    Args:
        spec: The front end.
    """

    def __init__(self, spec: MelSpec) -> None:
        """Allocate a block that fits a small core's cache."""
        size = min(_LONGEST_BLOCK, max(1, _BLOCK_BYTES // (8 * spec.n_fft)))
        self.size = -(-size // ROWS) * ROWS
        """Frames; a multiple of `ROWS`."""
        n_freqs = spec.n_fft // 2 + 1
        groups = self.size // ROWS
        self._left = (spec.n_fft - spec.win_length) // 2
        self._win = spec.win_length
        self._frames = np.zeros((self.size, spec.n_fft))
        self._spectrum = np.zeros((self.size, n_freqs), np.complex128)
        self._power = np.zeros((groups, ROWS, n_freqs), np.float32)
        self._mel = np.zeros((groups, ROWS, spec.n_mels), np.float32)
        taper = np.zeros(spec.n_fft)
        taper[self._left : self._left + spec.win_length] = spec.window
        self._taper = np.tile(taper, self.size)
        self._bank = spec.filterbank
        self._root = spec.power == 1
        self._floor = np.add if spec.log_floor == "add" else np.maximum
        self._eps = np.float32(spec.log_eps)
        std = np.asarray(spec.std, np.float64)
        self._scale = np.asarray(spec.log_scale / std, np.float32)
        self._shift = np.asarray(-np.asarray(spec.mean, np.float64) / std, np.float32)
        self._normalises = bool((self._scale != 1).any() or (self._shift != 0).any())
        self._views: dict[tuple[int, int], _Views] = {}

    def compute(
        self, windows: npt.NDArray[np.float64], row: int, out_nM: npt.NDArray[np.float32]
    ) -> None:
        """Log-mel of n frames.

        Args:
            windows: (n, win_length) samples under the window, n <= size - row.
            row: The first frame's number modulo `ROWS`: its place in the product.
            out_nM: (n, M) float32, contiguous; receives the normalised log-mel.
        """
        n = len(windows)
        v = self._views.get((row, n)) or self._new_views(row, n)
        np.copyto(v.windowed, windows)
        np.multiply(v.flat, v.taper, out=v.flat)
        if _RFFT_OUT:
            np.fft.rfft(v.frames, axis=1, out=v.spectrum)
        else:
            np.copyto(v.spectrum, np.fft.rfft(v.frames, axis=1))
        np.multiply(v.pairs, v.pairs, out=v.pairs)
        np.add(v.real, v.imag, out=v.power, casting="same_kind")
        if self._root:
            np.sqrt(v.power, out=v.power)
        np.matmul(v.groups, self._bank, out=v.bands)
        self._floor(v.mel, self._eps, out=out_nM)
        np.log(out_nM, out=out_nM)
        if self._normalises:
            np.multiply(out_nM, self._scale, out=out_nM)
            np.add(out_nM, self._shift, out=out_nM)

    def _new_views(self, row: int, n: int) -> _Views:
        end = row + n
        groups = -(-end // ROWS)
        frames, spectrum = self._frames[row:end], self._spectrum[row:end]
        pairs = spectrum.reshape(-1).view(np.float64)
        views = _Views(
            windowed=frames[:, self._left : self._left + self._win],
            flat=frames.reshape(-1),
            taper=self._taper[: frames.size],
            frames=frames,
            spectrum=spectrum,
            pairs=pairs,
            real=pairs[0::2],
            imag=pairs[1::2],
            power=self._power.reshape(self.size, -1)[row:end].reshape(-1),
            groups=self._power[:groups],
            bands=self._mel[:groups],
            mel=self._mel.reshape(self.size, -1)[row:end],
        )
        self._views[row, n] = views
        return views
