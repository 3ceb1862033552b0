"""Random spectral envelopes as causal filters.

A spectrum is drawn in dB on a coarse frequency grid and made minimum-phase through its cepstrum
(Oppenheim and Schafer, *Discrete-Time Signal Processing*, sec. 13.4), so that resonances ring
after a click and never before it, as in nature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from frami_edge.inversion.procedural import ranges
from frami_edge.inversion.procedural.draw import (
    Rng,
    Samples,
    chance,
    fast_length,
    log_uniform,
    stretch,
)

_FILTER_S = 0.064
"""Seconds: filters are at least this long, so a bin is at most 16 Hz wide."""


@dataclass(frozen=True)
class Spectrum:
    """One random spectral envelope."""

    base_db: npt.NDArray[np.float64]
    """(F,) dB: slope, smooth envelope and band."""
    resonances: tuple[tuple[float, float, float], ...]
    """(frequency in Hz, Q, power gain) of each."""


class SpectrumFactory:
    """Draws spectra for one sample rate and filters with them."""

    def __init__(self, sample_rate: int) -> None:
        """Prepare the frequency grid for one sample rate in Hz."""
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

    def draw(self, rng: Rng, *, resonances: tuple[int, int] = ranges.RESONANCES) -> Spectrum:
        """A random spectrum with a number of resonances in the given range."""
        octaves = self._octaves
        db = rng.uniform(*ranges.SLOPE_DB_PER_OCTAVE) * octaves
        knots = rng.standard_normal(int(rng.integers(3, 13))) * rng.uniform(
            0, ranges.ENVELOPE_STD_DB
        )
        db += np.interp(octaves, np.linspace(octaves[0], octaves[-1], len(knots)), knots)
        if chance(rng, ranges.BAND_SHARE):
            half = log_uniform(rng, *ranges.BAND_OCTAVES) / 2
            centre = np.log2(log_uniform(rng, ranges.F0_LOWEST_HZ, self._freqs[-1]) / 1000.0)
            outside = np.maximum(np.abs(octaves - centre) - half, 0.0)
            db -= rng.uniform(*ranges.BAND_EDGE_DB_PER_OCTAVE) * outside
        peaks = tuple(
            (
                log_uniform(rng, 2 * ranges.F0_LOWEST_HZ, 0.9 * self._freqs[-1]),
                log_uniform(rng, *ranges.RESONANCE_Q),
                10.0 ** (rng.uniform(*ranges.RESONANCE_GAIN_DB) / 10.0),
            )
            for _ in range(int(rng.integers(resonances[0], resonances[1] + 1)))
        )
        return Spectrum(db, peaks)

    def moved(self, rng: Rng, spectrum: Spectrum) -> Spectrum:
        """The same spectrum with its resonances elsewhere, as articulation does it."""
        top = 0.95 * self._freqs[-1]
        drift = ranges.RESONANCE_DRIFT_OCTAVES
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
        log_magnitude = np.maximum(db, -ranges.DYNAMIC_RANGE_DB) * (np.log(10.0) / 20.0)
        cepstrum = np.fft.irfft(log_magnitude, self.taps) * self._fold
        response = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), self.taps)
        return response.astype(np.float32)

    def colour(self, rng: Rng, x: Samples, *, resonances: tuple[int, int], anchors: int) -> Samples:
        """Filter (n,) samples with a spectrum whose resonances move through ``anchors`` places.

        With more than one anchor the filtered versions are cross-faded, each at full weight at its
        own place in time.
        """
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
