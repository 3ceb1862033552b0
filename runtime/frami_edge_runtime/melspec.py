"""The mel front end, defined once: trainer, exporter and device all read `MelSpec`.

Shape legend: M mel bands, F = n_fft // 2 + 1 frequency bins, T frames.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import MelSpecError

_SLANEY_HZ_PER_MEL = 200.0 / 3
_SLANEY_KNEE_HZ = 1000.0
_SLANEY_LOG_STEP = math.log(6.4) / 27.0

# Upper bounds: a damaged model file must not make the device allocate without limit.
_MOST = {
    "sample_rate": 768_000,
    "n_fft": 1 << 16,
    "win_length": 1 << 16,
    "hop_length": 1 << 16,
    "n_mels": 1024,
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "mel_scale": ("htk", "slaney", "kaldi"),
    "norm": ("none", "slaney"),
    "power": (1.0, 2.0),
    "log": ("ln", "log2", "log10", "db"),
    "log_floor": ("add", "clamp"),
    "window": ("hann", "hann_symmetric", "povey"),
    "framing": ("fft", "window"),
}
# Left out of `MelSpec.to_dict` at their default, so that a front end which does not need them keeps
# the digest, and can be read by the runtime, of before they existed.
_LATER = ("window", "framing", "remove_dc", "pre_emphasis")


def hz_to_mel(hz: npt.ArrayLike, scale: str) -> npt.NDArray[np.float64]:
    """Frequency in Hz to mel, on the ``htk``, ``slaney`` or ``kaldi`` scale.

    Source: S. Young et al., *The HTK Book* (2595 log10(1 + f / 700)); M. Slaney, *Auditory
    Toolbox* (linear below 1 kHz, logarithmic above); Kaldi, ``mel-computations.h`` (1127 ln(1 + f /
    700), HTK's scale with a rounded constant).
    """
    f = np.asarray(hz, dtype=np.float64)
    if scale == "kaldi":
        return np.asarray(1127.0 * np.log1p(f / 700.0))
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + f / 700.0))
    knee_mel = _SLANEY_KNEE_HZ / _SLANEY_HZ_PER_MEL
    above = knee_mel + np.log(np.maximum(f, 1e-10) / _SLANEY_KNEE_HZ) / _SLANEY_LOG_STEP
    return np.where(f >= _SLANEY_KNEE_HZ, above, f / _SLANEY_HZ_PER_MEL)


def mel_to_hz(mel: npt.ArrayLike, scale: str) -> npt.NDArray[np.float64]:
    """The inverse of `hz_to_mel`."""
    m = np.asarray(mel, dtype=np.float64)
    if scale == "kaldi":
        return np.asarray(700.0 * np.expm1(m / 1127.0))
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (m / 2595.0) - 1.0))
    knee_mel = _SLANEY_KNEE_HZ / _SLANEY_HZ_PER_MEL
    above = _SLANEY_KNEE_HZ * np.exp(_SLANEY_LOG_STEP * (m - knee_mel))
    return np.where(m >= knee_mel, above, _SLANEY_HZ_PER_MEL * m)


@dataclass(frozen=True)
class MelSpec:
    """A log-mel front end with fixed normalisation, so that it can run on a stream.

    The features are ``(log(mel) - mean) / std``, with ``mel`` as computed by torchaudio's
    ``MelSpectrogram``; with ``framing="window"`` and ``mel_scale="kaldi"`` as by its
    ``compliance.kaldi.fbank`` for samples in -1..1 and without dither. Normalisation that needs the
    whole clip (per-clip mean, ``top_db``) cannot stream and is refused.

    Raises:
        MelSpecError: A field is out of range or contradicts another.
    """

    sample_rate: int = 16_000
    """Hz."""
    n_fft: int = 512
    """FFT size in samples."""
    win_length: int = 400
    """Window in samples, at most ``n_fft``."""
    hop_length: int = 160
    """Samples between frames."""
    n_mels: int = 64
    """Number of mel bands (M)."""
    f_min: float = 0.0
    """Lower edge of the first band, Hz."""
    f_max: float = 0.0
    """Upper edge of the last band, Hz; 0 stands for half the sample rate."""
    mel_scale: str = "htk"
    """``htk``, ``slaney``, or ``kaldi``: HTK's scale, with triangles linear in mel, not Hz, as in
    TensorFlow's ``linear_to_mel_weight_matrix`` too (YAMNet, VGGish)."""
    norm: str = "none"
    """``none``, or ``slaney`` for bands of unit area."""
    power: float = 2.0
    """2 for energy, 1 for magnitude."""
    log: str = "ln"
    """``ln``, ``log2``, ``log10``, or ``db``: 10 log10 of energy, 20 log10 of magnitude, ref 1."""
    log_eps: float = 1e-6
    """Keeps the logarithm finite; its logarithm is the front end's floor."""
    log_floor: str = "add"
    """``add``: log(x + eps); ``clamp``: log(max(x, eps))."""
    center: bool = False
    """True reflects n_fft // 2 samples at both ends, as librosa does; False starts at sample 0."""
    mean: float | tuple[float, ...] = 0.0
    """Mean of the log-mel over the teacher's training data: one number, or one per band."""
    std: float | tuple[float, ...] = 1.0
    """Standard deviation of the log-mel over the same data."""
    window: str = "hann"
    """``hann`` (periodic), ``hann_symmetric``, or Kaldi's ``povey``, symmetric Hann to the 0.85."""
    framing: str = "fft"
    """What one frame covers: ``fft``, ``n_fft`` samples with the window in their middle, as in
    torch and librosa; ``window``, the ``win_length`` samples under the window, as in Kaldi and
    TensorFlow."""
    remove_dc: bool = False
    """Subtract its mean from every frame, as Kaldi does; needs ``framing="window"``."""
    pre_emphasis: float = 0.0
    """a in x[n] - a x[n - 1]. Before the framing, which makes the clip one sample shorter; with
    ``framing="window"`` inside every frame, as Kaldi does."""

    def __post_init__(self) -> None:
        """Check every field; numbers become plain int and float."""
        for name, most in _MOST.items():
            value = getattr(self, name)
            integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not integer or not 1 <= value <= most:
                raise MelSpecError(
                    f"MelSpec.{name} must be an integer in 1..{most}, not {value!r}."
                )
            object.__setattr__(self, name, int(value))
        for name in ("f_min", "f_max", "power", "log_eps", "pre_emphasis"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                names = ", ".join(map(str, allowed))
                raise MelSpecError(f"MelSpec.{name} must be one of {names}, not {value!r}.")
        for name in ("center", "remove_dc"):
            if not isinstance(value := getattr(self, name), (bool, np.bool_)):
                raise MelSpecError(f"MelSpec.{name} must be true or false, not {value!r}.")
            object.__setattr__(self, name, bool(value))
        if not 0 < self.log_eps < 1:
            raise MelSpecError(f"MelSpec.log_eps must be between 0 and 1, not {self.log_eps}.")
        if not self.hop_length <= self.win_length <= self.n_fft:
            raise MelSpecError(
                f"MelSpec needs hop_length <= win_length <= n_fft, not {self.hop_length}, "
                f"{self.win_length} and {self.n_fft}.",
                fix="A longer hop would skip samples; raise n_fft for a longer window.",
            )
        if not 0 <= self.f_min < self.f_high <= self.sample_rate / 2:
            raise MelSpecError(
                f"MelSpec needs 0 <= f_min < f_max <= sample_rate / 2, not {self.f_min} and "
                f"{self.f_high} at {self.sample_rate} Hz.",
                fix="f_max = 0 stands for half the sample rate.",
            )
        if not 0 <= self.pre_emphasis < 1:
            raise MelSpecError(
                f"MelSpec.pre_emphasis must be at least 0 and below 1, not {self.pre_emphasis}."
            )
        if self.framing == "window" and self.center:
            raise MelSpecError(
                'MelSpec.center and framing "window" exclude each other.',
                fix="Kaldi and TensorFlow do not centre; torch and librosa need framing fft.",
            )
        if self.remove_dc and self.framing != "window":
            raise MelSpecError('MelSpec.remove_dc needs framing "window", as in Kaldi.')
        if self.mel_scale == "kaldi" and self.norm != "none":
            raise MelSpecError('MelSpec.norm must be "none" with mel_scale "kaldi".')
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._normaliser(name, getattr(self, name)))

    def _normaliser(self, name: str, value: Any) -> float | tuple[float, ...]:
        fix = "Use one fixed number, or one per mel band, measured on the teacher's training data."
        if isinstance(value, str):
            raise MelSpecError(
                f"MelSpec.{name} = {value!r} is no number; normalisation that needs the whole clip "
                "cannot stream.",
                fix=fix,
            )
        if isinstance(value, np.ndarray):
            value = value.tolist()
        per_band = isinstance(value, (list, tuple))
        if per_band and len(value) != self.n_mels:
            raise MelSpecError(
                f"MelSpec.{name} has {len(value)} values for {self.n_mels} bands.", fix=fix
            )
        numbers = tuple(_finite(name, number) for number in (value if per_band else [value]))
        if name == "std" and min(numbers) <= 0:
            raise MelSpecError("MelSpec.std must be positive.", fix=fix)
        return numbers if per_band else numbers[0]

    @property
    def f_high(self) -> float:
        """Upper edge of the last band in Hz, with 0 resolved."""
        return float(self.f_max) if self.f_max > 0 else self.sample_rate / 2

    @property
    def hop_s(self) -> float:
        """Seconds between frames."""
        return self.hop_length / self.sample_rate

    @property
    def span(self) -> int:
        """Samples of audio that one frame depends on."""
        if self.framing == "window":
            return self.win_length
        return self.n_fft + self.warm_up

    @property
    def warm_up(self) -> int:
        """Samples that pre-emphasis takes before its first output: 1, or 0 without or in frames."""
        return int(self.pre_emphasis > 0 and self.framing == "fft")

    @property
    def pad(self) -> int:
        """Samples that ``center`` reflects at each end of a clip."""
        return self.n_fft // 2 if self.center else 0

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip that gives a frame; shorter clips are repeated up to it."""
        return self.pad + 1 + self.warm_up if self.center else self.span

    def frames(self, samples: int) -> int:
        """Frames (T) of a clip of this many samples; 0 where it is too short for one."""
        if samples < self.min_samples:
            return 0
        return 1 + (samples + 2 * self.pad - self.span) // self.hop_length

    @cached_property
    def filterbank(self) -> npt.NDArray[np.float32]:
        """(F, M) triangular filters: power spectra (T, F) times this are mel energies (T, M).

        Their corners are equally spaced in mel. The sides are linear in Hz, as in torchaudio and
        librosa; with ``kaldi`` linear in mel.
        """
        lowest, highest = hz_to_mel([self.f_min, self.f_high], self.mel_scale)
        corners = np.linspace(lowest, highest, self.n_mels + 2)
        freqs_F = np.linspace(0.0, self.sample_rate / 2, self.n_fft // 2 + 1)
        if self.mel_scale == "kaldi":
            freqs_F = hz_to_mel(freqs_F, "kaldi")
        else:
            corners = mel_to_hz(corners, self.mel_scale)
        width = np.diff(corners)
        slopes = corners[None, :] - freqs_F[:, None]
        rising = -slopes[:, :-2] / width[:-1]
        falling = slopes[:, 2:] / width[1:]
        bank_FM = np.maximum(0.0, np.minimum(rising, falling))
        if self.norm == "slaney":
            bank_FM *= 2.0 / (corners[2:] - corners[:-2])
        return np.ascontiguousarray(bank_FM, dtype=np.float32)

    @cached_property
    def taper(self) -> npt.NDArray[np.float64]:
        """(win_length,) values of the window; the first is 0 for every kind."""
        period = self.win_length if self.window == "hann" else max(1, self.win_length - 1)
        hann = np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.win_length) / period))
        return hann**0.85 if self.window == "povey" else hann

    def compress(self, mel: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Log and normalise mel energies (..., M) in float64: the reference for all others."""
        x = np.asarray(mel, dtype=np.float64)
        x = x + self.log_eps if self.log_floor == "add" else np.maximum(x, self.log_eps)
        y: npt.NDArray[np.float64] = np.log(x) * self.log_scale
        return np.asarray((y - np.asarray(self.mean)) / np.asarray(self.std), dtype=np.float64)

    @property
    def log_scale(self) -> float:
        """Factor from the natural logarithm to the chosen one."""
        return {
            "ln": 1.0,
            "log2": 1 / math.log(2),
            "log10": 1 / math.log(10),
            "db": (10 if self.power == 2 else 20) / math.log(10),
        }[self.log]

    @cached_property
    def floor(self) -> npt.NDArray[np.float32]:
        """(M,) normalised log-mel of digital silence: the minimum of the front end's output."""
        return self.compress(np.zeros(self.n_mels)).astype(np.float32)

    @cached_property
    def ceiling(self) -> npt.NDArray[np.float32]:
        """(M,) normalised log-mel of the full-scale sine that excites each band most.

        Known without data. Full-scale noise or clipping can exceed it by a few dB in wide bands.
        """
        n_freqs = self.n_fft // 2 + 1
        n = np.arange(-1, self.win_length)
        loudest = np.zeros(self.n_mels)
        for first in range(0, n_freqs, 256):
            bins = np.arange(first, min(first + 256, n_freqs))[:, None]
            sines = np.sin(2 * np.pi * bins * n / self.n_fft + np.pi / 4)
            if self.remove_dc:
                sines -= sines[:, 1:].mean(axis=1, keepdims=True)
            sines = (sines[:, 1:] - self.pre_emphasis * sines[:, :-1]) * self.taper
            spectrum = np.abs(np.fft.rfft(sines, self.n_fft, axis=1)) ** self.power
            loudest = np.maximum(loudest, (spectrum @ self.filterbank).max(axis=0))
        return self.compress(loudest).astype(np.float32)

    def replace(self, **changes: Any) -> MelSpec:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the fields from ``window`` on only where set."""
        fields = {
            f.name: value
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) != f.default or f.name not in _LATER
        }
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MelSpec:
        """Build from plain values.

        Raises:
            MelSpecError: A key is unknown or a value is out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(map(str, set(values) - known)):
            raise MelSpecError(
                f"MelSpec has no key {', '.join(unknown)}.",
                fix=f"Known keys: {', '.join(sorted(known))}.",
            )
        return cls(**values)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal specs have equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _finite(name: str, value: Any) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating))
    # A comparison, because math.isfinite overflows on huge integers; NaN compares false.
    if isinstance(value, bool) or not number or not -1e30 < value < 1e30:
        raise MelSpecError(f"MelSpec.{name} must be a finite number, not {value!r}.")
    return float(value)
