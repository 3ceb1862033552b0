"""Procedural audio: random sounds written by hand, through the teacher's real front end.

No recording and no teacher is involved. It is a prior on what sound is like, and must be named
wherever results on it are reported. Shape legend: M mel bands, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frami_edge.device import named_seed
from frami_edge.errors import ConfigError
from frami_edge.frontend import LogMel
from frami_edge.sources import NO_LABEL, Batch, SourceContext
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.melspec import MelSpec

Rng: TypeAlias = np.random.Generator
Samples: TypeAlias = npt.NDArray[np.float32]


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """One number between two positive ones, uniform in its logarithm."""
    return float(low * (max(high, low) / low) ** rng.random())


def chance(rng: Rng, share: float) -> bool:
    """Whether an event of that probability occurs."""
    return bool(rng.random() < share)


def amplitude(db: float) -> float:
    """Decibels to an amplitude ratio."""
    return float(10.0 ** (db / 20.0))


def wander(rng: Rng, n: int, knots: int) -> npt.NDArray[np.float64]:
    """(n,) smooth random curve: standard normal values at ``knots`` places, linear between them."""
    heights = rng.standard_normal(max(knots, 2))
    return np.interp(np.linspace(0.0, len(heights) - 1.0, n), np.arange(len(heights)), heights)


def stretch(curve: npt.NDArray[np.float64], n: int) -> Samples:
    """(n,) float32: a curve at control rate, linearly interpolated to n samples."""
    at = np.linspace(0.0, len(curve) - 1.0, n)
    return np.interp(at, np.arange(len(curve)), curve).astype(np.float32)


def peak_normalised(x: Samples) -> Samples:
    """The samples scaled to a largest magnitude of 1; silence stays silence."""
    peak = float(np.abs(x).max(initial=0.0))
    return x / np.float32(peak) if peak > 1e-12 else x


def fast_length(n: int) -> int:
    """The smallest of 2^k, 5 2^(k-2), 3 2^(k-1) at or above n: lengths whose FFT is fast."""
    power = 1 << max(3, math.ceil(math.log2(max(n, 2))))
    return next(size for size in (power // 8 * 5, power // 4 * 3, power) if size >= n)


# --- Generic physical and audible ranges, each with its reason
# Nothing here was fitted to a data set or to its classes. Pairs are (low, high); "log" means that
# values are drawn log-uniformly between them. DB is decibels, HZ hertz, S seconds.

EVENTS = (1, 4)  # layered events per clip: more blur into one texture
SHORTEST_EVENT_S = 0.03  # what the ear needs to hear a colour, not only a click; log
SUSTAINED_SHARE = 0.3  # of events: no onset and no end inside the clip (engines, wind, hum)
RHYTHM_SHARE = 0.25  # of the others: repeated (steps, knocks, calls, syllables)
RHYTHM_PERIOD_S = (0.06, 2.0)  # log: the fastest trill of separate sounds to slow steps
EVENT_LEVEL_DB = (-24.0, 0.0)  # relative to the loudest event: further down an event is masked
F0_LOWEST_HZ = 50.0  # below it there are pulses instead of a pitch (click trains cover those)
F0_HIGHEST_NYQUIST = 0.4  # log: leaves room for at least two harmonics
GLIDE_OCTAVES = 1.0  # largest standard deviation of a tone's pitch: calls, sirens, intonation
VIBRATO_HZ = (3.0, 12.0)  # vocal and mechanical vibrato
VIBRATO_DEPTH_OCTAVES = (0.005, 0.1)  # log: a tenth of a semitone to more than one
AM_HZ = (0.5, 100.0)  # log: slow beating to roughness, the ends of audible amplitude modulation
CLICK_RATE_HZ = (1.0, 300.0)  # log: a dripping tap to a buzz
MODE_HZ = (60.0, 0.45)  # Hz, share of the sample rate; log: objects of a metre to a centimetre
MODE_DECAY_S = (0.005, 1.0)  # time to fall by 8.7 dB, log: damped wood to ringing metal
MODES = (2, 16)  # of one struck object
SLOPE_DB_PER_OCTAVE = (-12.0, 3.0)  # brown noise (-6) and a soft voice (-12) to above white
ENVELOPE_STD_DB = 12.0  # largest standard deviation of the smooth envelope over log frequency
BAND_SHARE = 0.4  # of spectra: band-limited
BAND_OCTAVES = (0.3, 5.0)  # log: a whistle-like band to nearly everything
BAND_EDGE_DB_PER_OCTAVE = (12.0, 48.0)  # second- to eighth-order filters
RESONANCES = (0, 5)  # of one spectrum: a vocal tract shows three to five, a box one or two
RESONANCE_Q = (2.0, 60.0)  # log: formants have about 5 to 20, plates and bottles more
RESONANCE_GAIN_DB = (6.0, 30.0)  # above the spectrum around it
RESONANCE_DRIFT_OCTAVES = 0.35  # standard deviation from one anchor to the next (articulation)
DYNAMIC_RANGE_DB = 80.0  # of one spectrum: about what 16-bit audio leaves after dither and masking
BACKGROUND_SHARE = 0.6  # of clips
BACKGROUND_SNR_DB = (-5.0, 40.0)  # events over background: hard to notice to studio
ROOM_SHARE = 0.25  # of clips
ROOM_RT60_S = (0.1, 1.5)  # log: a car to a large hall
ROOM_DIRECT_DB = (-6.0, 12.0)  # direct over reverberant energy
DIP_SHARE = 0.25  # of clips: with segments of near-silence
DIP_DB = (20.0, 80.0)  # by which such a segment is lower
DIGITAL_SILENCE_SHARE = 0.1  # of clips: start or end in digital silence, as cut or padded files
SENSOR_SHARE = 0.5  # of clips: with the white noise of a microphone and its converter
SENSOR_DBFS = (-96.0, -50.0)  # RMS: 16-bit quantisation to a cheap microphone
PEAK_DBFS = (-45.0, 0.0)  # of a clip's largest sample: a distant source to full scale

# --- Loudness over time, drawn at a low control rate and interpolated

_CONTROL_HZ = 1000  # a millisecond is the shortest attack that is not a click
_ATTACK_S = (0.002, 0.5)  # log: plucked and struck to blown and bowed
_DECAY_S = (0.01, 2.0)
_WANDER_HZ = (0.5, 16.0)  # log: breathing and wind to the rate of syllables
_WANDER_STD_DB = 9.0  # largest standard deviation of the loudness of one sound


def envelope(rng: Rng, n: int, sample_rate: int, *, sustained: bool) -> Samples:
    """(n,) gains in [0, about 3]: attack and decay, swell, gate or plateau, with random modulation.

    A sustained sound has no onset and no end, only modulation.
    """
    seconds = n / sample_rate
    m = max(int(seconds * _CONTROL_HZ), 8)
    t = np.linspace(0.0, seconds, m)
    gain = np.ones(m)
    if not sustained:
        shape = (_attack_decay, _swell, _gates, None)[int(rng.integers(4))]
        gain = (shape(rng, t) if shape else gain) * _fades(rng, t)
    if chance(rng, 0.5):
        knots = int(seconds * log_uniform(rng, *_WANDER_HZ)) + 2
        db = wander(rng, m, knots) * rng.uniform(0.0, _WANDER_STD_DB)
        gain *= 10.0 ** (np.minimum(db, _WANDER_STD_DB) / 20.0)
    if chance(rng, 0.25):
        rate = log_uniform(rng, *AM_HZ)
        depth = rng.uniform(0.2, 1.0)
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (rate * t + rng.random()))
        gain *= 1.0 - depth + depth * wave ** rng.uniform(0.5, 4.0)
    return stretch(gain, n)


def dips(rng: Rng, n: int, sample_rate: int) -> Samples:
    """(n,) gains with one to three segments of near-silence of 5 to 40 % of the clip each."""
    m = max(n * _CONTROL_HZ // sample_rate, 8)
    gain = np.ones(m)
    for _ in range(int(rng.integers(1, 4))):
        width = max(int(m * rng.uniform(0.05, 0.4)), 1)
        start = int(rng.integers(0, m))
        gain[start : start + width] = amplitude(-rng.uniform(*DIP_DB))
    return stretch(gain, n)


def _attack_decay(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    attack = min(log_uniform(rng, *_ATTACK_S), 0.5 * t[-1])
    decay = log_uniform(rng, *_DECAY_S)
    after = np.maximum(t - attack, 0.0)
    return np.asarray(np.minimum(t / attack, 1.0) * np.exp(-after / decay))


def _swell(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # x**skew moves the peak away from the middle: rising, falling or even.
    x = (t / t[-1]) ** log_uniform(rng, 0.4, 2.5)
    return np.asarray(np.abs(np.sin(np.pi * x)) ** rng.uniform(0.5, 3.0))


def _gates(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    period = log_uniform(rng, 0.04, max(t[-1] / 2, 0.05))
    count = max(int(t[-1] / period), 1)
    edges = np.sort(rng.uniform(0.0, t[-1], 2 * count))
    is_open = np.searchsorted(edges, t) % 2 == int(rng.integers(2))
    closed = amplitude(-rng.uniform(12.0, DIP_DB[1]))
    return np.where(is_open, 1.0, closed)


def _fades(rng: Rng, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Of at most a third of the event each, so that something remains between them.
    fade_in, fade_out = (min(log_uniform(rng, 0.002, 0.2), t[-1] / 3) for _ in range(2))
    return np.asarray(np.minimum(t / fade_in, 1.0) * np.minimum((t[-1] - t) / fade_out, 1.0))


# --- Random spectral envelopes as causal filters
# A spectrum is drawn in dB on a coarse frequency grid and made minimum-phase through its cepstrum
# (Oppenheim and Schafer, *Discrete-Time Signal Processing*, sec. 13.4), so that resonances ring
# after a click and never before it, as in nature.

_FILTER_S = 0.064  # shortest filter: a bin is at most 16 Hz wide


@dataclass(frozen=True)
class Spectrum:
    """One random spectral envelope: (F,) dB, and (Hz, Q, power gain) of each resonance."""

    base_db: npt.NDArray[np.float64]
    resonances: tuple[tuple[float, float, float], ...]


class SpectrumFactory:
    """Draws spectra for one sample rate and filters with them."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.taps = fast_length(int(_FILTER_S * sample_rate))
        self.taps += self.taps % 2
        self._freqs = np.fft.rfftfreq(self.taps, 1.0 / sample_rate)
        self._freqs[0] = self._freqs[1] / 2
        self._octaves = np.log2(self._freqs / 1000.0)
        # Folds a real cepstrum onto its causal half.
        self._fold = np.zeros(self.taps)
        self._fold[0] = self._fold[self.taps // 2] = 1.0
        self._fold[1 : self.taps // 2] = 2.0

    def draw(self, rng: Rng, *, resonances: tuple[int, int] = RESONANCES) -> Spectrum:
        """A random spectrum with a number of resonances in the given range."""
        octaves = self._octaves
        db = rng.uniform(*SLOPE_DB_PER_OCTAVE) * octaves
        knots = rng.standard_normal(int(rng.integers(3, 13))) * rng.uniform(0, ENVELOPE_STD_DB)
        db += np.interp(octaves, np.linspace(octaves[0], octaves[-1], len(knots)), knots)
        if chance(rng, BAND_SHARE):
            half = log_uniform(rng, *BAND_OCTAVES) / 2
            centre = np.log2(log_uniform(rng, F0_LOWEST_HZ, self._freqs[-1]) / 1000.0)
            outside = np.maximum(np.abs(octaves - centre) - half, 0.0)
            db -= rng.uniform(*BAND_EDGE_DB_PER_OCTAVE) * outside
        peaks = tuple(
            (
                log_uniform(rng, 2 * F0_LOWEST_HZ, 0.9 * self._freqs[-1]),
                log_uniform(rng, *RESONANCE_Q),
                10.0 ** (rng.uniform(*RESONANCE_GAIN_DB) / 10.0),
            )
            for _ in range(int(rng.integers(resonances[0], resonances[1] + 1)))
        )
        return Spectrum(db, peaks)

    def moved(self, rng: Rng, spectrum: Spectrum) -> Spectrum:
        """The same spectrum with its resonances elsewhere, as in articulation."""
        top = 0.95 * self._freqs[-1]
        drift = RESONANCE_DRIFT_OCTAVES
        peaks = tuple(
            (min(hz * 2.0 ** (drift * rng.standard_normal()), top), q, gain)
            for hz, q, gain in spectrum.resonances
        )
        return replace(spectrum, resonances=peaks)

    def impulse_response(self, spectrum: Spectrum) -> Samples:
        """(taps,) minimum-phase impulse response whose strongest bin has gain 1."""
        db = spectrum.base_db.copy()
        for hz, q, gain in spectrum.resonances:
            detune = q * (self._freqs / hz - hz / self._freqs)
            db += 10.0 * np.log10(1.0 + gain / (1.0 + detune * detune))
        db -= db.max()
        log_magnitude = np.maximum(db, -DYNAMIC_RANGE_DB) * (np.log(10.0) / 20.0)
        cepstrum = np.fft.irfft(log_magnitude, self.taps) * self._fold
        response = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), self.taps)
        return response.astype(np.float32)

    def colour(self, rng: Rng, x: Samples, *, resonances: tuple[int, int], anchors: int) -> Samples:
        """Filter (n,) samples; the resonances move through ``anchors`` places, cross-faded."""
        n = len(x)
        size = fast_length(n + self.taps)
        source = np.fft.rfft(x, size)
        spectrum = self.draw(rng, resonances=resonances)
        places = np.arange(max(anchors, 2), dtype=np.float64)
        y = np.zeros(n, dtype=np.float32)
        for k in range(anchors):
            response = np.fft.rfft(self.impulse_response(spectrum), size)
            part = np.fft.irfft(source * response, size)[:n]
            if anchors > 1:
                part *= stretch((places == k).astype(np.float64), n)
                spectrum = self.moved(rng, spectrum)
            y += part.astype(np.float32, copy=False)
        return y


