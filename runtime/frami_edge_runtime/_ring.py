"""A bounded ring of samples between a capture callback and a slower reader."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import HIGHEST_RATE
from frami_edge_runtime.errors import AudioError

Policy = Literal["drop_oldest", "block", "raise"]
POLICIES: Final = ("drop_oldest", "block", "raise")
LONGEST_RING_S: Final = 600.0

WARN_SHARE: Final = 0.1
WARN_OVER_S: Final = 300.0
"""More than a tenth lost over five minutes is worth a warning: BirdNET-Go's rule."""
_BUCKETS: Final = 30


@dataclass(frozen=True)
class CaptureStats:
    """Counters since the capture was opened, in samples at its rate."""

    samples_in: int = 0
    """Captured, also those that were dropped later."""
    dropped: int = 0
    """Lost: overwritten before they were read, or reported lost by the device."""
    overruns: int = 0
    """How many times samples were lost."""
    lag_s: float = 0.0
    """Audio that waits to be read."""
    max_lag_s: float = 0.0
    """The most that ever waited."""


class SampleRing:
    """Takes samples from one thread and gives them to another, in order; counts what is lost.

    All memory is allocated here. Where samples were lost, a read stops before the place, and the
    next one says how many: hand that number to `Stream.gap`.

    Args:
        sample_rate: Hz.
        seconds: Capacity.
        policy: When it is full, ``drop_oldest`` forgets the oldest samples (live), ``block`` lets
            the writer wait (files), ``raise`` raises in the writer (tests).
        dtype: Of the samples, int16 or float32.

    Raises:
        AudioError: The rate, capacity, policy or dtype is not one.
    """

    def __init__(
        self,
        sample_rate: int,
        seconds: float = 10.0,
        policy: Policy = "drop_oldest",
        dtype: npt.DTypeLike = np.int16,
    ) -> None:
        """Allocate."""
        rated = isinstance(sample_rate, (int, np.integer)) and 1 <= sample_rate <= HIGHEST_RATE
        if not rated or isinstance(sample_rate, bool):
            raise AudioError(
                f"A ring cannot run at {str(sample_rate)[:40]} Hz.",
                fix=f"Use a whole number in 1..{HIGHEST_RATE}.",
            )
        known = isinstance(seconds, (int, float)) and 0 < seconds <= LONGEST_RING_S
        if not known or int(seconds * sample_rate) < 1:
            raise AudioError(
                f"A ring of {str(seconds)[:40]} s cannot be allocated.",
                fix=f"Use more than 0 s and at most {LONGEST_RING_S:g} s.",
            )
        if policy not in POLICIES:
            raise AudioError(
                f"There is no policy {policy!r}.", fix=f"Use one of {', '.join(POLICIES)}."
            )
        try:
            self._dtype = np.dtype(dtype)
        except (TypeError, ValueError):
            self._dtype = np.dtype("V")
        if self._dtype not in (np.int16, np.float32):
            raise AudioError(
                f"A ring holds int16 or float32, not {str(dtype)[:40]}.", fix="Use one of them."
            )
        self.sample_rate = sample_rate
        self.capacity = int(seconds * sample_rate)
        self.policy = policy
        self._buffer: npt.NDArray[Any] = np.zeros(self.capacity, self._dtype)
        self._changed = threading.Condition()
        self._written = self._read = 0  # positions; the buffer holds what lies between
        self._in = 0
        self._gaps: deque[tuple[int, int]] = deque()  # (position, samples lost before it)
        self._lost = 0  # before `_read`, not yet told
        self._dropped = self._overruns = self._most = 0
        self._closed = False
        self._error: BaseException | None = None
        self._buckets: deque[tuple[int, int]] = deque(maxlen=_BUCKETS)  # (in and lost, lost)
        self._bucket_in = self._bucket_lost = 0
        self._since_warning = 0

    def write(self, samples: npt.NDArray[Any]) -> int:
        """Copy (N,) samples in; for the callback: it only copies, and waits only if told to.

        Returns:
            Samples that were overwritten for it.

        Raises:
            AudioError: The ring is full, and its policy is to raise; or these are no (N,) samples
                of the ring's dtype. Nothing was written.
        """
        # NumPy would cast: float samples would all become 0.
        if getattr(samples, "dtype", None) != self._dtype or samples.ndim != 1:
            raise AudioError(
                f"The ring takes (N,) {self._dtype} samples only.",
                fix="Open it with the dtype of the samples, and write one channel.",
            )
        with self._changed:
            if self.policy == "raise" and len(samples) > self.capacity - self._fill:
                raise AudioError(
                    f"The ring of {self.capacity / self.sample_rate:g} s is full.",
                    fix="Read faster, or make it longer.",
                )
            done = dropped = 0
            if self.policy == "drop_oldest":
                # Of a chunk longer than the ring, only the end will be left.
                done = max(0, len(samples) - self.capacity)
                dropped = self._forget(self._fill + len(samples) - done - self.capacity) + done
                self._lost += done
            while done < len(samples) and not self._closed:
                room = self.capacity - self._fill
                if room == 0:
                    self._changed.wait()
                    continue
                self._copy_in(samples[done : done + room])
                done += min(room, len(samples) - done)
                self._changed.notify_all()
            self._count(len(samples), dropped)
            return dropped

    def lose(self, samples: int) -> None:
        """The device itself lost samples after those written so far."""
        with self._changed:
            if samples <= 0:
                return
            if self._gaps and self._gaps[-1][0] == self._written:
                samples_before = self._gaps.pop()[1]
                self._gaps.append((self._written, samples_before + samples))
            else:
                self._gaps.append((self._written, samples))
            self._count(0, samples)

    def read(
        self, most: int | None = None, timeout: float | None = None
    ) -> tuple[npt.NDArray[Any], int] | None:
        """Wait for samples and take them.

        Args:
            most: Take at most so many.
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            (samples (N,), samples lost right before them); N is 0 after a timeout; None at the end.

        Raises:
            AudioError: ``most`` is below 1.
            BaseException: What `fail` was given, once everything written before it has been read.
        """
        if most is not None and most < 1:
            raise AudioError(f"A read takes at least 1 sample, not {most}.", fix="Use 1 or more.")
        with self._changed:
            self._changed.wait_for(lambda: self._fill > 0 or self._closed, timeout)
            if self._fill == 0:
                if self._error is not None:
                    raise self._error
                return None if self._closed else (self._buffer[:0].copy(), 0)
            self._pass_gaps()
            count = self._fill if most is None else min(most, self._fill)
            if self._gaps:
                count = min(count, self._gaps[0][0] - self._read)
            at = self._read % self.capacity
            samples = np.concatenate(
                [self._buffer[at : at + count], self._buffer[: max(0, at + count - self.capacity)]]
            )
            lost, self._lost = self._lost, 0
            self._read += count
            self._changed.notify_all()
            return samples, lost

    def close(self) -> None:
        """No more samples will come: writers stop waiting, readers get the rest, then None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Close, and raise this in the reader after the last sample."""
        self._error = error
        self.close()

    @property
    def stats(self) -> CaptureStats:
        """The counters now."""
        with self._changed:
            return CaptureStats(
                samples_in=self._in,
                dropped=self._dropped,
                overruns=self._overruns,
                lag_s=self._fill / self.sample_rate,
                max_lag_s=self._most / self.sample_rate,
            )

    def warning(self) -> str | None:
        """One sentence if more than 10 % was lost over the last 5 minutes; once in 5 minutes."""
        with self._changed:
            total = sum(n for n, _ in self._buckets)
            lost = sum(n for _, n in self._buckets)
            full = len(self._buckets) == _BUCKETS
            if not full or self._since_warning < _BUCKETS or lost <= WARN_SHARE * total:
                return None
            self._since_warning = 0
            return (
                f"{100 * lost / total:.0f} % of the audio of the last {WARN_OVER_S / 60:g} minutes "
                "was lost: this machine does not keep up."
            )

    @property
    def _fill(self) -> int:
        return self._written - self._read

    def _forget(self, samples: int) -> int:
        """Drop so many of the oldest, if any need be."""
        over = max(0, samples)
        self._read += over
        self._lost += over
        self._pass_gaps()
        return over

    def _pass_gaps(self) -> None:
        while self._gaps and self._gaps[0][0] <= self._read:
            self._lost += self._gaps.popleft()[1]

    def _copy_in(self, samples: npt.NDArray[Any]) -> None:
        at = self._written % self.capacity
        first = min(len(samples), self.capacity - at)
        self._buffer[at : at + first] = samples[:first]
        self._buffer[: len(samples) - first] = samples[first:]
        self._written += len(samples)
        self._most = max(self._most, self._fill)

    def _count(self, samples: int, lost: int) -> None:
        self._in += samples
        if lost:
            self._dropped += lost
            self._overruns += 1
        self._bucket_in += samples + (0 if samples else lost)
        self._bucket_lost += lost
        if self._bucket_in >= WARN_OVER_S / _BUCKETS * self.sample_rate:
            self._buckets.append((self._bucket_in, self._bucket_lost))
            self._bucket_in = self._bucket_lost = 0
            self._since_warning += 1
