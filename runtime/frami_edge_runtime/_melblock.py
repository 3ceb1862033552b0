"""The arithmetic of a block of log-mel frames, in memory that is allocated once.

Three habits of NumPy shape the code. Ufuncs on strided 2-D arrays go through slow buffers, so all
arithmetic runs on flat contiguous views. A slice costs as much as the arithmetic on a short frame,
so views are made once for every (row, number of frames). And every call costs a third of a
microsecond, so the scale of the FFT is undone by the taper, and the floor is one more bin.

Shape legend: F frequency bins, M mel bands, N samples of an FFT, n frames.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._rfft import one_by_one, rfft_over_n, rows_together
from frami_edge_runtime.melspec import MelSpec

ROWS: Final = 4
"""Frames in one filter-bank product; small enough for a single frame, large enough for a clip."""
_BLOCK_BYTES: Final = 1 << 17
_LONGEST_BLOCK: Final = 64
_MOST_VIEWS: Final = 32  # 1.5 kB each; a microphone's chunks need about 8


class _Views(NamedTuple):
    windowed: npt.NDArray[np.float32]  # (n, win), strided
    flat: npt.NDArray[np.float32]  # (n * N,)
    taper: npt.NDArray[np.float32]  # (n * N,)
    frames: npt.NDArray[np.float32]  # (n, N), or the whole groups that hold them
    spectra: npt.NDArray[np.complex64]  # their (n, F), strided
    pairs: npt.NDArray[np.float32]  # (n * (F + 1) * 2,)
    real: npt.NDArray[np.float32]  # (n * (F + 1),), strided
    imag: npt.NDArray[np.float32]  # (n * (F + 1),), strided
    power: npt.NDArray[np.float32]  # (n * (F + 1),)
    groups: npt.NDArray[np.float32]  # (groups, ROWS, F + 1)
    bands: npt.NDArray[np.float32]  # (groups, ROWS, M)
    mel: npt.NDArray[np.float32]  # (n, M)


class MelBlock:
    """Working memory and arithmetic for up to ``most`` frames; keeps nothing between calls.

    Args:
        spec: The front end.
    """

    def __init__(self, spec: MelSpec) -> None:
        """Allocate a block that fits a small core's cache."""
        fits = min(_LONGEST_BLOCK, max(1, _BLOCK_BYTES // (4 * spec.n_fft)))
        groups = -(-fits // ROWS) + 1
        self.most = (groups - 1) * ROWS
        """Frames of one call, whatever its row."""
        n_freqs = spec.n_fft // 2 + 1
        size = groups * ROWS
        self._left = (spec.n_fft - spec.win_length) // 2
        self._win = spec.win_length
        self._rfft = rfft_over_n(spec.n_fft)
        self._together = rows_together(spec.n_fft, ROWS)
        if self._together == 0:
            self._rfft = one_by_one(self._rfft)
        self._frames = np.zeros((size, spec.n_fft), np.float32)
        taper = np.zeros(spec.n_fft)
        taper[self._left : self._left + spec.win_length] = spec.window * spec.n_fft
        self._taper = np.tile(taper.astype(np.float32), size)
        # One more bin that is always 1 brings the floor through the filter bank.
        self._spectra = np.ones((size, n_freqs + 1), np.complex64)
        self._power = np.ones((groups, ROWS, n_freqs + 1), np.float32)
        self._mel = np.ones((groups, ROWS, spec.n_mels), np.float32)
        self._clamps = spec.log_floor == "clamp"
        self._eps = np.float32(spec.log_eps)
        floor = np.full((1, spec.n_mels), 0.0 if self._clamps else spec.log_eps, np.float32)
        self._bank = np.concatenate([spec.filterbank, floor])
        self._root = spec.power == 1
        std = np.asarray(spec.std, np.float64)
        self._scale = np.asarray(spec.log_scale / std, np.float32)
        self._shift = np.asarray(-np.asarray(spec.mean, np.float64) / std, np.float32)
        self._normalises = bool((self._scale != 1).any() or (self._shift != 0).any())
        self._views: dict[tuple[int, int], _Views] = {}

    def compute(
        self, windows: npt.NDArray[np.float32], row: int, out_nM: npt.NDArray[np.float32]
    ) -> None:
        """Log-mel of n frames.

        Args:
            windows: (n, win_length) samples under the window, n <= most.
            row: The first frame's number modulo `ROWS`: its place in the product.
            out_nM: (n, M) float32, contiguous; receives the normalised log-mel.
        """
        views = self._views.get((row, len(windows))) or self._new_views(row, len(windows))
        # Local names and positional outputs: attributes and keywords cost 5 % of a short push.
        windowed, flat, taper, frames, spectra, pairs, real, imag, power, groups, bands, mel = views
        np.copyto(windowed, windows)
        np.multiply(flat, taper, flat)
        self._rfft(frames, spectra)
        np.multiply(pairs, pairs, pairs)
        np.add(real, imag, power)
        if self._root:
            np.sqrt(power, power)
        np.matmul(groups, self._bank, bands)
        if self._clamps:
            np.maximum(mel, self._eps, out=mel)
        np.log(mel, out_nM)
        if self._normalises:
            np.multiply(out_nM, self._scale, out_nM)
            np.add(out_nM, self._shift, out_nM)

    def _new_views(self, row: int, n: int) -> _Views:
        end = row + n
        groups = -(-end // ROWS)
        frames, spectra = self._frames[row:end], self._spectra[row:end]
        first, last = (0, groups * ROWS) if self._together == ROWS else (row, end)
        pairs = spectra.reshape(-1).view(np.float32)
        views = _Views(
            windowed=frames[:, self._left : self._left + self._win],
            flat=frames.reshape(-1),
            taper=self._taper[: frames.size],
            frames=self._frames[first:last],
            spectra=self._spectra[first:last, :-1],
            pairs=pairs,
            real=pairs[0::2],
            imag=pairs[1::2],
            power=self._power.reshape(len(self._frames), -1)[row:end].reshape(-1),
            groups=self._power[:groups],
            bands=self._mel[:groups],
            mel=self._mel.reshape(len(self._frames), -1)[row:end],
        )
        if len(self._views) >= _MOST_VIEWS:
            self._views.clear()
        self._views[row, n] = views
        return views
