"""Exact streaming log-mel in NumPy: any chunking gives the offline features, bit for bit.

Frame t covers samples [t hop, t hop + n_fft) (shifted by n_fft // 2 into reflected padding with
``center=True``), so the state between pushes is the unread tail and nothing else.

Why chunkings cannot differ: every step up to the power spectrum works on one frame at a time, and
the product with the filter bank is always the same (ROWS, F) x (F, M) product, with frame t in row
t % ROWS. A BLAS may round one row differently in products of other sizes, never in the same one.

How exact: float32, like the torchaudio that teachers are trained with, and as exact as it. Largest
error against the same front end in float64 (16 kHz, 64 bands, ln, eps 1e-6):

=======================  =====  ==========
signal                    here  torchaudio
=======================  =====  ==========
noise                     2e-6        2e-5
sine sweep, energy        1e-3        2e-3
sine sweep, magnitude      0.6         0.6
16-bit sine, energy       5e-4        3e-3
16-bit sine, magnitude    3e-2        3e-2
=======================  =====  ==========

All but the first happen in bands 100 dB below a tone, near the floor, and the training features
carry the same errors. A float64 FFT gives 1e-6 for all, and costs a quarter more time for 100 ms.
NumPy 1 has no other, so its features differ from NumPy 2's by what the table says.

Shape legend: M mel bands, F frequency bins, T frames.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import INT16_SCALE, check_samples, repeat_to
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.state import StateReader

# --- NumPy's float32 real FFT, by the shortest way that this NumPy has
# ``np.fft.rfft`` computes float32 frames in float64 unless a norm is given, and its Python wrapper
# takes as long as the transform of a short frame. NumPy 2's own ufunc is called directly where a
# trial shows that it gives the same bits; otherwise the public function is called.
#
# On some machines (arm64) NumPy transforms a few rows at once in one vector, and rounds a row
# differently when it is alone. There only whole groups of rows are transformed, so that a frame's
# spectrum never depends on its company.
#
# Shape legend: n frames, N samples of a frame, F = N // 2 + 1 frequency bins.

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


# --- The arithmetic of a block of log-mel frames, in memory that is allocated once
# Three habits of NumPy shape the code. Ufuncs on strided 2-D arrays go through slow buffers, so all
# arithmetic runs on flat contiguous views. A slice costs as much as the arithmetic on a short frame,
# so views are made once for every (row, number of frames). And every call costs a third of a
# microsecond, so the scale of the FFT is undone by the taper, and the floor is one more bin.
#
# Shape legend: F frequency bins, M mel bands, N samples of an FFT, n frames.

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


# --- Exact streaming log-mel in NumPy: any chunking gives the offline features, bit for bit


class LogMelStream:
    """Normalised log-mel frames out of samples that arrive in any chunking.

    Memory is bounded and allocated once; a push allocates only the array that it returns.

    Args:
        spec: The front end.
        block: Half a megabyte of working memory, which streams of an equal ``spec`` may share where
            they take turns on one thread. None: its own.
    """

    def __init__(self, spec: MelSpec, *, block: MelBlock | None = None) -> None:
        """Allocate all working memory."""
        self.spec = spec
        self._block = MelBlock(spec) if block is None else block
        # Plain attributes: a property of the spec costs as much as a NumPy call on a short chunk.
        self._hop, self._n_fft, self._bands = spec.hop_length, spec.n_fft, spec.n_mels
        self._least = spec.min_samples
        self._pad = spec.n_fft // 2 if spec.center else 0
        self._left = (spec.n_fft - spec.win_length) // 2
        self._lead = spec.n_fft - self._pad - spec.hop_length  # due = (samples - lead) // hop
        # What flush() may still have to reflect, the unread tail, and one block of fresh samples.
        self._kept = self._pad + 1
        self._step = self._block.most * spec.hop_length
        held = max(spec.n_fft + spec.hop_length, self._kept)
        self._samples = np.zeros(held + self._pad + self._step, np.float32)
        self._full = len(self._samples) - self._pad
        self._windows = np.lib.stride_tricks.sliding_window_view(self._samples, spec.win_length)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a clip."""
        # The reflection of the first samples goes before them once enough have arrived.
        self._next = 0  # where the next frame starts in self._samples
        self._end = self._pad  # where the next sample goes
        self.samples_in = 0
        self.frames_out = 0

    def push(self, samples: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Take samples, give the frames that became complete.

        Args:
            samples: (N,) int16 or float, any N >= 0; see `audio.check_samples`.

        Returns:
            (T, M) float32 normalised log-mel; T may be 0.

        Raises:
            AudioError: The samples are not usable audio; the stream is unchanged then.
        """
        return self.push_checked(check_samples(samples))

    def flush(self) -> npt.NDArray[np.float32]:
        """End the clip: the frames still owed, as `push` gives them; the stream is then reset.

        A clip of fewer samples than `MelSpec.min_samples` is repeated up to them; one of no samples
        gives no frames.
        """
        spec = self.spec
        head = np.empty((0, spec.n_mels), np.float32)
        if 0 < self.samples_in < spec.min_samples:
            clip = self._samples[self._pad : self._end].copy()
            self.reset()
            head = self.push_checked(repeat_to(clip, spec.min_samples))
        if self._pad and self.samples_in:
            self._make_room()
            last = self._end - 1
            self._samples[self._end : self._end + self._pad] = self._samples[
                last - self._pad : last
            ][::-1]
            self._end += self._pad
        tail_TM = np.empty((max(self._owed(), 0), self._bands), np.float32)
        self._emit(tail_TM)
        self.reset()
        return tail_TM if len(head) == 0 else np.concatenate([head, tail_TM])

    def state(self) -> dict[str, Any]:
        """What the next frames depend on, as plain integers and arrays: save it, pickle it."""
        first = self._first_kept()
        return {
            "samples_in": self.samples_in,
            "frames_out": self.frames_out,
            "unread": self._next - first,
            "samples": self._samples[first : self._end].copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave for an equal `MelSpec`.

        Raises:
            StreamError: The state does not fit this front end; the stream is unchanged then.
        """
        read = StateReader(state, "LogMelStream")
        samples_in = read.integer("samples_in", 0)
        frames_out = read.integer("frames_out", 0)
        unread = read.integer("unread", 0)
        samples = read.array("samples", np.float32, (None,), most=len(self._samples))
        read.done()
        read.require(unread <= len(samples), "unread")
        ready = samples_in >= self.spec.min_samples
        due = 1 + (samples_in + self._pad - self.spec.n_fft) // self.spec.hop_length
        read.require(frames_out == (max(due, 0) if ready else 0), "frames_out")
        position = self._pad + samples_in - frames_out * self.spec.hop_length
        read.require(len(samples) - unread == position, "samples")
        read.require(len(samples) >= min(self._kept, self._pad + samples_in), "samples")
        self._samples[: len(samples)] = samples
        self._next, self._end = unread, len(samples)
        self.samples_in, self.frames_out = samples_in, frames_out

    def push_checked(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """As `push`, for samples (N,) that `check_samples` has passed."""
        end = self._end + len(x)
        total = self.samples_in + len(x)
        hop, next_ = self._hop, self._next
        n = ((total - self._lead) // hop if total >= self._least else 0) - self.frames_out
        out_TM = np.empty((n, self._bands), np.float32)
        if end <= self._full and self.samples_in >= self._least and n <= self._block.most:
            # The steady state, all in one place: a call costs as much as a ufunc here.
            if x.dtype.kind == "i":
                np.multiply(x, INT16_SCALE, self._samples[self._end : end])
            else:
                self._samples[self._end : end] = x
            self._end, self.samples_in = end, total
            if n:
                first = next_ + self._left
                windows_nN = self._windows[first : first + (n - 1) * hop + 1 : hop]
                self._block.compute(windows_nN, self.frames_out % ROWS, out_TM)
                self._next = next_ + n * hop
                self.frames_out += n
            return out_TM
        if end <= self._full:
            self._take(x)
            if n:
                self._emit(out_TM)
            return out_TM
        done = 0
        for first in range(0, len(x), self._step):
            self._make_room()
            self._take(x[first : first + self._step])
            if self.samples_in >= self._least:
                done += self._emit(out_TM[done:])
        return out_TM

    def _take(self, x: npt.NDArray[Any]) -> None:
        end = self._end + len(x)
        if x.dtype.kind == "i":
            np.multiply(x, INT16_SCALE, self._samples[self._end : end])
        else:
            self._samples[self._end : end] = x
        self._end = end
        before, self.samples_in = self.samples_in, self.samples_in + len(x)
        if self._pad and before < self._least <= self.samples_in:
            self._samples[: self._pad] = self._samples[self._pad + 1 : 2 * self._pad + 1][::-1]

    def _first_kept(self) -> int:
        return max(0, min(self._next, self._end - self._kept))

    def _make_room(self) -> None:
        first = self._first_kept()
        self._samples[: self._end - first] = self._samples[first : self._end]
        self._next -= first
        self._end -= first

    def _owed(self) -> int:
        return (self._end - self._next - self._n_fft) // self._hop + 1

    def _emit(self, out_TM: npt.NDArray[np.float32]) -> int:
        hop, done = self._hop, 0
        owed = self._owed()
        while done < owed:
            row = self.frames_out % ROWS
            n = min(owed - done, self._block.most)
            first = self._next + self._left
            windows_nN = self._windows[first : first + (n - 1) * hop + 1 : hop]
            self._block.compute(
                windows_nN, row, out_TM if n == len(out_TM) else out_TM[done : done + n]
            )
            self._next += n * hop
            self.frames_out += n
            done += n
        return done


def log_mel(samples: npt.ArrayLike, spec: MelSpec) -> npt.NDArray[np.float32]:
    """Normalised log-mel of a whole clip: one `LogMelStream.push` and one ``flush``.

    Args:
        samples: (N,) int16 or float at ``spec.sample_rate``, N >= 1.
        spec: The front end.

    Returns:
        (T, M) float32 with T = ``spec.frames(max(N, spec.min_samples))``.

    Raises:
        AudioError: The samples are not usable audio, or there are none.
    """
    stream = LogMelStream(spec)
    body = stream.push(samples)
    if stream.samples_in == 0:
        raise AudioError("There are no samples.", fix="Pass at least one sample of audio.")
    tail = stream.flush()
    return body if len(tail) == 0 else np.concatenate([body, tail])
