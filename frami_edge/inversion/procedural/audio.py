"""Whole clips of procedural audio: layered events, background, room, gaps and level."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from frami_edge.inversion.procedural import events, ranges
from frami_edge.inversion.procedural.draw import (
    Rng,
    Samples,
    amplitude,
    chance,
    log_uniform,
    peak_normalised,
)
from frami_edge.inversion.procedural.envelopes import dips, envelope
from frami_edge.inversion.procedural.spectra import SpectrumFactory
from frami_edge_runtime.errors import AudioError

_SHARES = np.cumsum([share for _, share in events.FAMILIES])
_TONAL_RHYTHM_S = 0.4
"""Seconds, longest sound that is repeated: longer ones overlap at most periods."""


class ProceduralAudio:
    """Hand-written random sounds: no recording and no teacher is involved.

    Each clip layers one to four events (shaped noise, harmonic tones, chirps, impacts, click
    trains; sustained, single or repeated) over an optional background, in an optional room, at a
    random level. The ranges and their reasons are in `frami_edge.inversion.procedural.ranges`.

    Args:
        sample_rate: Hz, at least 1000.
        seconds: Length of a clip, at least 0.05 s.

    Raises:
        AudioError: A rate or length too small to hold a sound.
    """

    def __init__(self, sample_rate: int, seconds: float) -> None:
        """Check the arguments and prepare the filters' frequency grid."""
        if sample_rate < 1000:
            raise AudioError(
                f"Procedural audio needs a sample rate of at least 1000 Hz, not {sample_rate}.",
                fix="Check MelSpec.sample_rate: it is in Hz.",
            )
        if not 0.05 <= seconds <= 600:
            raise AudioError(
                f"Procedural audio makes clips of 0.05 to 600 s, not {seconds:g} s.",
                fix="Ask for another number of frames.",
            )
        self.sample_rate = sample_rate
        self.samples = round(sample_rate * seconds)
        self._spectra = SpectrumFactory(sample_rate)

    def clips(self, n: int, seed: int, *, start: int = 0) -> npt.NDArray[np.float32]:
        """Clips ``start`` to ``start + n - 1`` of the endless series that a seed names.

        Returns:
            (n, samples) float32 in [-1, 1]. Clip i depends on the seed and on i only.

        Raises:
            AudioError: ``n``, ``seed`` or ``start`` is negative.
        """
        if min(n, seed, start) < 0:
            raise AudioError(
                f"Procedural audio: n {n}, seed {seed}, start {start}: none may be < 0."
            )
        out = np.empty((n, self.samples), dtype=np.float32)
        for i in range(n):
            out[i] = self._clip(np.random.default_rng([seed, start + i]))
        return out

    def _clip(self, rng: Rng) -> Samples:
        n, rate = self.samples, self.sample_rate
        mix = np.zeros(n, dtype=np.float32)
        for _ in range(int(rng.integers(ranges.EVENTS[0], ranges.EVENTS[1] + 1))):
            self._add_event(rng, mix)
        if chance(rng, ranges.ROOM_SHARE):
            mix = self._in_room(rng, mix)
        if chance(rng, ranges.DIP_SHARE):
            mix *= dips(rng, n, rate)
        if chance(rng, ranges.BACKGROUND_SHARE):
            mix += self._background(rng, mix)
        mix = peak_normalised(mix) * np.float32(amplitude(rng.uniform(*ranges.PEAK_DBFS)))
        if chance(rng, ranges.SENSOR_SHARE):
            level = np.float32(amplitude(rng.uniform(*ranges.SENSOR_DBFS)))
            mix += level * rng.standard_normal(n, dtype=np.float32)
        if chance(rng, ranges.DIGITAL_SILENCE_SHARE):
            cut = int(n * rng.uniform(0.05, 0.4))
            mix[slice(cut) if chance(rng, 0.5) else slice(n - cut, n)] = 0.0
        return np.clip(mix, -1.0, 1.0)

    def _add_event(self, rng: Rng, mix: Samples) -> None:
        n, rate = len(mix), self.sample_rate
        which = min(int(np.searchsorted(_SHARES, rng.random())), len(_SHARES) - 1)
        family = events.FAMILIES[which][0]
        level = np.float32(amplitude(rng.uniform(*ranges.EVENT_LEVEL_DB)))
        if chance(rng, ranges.SUSTAINED_SHARE) and family is not events.impact:
            mix += level * self._sound(rng, family, n, sustained=True)
            return
        shortest = min(ranges.SHORTEST_EVENT_S, n / rate)
        if chance(rng, ranges.RHYTHM_SHARE):
            length = log_uniform(rng, shortest, min(_TONAL_RHYTHM_S, n / rate))
            sound = self._sound(rng, family, int(length * rate), sustained=False)
            mix += level * events.rhythm(rng, n, rate, sound)
            return
        length = int(log_uniform(rng, shortest, n / rate) * rate)
        at = int(rng.integers(0, n - length + 1))
        mix[at : at + length] += level * self._sound(rng, family, length, sustained=False)

    def _sound(self, rng: Rng, family: events.Family, n: int, *, sustained: bool) -> Samples:
        n = max(n, 16)
        x = peak_normalised(family(rng, n, self._spectra))
        # A struck object has its own decay; another envelope would hide its attack.
        if family is not events.impact:
            x = x * envelope(rng, n, self.sample_rate, sustained=sustained)
        return peak_normalised(x)

    def _background(self, rng: Rng, mix: Samples) -> Samples:
        noise = events.shaped_noise(rng, len(mix), self._spectra)
        noise *= envelope(rng, len(mix), self.sample_rate, sustained=True)
        energy, own = float(np.mean(mix * mix)), float(np.mean(noise * noise))
        ratio = np.sqrt((energy + 1e-12) / (own + 1e-20))
        return noise * np.float32(ratio * amplitude(-rng.uniform(*ranges.BACKGROUND_SNR_DB)))

    def _in_room(self, rng: Rng, mix: Samples) -> Samples:
        """Add exponentially decaying diffuse reverberation (Polack's model of a late tail)."""
        rt60 = log_uniform(rng, *ranges.ROOM_RT60_S)
        length = min(int(rt60 * self.sample_rate), len(mix))
        tail = rng.standard_normal(length, dtype=np.float32)
        tail *= np.exp(
            np.arange(length, dtype=np.float32) / np.float32(-rt60 * self.sample_rate / 6.91)
        )
        level = amplitude(-rng.uniform(*ranges.ROOM_DIRECT_DB))
        tail *= np.float32(level) / (np.sqrt(np.sum(tail * tail)) + np.float32(1e-6))
        return mix + events.convolve(mix, tail)
