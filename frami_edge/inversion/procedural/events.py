"""The families of sounds: noise, harmonic tones, chirps, impacts and click trains.

Each takes the source of chance, a length in samples and the spectrum factory of its sample rate,
and returns (n,) float32 samples of any level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from frami_edge.inversion.procedural import ranges
from frami_edge.inversion.procedural.draw import (
    Rng,
    Samples,
    chance,
    fast_length,
    log_uniform,
    peak_normalised,
    stretch,
    wander,
)
from frami_edge.inversion.procedural.spectra import SpectrumFactory

Family: TypeAlias = Callable[[Rng, int, SpectrumFactory], Samples]


def shaped_noise(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """Gaussian noise with a random spectrum that may move over time."""
    x = rng.standard_normal(n, dtype=np.float32)
    return spectra.colour(rng, x, resonances=ranges.RESONANCES, anchors=_anchors(rng))


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
    return spectra.colour(rng, x, resonances=(1, ranges.RESONANCES[1]), anchors=_anchors(rng))


def chirp(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """One swept sine, with a weak second harmonic now and then."""
    top = 0.9 * spectra.sample_rate / 2
    ends = [np.log2(log_uniform(rng, 2 * ranges.F0_LOWEST_HZ, top)) for _ in range(2)]
    curve = np.linspace(ends[0], ends[1], 32)
    if chance(rng, 0.5):
        curve += wander(rng, 32, int(rng.integers(3, 8))) * 0.3 * ranges.GLIDE_OCTAVES
    f = stretch(np.minimum(2.0**curve, top), n)
    phase = _phase(rng, f, spectra.sample_rate)
    x = np.sin(phase)
    if chance(rng, 0.4):
        x += np.float32(log_uniform(rng, 0.03, 0.5)) * np.sin(2 * phase) * (f < 0.5 * top)
    return x.astype(np.float32, copy=False)


def impact(rng: Rng, n: int, spectra: SpectrumFactory) -> Samples:
    """A struck object: a burst of noise and decaying modes; higher modes decay faster."""
    rate = spectra.sample_rate
    count = int(rng.integers(ranges.MODES[0], ranges.MODES[1] + 1))
    low, high = ranges.MODE_HZ[0], ranges.MODE_HZ[1] * rate
    base = log_uniform(rng, low, high / 2)
    hz = np.minimum(base * (1.0 + rng.exponential(2.0, count)), high)
    hz[0] = base
    decay = log_uniform(rng, *ranges.MODE_DECAY_S) * (base / hz) ** rng.uniform(0.0, 1.5)
    decay = np.maximum(decay, ranges.MODE_DECAY_S[0])
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
    """Pulses from sparse to buzzing, from clockwork to Poisson, each with one random colour."""
    rate = spectra.sample_rate
    period = rate / log_uniform(rng, *ranges.CLICK_RATE_HZ)
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
    return spectra.colour(rng, x, resonances=ranges.RESONANCES, anchors=1)


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
    period = log_uniform(rng, *ranges.RHYTHM_PERIOD_S) * sample_rate
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
    top = ranges.F0_HIGHEST_NYQUIST * sample_rate / 2
    octaves = np.full(m, np.log2(log_uniform(rng, ranges.F0_LOWEST_HZ, top)))
    if chance(rng, 0.6):
        knots = int(rng.integers(2, 3 + int(2 * seconds) + 1))
        octaves += wander(rng, m, knots) * rng.random() * ranges.GLIDE_OCTAVES
    if chance(rng, 0.3):
        t = np.linspace(0.0, seconds, m)
        rate = rng.uniform(*ranges.VIBRATO_HZ)
        octaves += log_uniform(rng, *ranges.VIBRATO_DEPTH_OCTAVES) * np.sin(2 * np.pi * rate * t)
    if chance(rng, 0.4):
        octaves += rng.standard_normal(m) * log_uniform(rng, 0.002, 0.05)
    return stretch(np.clip(2.0**octaves, ranges.F0_LOWEST_HZ / 2, 2 * top), n)


def _phase(rng: Rng, f: Samples, sample_rate: int) -> npt.NDArray[np.float32]:
    """(n,) phase in [-pi, pi): wrapped in float64, so that float32 keeps it exact afterwards."""
    cycles = np.cumsum(f, dtype=np.float64) / sample_rate + rng.random()
    return ((cycles - np.floor(cycles + 0.5)) * (2 * np.pi)).astype(np.float32)
