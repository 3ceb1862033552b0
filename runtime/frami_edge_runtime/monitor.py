"""What is wrong with an input: channels that cancel, samples that never change, clipping, stalls.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import AudioError

Channel: TypeAlias = "int | Literal['mix']"
INT16_SCALE: Final = np.float32(1 / 32768)
STALLED_S: Final = 5.0
DEAD_S: Final = 60.0
"""Input without any change for this long comes from no microphone that works."""
REVIEW_S: Final = 10.0
REPEAT_S: Final = 600.0
CLIPPED_SHARE: Final = 1e-3
CANCELLED_DB: Final = 20.0
"""The average of 30 independent channels is 15 dB below them."""
AUDIBLE_DB: Final = -70.0


def check_channel(channel: Channel, channels: int, name: str) -> None:
    """Refuse a channel that does not exist.

    Raises:
        AudioError: There is no such channel.
    """
    if channel != "mix" and channel not in range(1, channels + 1):
        raise AudioError(
            f"{name} has no channel {channel!r}; it has {channels}.",
            fix=f"Use a number in 1..{channels}, or 'mix' for the average of all.",
        )


def to_mono(x_NC: npt.NDArray[Any], channel: Channel) -> npt.NDArray[Any]:
    """One channel of (N, C), counted from 1, as it is; or the average of all, in float32."""
    if channel != "mix":
        return x_NC[:, channel - 1]
    if x_NC.shape[1] == 1:
        return x_NC[:, 0]
    x_N: npt.NDArray[Any] = x_NC.mean(axis=1, dtype=np.float32)
    return x_N * INT16_SCALE if x_NC.dtype.kind == "i" else x_N


@dataclass
class CaptureStats:
    """Counters since the source was opened, in samples at its rate."""

    samples_in: int = 0
    """Captured samples, including those that were dropped later."""
    dropped: int = 0
    """Lost samples: dropped before they were read, or reported lost by the device."""
    overruns: int = 0
    """How many times samples were lost."""
    lag_s: float = 0.0
    """Seconds of audio that wait to be read."""
    max_lag_s: float = 0.0
    """The most that ever waited."""
    clipped: int = 0
    """Samples at full scale between two others at full scale."""
    dead_s: float = 0.0
    """Seconds of audio without any change, as of a muted or broken microphone."""
    stalled_s: float = 0.0
    """Seconds in which a pipe, or arecord, delivered nothing."""
    clock_steps: int = 0
    """Losses whose size was bounded because the clock of the time stamps had been set."""


class InputMonitor:
    """Turns channels into mono, and notices input that no model can answer about.

    Warnings are pairs of a kind and a sentence. Kinds: ``dead`` (the input does not change),
    ``clipping``, ``cancelling`` (channels out of phase), ``stalled`` (a pipe), ``clock`` (time
    stamps that jumped), ``header`` (a file of another length than it states). The same kind comes
    at most once in `REPEAT_S` of audio.

    Args:
        name: Name of the source, for warnings.
        sample_rate: Hz.
        channel: As for `to_mono`.
        stall_s: Seconds without data after which `stalled` raises; None: never.
    """

    def __init__(
        self, name: str, sample_rate: int, channel: Channel, stall_s: float | None = None
    ) -> None:
        self.name, self.stats = name, CaptureStats()
        self._rate, self._channel, self._stall_s = sample_rate, channel, stall_s
        self._warnings: deque[tuple[str, str]] = deque()
        self._warned: dict[str, float] = {}  # kind: clock in seconds
        self._stalled_s = 0.0  # of the current stall
        self._dead = 0  # samples without a change, up to now
        self._last: Any = None
        self._restart()

    def mono(self, x_NC: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The mono samples (N,) of a block (N, C); N may be 0."""
        x_N = to_mono(x_NC, self._channel)
        if len(x_N) == 0:
            return x_N
        self._stalled_s = 0.0
        used_NC = x_NC if self._channel == "mix" else x_N[:, None]
        self.stats.samples_in += len(x_N)
        self._watch_changes(used_NC)
        clipped = _clipped(used_NC)
        self.stats.clipped += clipped
        self._clipped += clipped
        self._reviewed += len(x_N)
        if used_NC.shape[1] > 1:
            scale = float(INT16_SCALE) if x_NC.dtype.kind == "i" else 1.0
            y_NC = used_NC.astype(np.float32)
            powers_C = np.einsum("nc,nc->c", y_NC, y_NC) / len(y_NC) - y_NC.mean(axis=0) ** 2
            self._energy += float(powers_C.mean()) * scale**2 * len(x_N)
            self._mixed_energy += float(x_N.var()) * len(x_N)
        if self._reviewed >= REVIEW_S * self._rate:
            self.review()
        return x_N

    def _watch_changes(self, x_NC: npt.NDArray[Any]) -> None:
        if not (x_NC == x_NC[0]).all() or (self._dead and (x_NC[0] != self._last).any()):
            self._dead = 0
        else:
            self._dead += len(x_NC)
            self.stats.dead_s += len(x_NC) / self._rate
            if self._dead >= DEAD_S * self._rate:
                value = "zero" if not x_NC[0].any() else "the same value"
                seconds = self._dead / self._rate
                self.warn(
                    "dead",
                    f"All samples of the last {seconds:.0f} s are {value}: the "
                    "microphone is muted, broken or not the right one.",
                )
        self._last = x_NC[-1].copy()

    def review(self) -> None:
        """Judge the audio since the last review; called every `REVIEW_S`, and at the end."""
        samples = max(1, self._reviewed)
        if self._clipped > CLIPPED_SHARE * samples:
            share = 100 * self._clipped / samples
            self.warn("clipping", f"{share:.1f} % of the samples are clipped: lower the gain.")
        audible = self._energy / samples > 10 ** (AUDIBLE_DB / 10)
        if audible and self._energy > 10 ** (CANCELLED_DB / 10) * self._mixed_energy:
            self.warn(
                "cancelling",
                "The channels cancel each other out of phase: their average is "
                "far below them. Choose one, as with --channel 1.",
            )
        self._restart()

    def _restart(self) -> None:
        self._reviewed = self._clipped = 0
        self._energy = self._mixed_energy = 0.0

    def stalled(self, seconds: float) -> None:
        """Nothing came for this long.

        Raises:
            AudioError: Nothing came for ``stall_s``.
        """
        self._stalled_s += seconds
        self.stats.stalled_s += seconds
        what = f"No audio came from {self.name} for {self._stalled_s:g} s."
        if self._stall_s is not None and self._stalled_s >= self._stall_s:
            raise AudioError(what, fix="Check the program that writes to it.")
        if self._stalled_s >= STALLED_S > self._stalled_s - seconds:
            self._warnings.append(("stalled", what))

    def warn(self, kind: str, message: str) -> None:
        """Add a warning, unless one of the kind is recent."""
        now_s = self.stats.samples_in / self._rate
        if now_s - self._warned.get(kind, -REPEAT_S) >= REPEAT_S:
            self._warned[kind] = now_s
            self._warnings.append((kind, message))

    def take_warnings(self) -> list[tuple[str, str]]:
        """Warnings since the last call, in order, as (kind, sentence)."""
        return [self._warnings.popleft() for _ in range(len(self._warnings))]


def _clipped(x_NC: npt.NDArray[Any]) -> int:
    """Samples at full scale between two others: the peak of a normalised tone has none."""
    low, high = (-32768, 32767) if x_NC.dtype.kind == "i" else (-0.99996, 0.99996)
    if x_NC.min() > low and x_NC.max() < high:
        return 0
    ends = (x_NC <= low, x_NC >= high)
    return sum(int((full[:-2] & full[1:-1] & full[2:]).sum()) for full in ends)