# --- The families of sounds
# Each takes a random generator, a length in samples and the spectrum factory of its sample rate,
# and returns (n,) float32 samples of any level.

Family: TypeAlias = Callable[[Rng, int, SpectrumFactory], Samples]


def shaped_noise(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """Gaussian noise with a random spectrum that may move over time."""
    x = rng.standard_normal(n, dtype=np.float32)
    return spectra.colour(rng, x, resonances=RESONANCES, anchors=_anchors(rng))


def harmonic_tone(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """Band-limited pulses with glide, vibrato, jitter and breath, through moving resonances.

    The pulses are the closed form of a sum of H equal cosines (Stilson and Smith 1996, BLIT):
    sum_{k=1..H} cos(k p) = sin((H + 1/2) p) / (2 sin(p / 2)) - 1/2.
    """
    nyquist = spectra.sample_rate / 2
    f0 = _pitch(rng, n, spectra.sample_rate)
    harmonics = max(int(0.95 * nyquist / float(f0.max())), 1)
    if chance(rng, 0.3):
        harmonics = min(harmonics, int(rng.integers(1, 9)))
    phase = _phase(rng, f0, spectra.sample_rate)
    half = np.sin(0.5 * phase)
    half = np.where(np.abs(half) < 1e-5, np.float32(1e-5), half)
    pulses = np.sin((harmonics + 0.5) * phase) / half * np.float32(0.5) - np.float32(0.5)
    # At the pulse itself numerator and denominator vanish together: the limit is H.
    x = np.clip(pulses, -harmonics, harmonics) / np.float32(np.sqrt(harmonics))
    if chance(rng, 0.4):
        x = x + rng.standard_normal(n, dtype=np.float32) * np.float32(log_uniform(rng, 0.01, 1.0))
    return spectra.colour(rng, x, resonances=(1, RESONANCES[1]), anchors=_anchors(rng))


def chirp(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """One swept sine, with a weak second harmonic now and then."""
    top = 0.9 * spectra.sample_rate / 2
    ends = [np.log2(log_uniform(rng, 2 * F0_LOWEST_HZ, top)) for _ in range(2)]
    curve = np.linspace(ends[0], ends[1], 32)
    if chance(rng, 0.5):
        curve += wander(rng, 32, int(rng.integers(3, 8))) * 0.3 * GLIDE_OCTAVES
    f = stretch(np.minimum(2.0**curve, top), n)
    phase = _phase(rng, f, spectra.sample_rate)
    x = np.sin(phase)
    if chance(rng, 0.4):
        x += np.float32(log_uniform(rng, 0.03, 0.5)) * np.sin(2 * phase) * (f < 0.5 * top)
    return x.astype(np.float32, copy=False)


def impact(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """A struck object: a burst of noise and decaying modes; higher modes decay faster."""
    rate = spectra.sample_rate
    count = int(rng.integers(MODES[0], MODES[1] + 1))
    low, high = MODE_HZ[0], MODE_HZ[1] * rate
    base = log_uniform(rng, low, high / 2)
    hz = np.minimum(base * (1.0 + rng.exponential(2.0, count)), high)
    hz[0] = base
    decay = log_uniform(rng, *MODE_DECAY_S) * (base / hz) ** rng.uniform(0.0, 1.5)
    decay = np.maximum(decay, MODE_DECAY_S[0])
    level = rng.standard_normal(count) * (base / hz) ** rng.uniform(0.0, 1.0)
    x = np.zeros(n, dtype=np.float32)
    for f, tau, a in zip(hz, decay, level, strict=True):
        # Beyond seven time constants (60 dB) a mode is inaudible.
        t = np.arange(min(n, int(7 * tau * rate) + 1), dtype=np.float32) / np.float32(rate)
        angle = np.float32(2 * np.pi * f) * t + np.float32(2 * np.pi * rng.random())
        x[: len(t)] += np.float32(a) * np.exp(t * np.float32(-1 / tau)) * np.sin(angle)
    tau = log_uniform(rng, 0.001, 0.03)
    burst = rng.standard_normal(min(n, int(7 * tau * rate) + 1), dtype=np.float32)
    burst *= np.exp(np.arange(len(burst), dtype=np.float32) / np.float32(-tau * rate))
    x[: len(burst)] += np.float32(log_uniform(rng, 0.03, 3.0)) * burst
    return x


def click_train(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """Pulses from sparse to buzzing, from periodic to Poisson, each with one random colour."""
    rate = spectra.sample_rate
    period = rate / log_uniform(rng, *CLICK_RATE_HZ)
    count = int(1.5 * n / period) + 2
    irregular = rng.random() if chance(rng, 0.6) else 0.0
    gaps = period * ((1 - irregular) + irregular * rng.exponential(1.0, count))
    at = np.cumsum(gaps) - gaps[0] * rng.random()
    # A rare click may miss a short event: there its first one falls on the onset.
    at = at[at < n].astype(np.int64) if at[0] < n else np.zeros(1, dtype=np.int64)
    x = np.zeros(n, dtype=np.float32)
    spread = rng.uniform(0.0, 1.0)
    np.add.at(x, at, np.exp(spread * rng.standard_normal(len(at))).astype(np.float32))
    if chance(rng, 0.4):
        tau = log_uniform(rng, 0.001, 0.05)
        grain = rng.standard_normal(int(5 * tau * rate) + 2, dtype=np.float32)
        grain *= np.exp(np.arange(len(grain), dtype=np.float32) / np.float32(-tau * rate))
        x = convolve(x, grain)
    return spectra.colour(rng, x, resonances=RESONANCES, anchors=1)


FAMILIES: tuple[tuple[Family, float], ...] = (
    (shaped_noise, 0.25),
    (harmonic_tone, 0.3),
    (chirp, 0.1),
    (impact, 0.15),
    (click_train, 0.2),
)
"""Every family with its share of events; tones have the widest variety, so the largest share."""


def rhythm(rng: Rng, n: int, sample_rate: int, sound: Samples) -> Samples:
    """(n,) samples: one short sound repeated, with jitter in time and level."""
    period = log_uniform(rng, *RHYTHM_PERIOD_S) * sample_rate
    jitter = rng.uniform(0.0, 0.3) if chance(rng, 0.6) else 0.0
    spread_db = rng.uniform(0.0, 6.0)
    x = np.zeros(n, dtype=np.float32)
    at = period * rng.random()
    while at < n:
        start = int(at)
        part = sound[: n - start]
        x[start : start + len(part)] += part * np.float32(
            10 ** (spread_db * rng.standard_normal() / 20)
        )
        at += period * max(1.0 + jitter * rng.standard_normal(), 0.2)
    return peak_normalised(x)


def convolve(x: Samples, response: Samples) -> Samples:
    """(n,) samples convolved with a causal response and cut to n."""
    size = fast_length(len(x) + len(response))
    product = np.fft.rfft(x, size) * np.fft.rfft(response, size)
    return np.fft.irfft(product, size)[: len(x)].astype(np.float32, copy=False)


def _anchors(rng: Rng) -> int:
    return int((1, 1, 2, 3)[int(rng.integers(4))])


def _pitch(rng: Rng, n: int, sample_rate: int) -> Samples:
    """(n,) fundamental frequency in Hz: steady, gliding or wandering, with vibrato and jitter."""
    seconds = n / sample_rate
    m = max(int(seconds * 200), 16)
    top = F0_HIGHEST_NYQUIST * sample_rate / 2
    octaves = np.full(m, np.log2(log_uniform(rng, F0_LOWEST_HZ, top)))
    if chance(rng, 0.6):
        knots = int(rng.integers(2, 3 + int(2 * seconds) + 1))
        octaves += wander(rng, m, knots) * rng.random() * GLIDE_OCTAVES
    if chance(rng, 0.3):
        t = np.linspace(0.0, seconds, m)
        rate = rng.uniform(*VIBRATO_HZ)
        octaves += log_uniform(rng, *VIBRATO_DEPTH_OCTAVES) * np.sin(2 * np.pi * rate * t)
    if chance(rng, 0.4):
        octaves += rng.standard_normal(m) * log_uniform(rng, 0.002, 0.05)
    return stretch(np.clip(2.0**octaves, F0_LOWEST_HZ / 2, 2 * top), n)


def _phase(rng: Rng, f: Samples, sample_rate: int) -> npt.NDArray[np.float32]:
    """(n,) phase in [-pi, pi): wrapped in float64, so that float32 keeps it exact afterwards."""
    cycles = np.cumsum(f, dtype=np.float64) / sample_rate + rng.random()
    return ((cycles - np.floor(cycles + 0.5)) * (2 * np.pi)).astype(np.float32)


# --- Whole clips of procedural audio: layered events, background, room, gaps and level

_SHARES = np.cumsum([share for _, share in FAMILIES])
_TONAL_RHYTHM_S = 0.4  # longest sound that is repeated: longer ones overlap at most periods


class ProceduralAudio:
    """Hand-written random sounds of 0.05 to 600 s, at a sample rate of at least 1000 Hz.

    Each clip layers one to four events (shaped noise, harmonic tones, chirps, impacts, click
    trains; sustained, single or repeated) over an optional background, in an optional room, at a
    random level.

    Raises:
        AudioError: A rate or length out of range.
    """

    def __init__(self, sample_rate: int, seconds: float) -> None:
        if sample_rate < 1000 or not 0.05 <= seconds <= 600:
            raise AudioError(
                f"Procedural audio cannot make clips of {seconds:g} s at {sample_rate} Hz.",
                fix="Use a front end of at least 1000 Hz, and frames for 0.05 to 600 s.",
            )
        self.sample_rate = sample_rate
        self.samples = round(sample_rate * seconds)
        self._spectra = SpectrumFactory(sample_rate)

    def clips(self, n: int, seed: int, *, start: int = 0) -> npt.NDArray[np.float32]:
        """Clips ``start`` to ``start + n - 1`` of the endless series of a seed (0 or above).

        Returns:
            (n, samples) float32 in [-1, 1]. Clip i depends on the seed and on i only.
        """
        out = np.empty((n, self.samples), dtype=np.float32)
        for i in range(n):
            out[i] = self._clip(np.random.default_rng([seed, start + i]))
        return out

    def _clip(self, rng: Rng) -> Samples:
        n, rate = self.samples, self.sample_rate
        mix = np.zeros(n, dtype=np.float32)
        for _ in range(int(rng.integers(EVENTS[0], EVENTS[1] + 1))):
            self._add_event(rng, mix)
        if chance(rng, ROOM_SHARE):
            mix = self._in_room(rng, mix)
        if chance(rng, DIP_SHARE):
            mix *= dips(rng, n, rate)
        if chance(rng, BACKGROUND_SHARE):
            mix += self._background(rng, mix)
        mix = peak_normalised(mix) * np.float32(amplitude(rng.uniform(*PEAK_DBFS)))
        if chance(rng, SENSOR_SHARE):
            level = np.float32(amplitude(rng.uniform(*SENSOR_DBFS)))
            mix += level * rng.standard_normal(n, dtype=np.float32)
        if chance(rng, DIGITAL_SILENCE_SHARE):
            cut = int(n * rng.uniform(0.05, 0.4))
            mix[slice(cut) if chance(rng, 0.5) else slice(n - cut, n)] = 0.0
        return np.clip(mix, -1.0, 1.0)

    def _add_event(self, rng: Rng, mix: Samples) -> None:
        n, rate = len(mix), self.sample_rate
        which = min(int(np.searchsorted(_SHARES, rng.random())), len(_SHARES) - 1)
        family = FAMILIES[which][0]
        level = np.float32(amplitude(rng.uniform(*EVENT_LEVEL_DB)))
        if chance(rng, SUSTAINED_SHARE) and family is not impact:
            mix += level * self._sound(rng, family, n, sustained=True)
            return
        shortest = min(SHORTEST_EVENT_S, n / rate)
        if chance(rng, RHYTHM_SHARE):
            length = log_uniform(rng, shortest, min(_TONAL_RHYTHM_S, n / rate))
            sound = self._sound(rng, family, int(length * rate), sustained=False)
            mix += level * rhythm(rng, n, rate, sound)
            return
        length = int(log_uniform(rng, shortest, n / rate) * rate)
        at = int(rng.integers(0, n - length + 1))
        mix[at : at + length] += level * self._sound(rng, family, length, sustained=False)

    def _sound(self, rng: Rng, family: Family, n: int, *, sustained: bool) -> Samples:
        n = max(n, 16)
        x = peak_normalised(family(rng, n, self._spectra))
        # A struck object decays by itself; another envelope would hide its attack.
        if family is not impact:
            x = x * envelope(rng, n, self.sample_rate, sustained=sustained)
        return peak_normalised(x)

    def _background(self, rng: Rng, mix: Samples) -> Samples:
        noise = shaped_noise(rng, len(mix), self._spectra)
        noise *= envelope(rng, len(mix), self.sample_rate, sustained=True)
        energy, own = float(np.mean(mix * mix)), float(np.mean(noise * noise))
        ratio = np.sqrt((energy + 1e-12) / (own + 1e-20))
        return noise * np.float32(ratio * amplitude(-rng.uniform(*BACKGROUND_SNR_DB)))

    def _in_room(self, rng: Rng, mix: Samples) -> Samples:
        """Add exponentially decaying diffuse reverberation (Polack's model of a late tail)."""
        rt60 = log_uniform(rng, *ROOM_RT60_S)
        length = min(int(rt60 * self.sample_rate), len(mix))
        tail = rng.standard_normal(length, dtype=np.float32)
        tail *= np.exp(
            np.arange(length, dtype=np.float32) / np.float32(-rt60 * self.sample_rate / 6.91)
        )
        level = amplitude(-rng.uniform(*ROOM_DIRECT_DB))
        tail *= np.float32(level) / (np.sqrt(np.sum(tail * tail)) + np.float32(1e-6))
        return mix + convolve(mix, tail)


# --- Procedural audio as normalised log-mels

_CLIP_OVER_CROP = 1.25  # so that onsets and ends also fall outside of what is kept
_SHORTEST_CLIP_S = 0.5  # even a short crop comes from a clip with room for several events
_CHUNK_SAMPLES = 4_000_000  # held at once: 16 MB


def procedural_mels(spec: MelSpec, n: int, frames: int, seed: int) -> Tensor:
    """Random crops of procedural audio through the front end: (n, 1, M, T) float32, normalised.

    They lie between ``spec.floor`` and ``spec.ceiling``. Mel i depends on the spec, on ``frames``
    (T), on the seed and on i only.

    Raises:
        ConfigError: ``n``, ``frames`` or ``seed`` is out of range.
    """
    if n < 0 or frames < 1 or seed < 0:
        raise ConfigError(
            f"Procedural mels: n {n}, frames {frames}, seed {seed} is out of range.",
            fix="Use n and seed of at least 0, and frames of at least 1.",
        )
    # A centred front end reflects its edges; those frames are made and dropped.
    edge = math.ceil(spec.n_fft / 2 / spec.hop_length) if spec.center else 0
    front_end = LogMel(spec)
    floor_M1 = torch.from_numpy(spec.floor)[:, None]
    ceiling_M1 = torch.from_numpy(spec.ceiling)[:, None]
    out = torch.empty(n, 1, spec.n_mels, frames)
    for first, crops in _crops(spec.sample_rate, n, samples_for(spec, frames + 2 * edge), seed):
        with torch.inference_mode():
            mels = front_end(torch.from_numpy(crops))[..., edge : edge + frames]
        out[first : first + len(crops), 0] = mels.clamp(floor_M1, ceiling_M1)
    return out


def procedural_audio(sample_rate: int, n: int, samples: int, seed: int) -> Tensor:
    """Random crops of procedural audio.

    Returns:
        (n, samples) float32 in -1..1; clip i depends on the other arguments and on i only.
    """
    out = torch.empty(n, samples)
    for first, crops in _crops(sample_rate, n, samples, seed):
        out[first : first + len(crops)] = torch.from_numpy(crops)
    return out


def _crops(
    sample_rate: int, n: int, samples: int, seed: int
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Number of the first clip, and some clips (count, samples), until there are n."""
    seconds = max(_CLIP_OVER_CROP * samples / sample_rate, _SHORTEST_CLIP_S)
    audio = ProceduralAudio(sample_rate, seconds)
    chunk = max(1, _CHUNK_SAMPLES // audio.samples)
    for first in range(0, n, chunk):
        clips = audio.clips(min(chunk, n - first), seed, start=first)
        yield first, np.stack([_crop(x, samples, seed, first + i) for i, x in enumerate(clips)])


def measured(spec: MelSpec) -> MelSpec:
    """The front end with mean and std of procedural audio, where it has none (0 and 1).

    One number each, over 200 clips of a second: what a front end without training data starts from.
    """
    if spec.mean != 0 or spec.std != 1:
        return spec
    clips = procedural_audio(spec.sample_rate, 200, max(spec.sample_rate, spec.min_samples), 0)
    with torch.inference_mode():
        mels = torch.cat([LogMel(spec)(part) for part in clips.split(50)])
    return spec.replace(mean=round(float(mels.mean()), 3), std=round(float(mels.std()), 3))


def samples_for(spec: MelSpec, frames: int) -> int:
    """The fewest samples that give so many frames."""
    return max((frames - 1) * spec.hop_length + spec.span - 2 * spec.pad, spec.min_samples)


def _crop(
    clip: npt.NDArray[np.float32], length: int, seed: int, index: int
) -> npt.NDArray[np.float32]:
    # A stream of its own: the clip's own draws must not move with the crop.
    rng = np.random.default_rng([seed, index, 1])
    at = int(rng.integers(0, len(clip) - length + 1))
    return clip[at : at + length]


class Procedural:
    """A source of procedural clips: no recording and no teacher involved."""

    name = "procedural"
    block = 250
    audible = True  # whether the clips exist as audio

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        self.clips = context.config.procedural_clips

    @property
    def steps(self) -> int:
        """Number of blocks."""
        return -(-self.clips // self.block)

    def step(self, index: int) -> Batch:
        """The next block of clips."""
        n = min(self.block, self.clips - index * self.block)
        c, labels = self.context, torch.full((n,), NO_LABEL)
        seed = named_seed(c.seed, f"{self.name}/{index}")
        if c.samples and self.audible:
            audio = procedural_audio(c.spec.sample_rate, n, c.samples, seed)
            return Batch(None, labels, True, {}, audio)
        return Batch(self.make(n, seed), labels, True, {})

    def make(self, n: int, seed: int) -> Tensor:
        """(n, 1, M, T) clips that depend on the seed only."""
        return procedural_mels(self.context.spec, n, self.context.frames, seed)

    def state(self) -> dict[str, Any]:
        """Nothing: the clips depend on seed and step alone."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
