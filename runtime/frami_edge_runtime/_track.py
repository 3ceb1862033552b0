"""The state of one label: silent, sounding, fading, waiting for a merge, cooling down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from frami_edge_runtime._eventspec import Rule

ROUNDING_S: Final = 1e-9
"""Durations are differences of float64 times: this much shorter is as long."""


@dataclass(frozen=True)
class Event:
    """A label began, goes on, or ended."""

    kind: Literal["start", "update", "end"]
    label: str
    t0: float
    """Where it began, in seconds of the sample clock; see `frami_edge_runtime.events`."""
    t1: float
    """Up to where it was on: final in an ``end``, so far in the others."""
    at: float
    """End of the audio, heard or lost, that decided this, in seconds of the sample clock."""
    score: float
    """Best raw score of the results between ``t0`` and ``t1``, in 0..1."""
    last_score: float
    """Raw score of the newest result."""
    gap: bool
    """Samples were lost within it or right beside it."""

    @property
    def duration_s(self) -> float:
        """From ``t0`` to ``t1``."""
        return self.t1 - self.t0


class Track:
    """Takes one label's stretches in order and gives its events.

    A *run* is an unbroken row of stretches at or above ``on``. An event is *fading* from its first
    stretch below ``off``, and *resting* once that has lasted ``min_off_s``: then only a new run can
    revive it, until ``merge_gap_s`` is over.
    """

    def __init__(self, label: str, rule: Rule) -> None:
        """Begin silent."""
        self._label, self._rule = label, rule
        self._t0: float | None = None  # of the open event
        self._end = 0.0
        self._best = self._last = 0.0
        self._best_fading = 0.0  # since `_end`; counts only if the event goes on
        self._resting = False
        self._run: float | None = None  # where the run began
        self._run_best = 0.0
        self._not_before = 0.0  # end of the cooldown
        self._next_update = 0.0
        self._gap = self._run_gap = False

    def idle(self, now: float) -> bool:
        """Nothing is left to remember."""
        return self._t0 is None and self._run is None and now >= self._not_before

    def lose(self) -> None:
        """Samples were lost here."""
        self._gap = self._run_gap = True

    def step(
        self, begin: float, end: float, y: float, raw: float, at: float, *, after_gap: bool = False
    ) -> list[Event]:
        """One stretch (``begin``, ``end``] with the score ``y`` to decide on and its raw score."""
        self._last = raw
        if self._t0 is None:
            return self._silent(max(begin, self._not_before), end, y, raw, at, after_gap)
        if self._resting:
            return self._rest(begin, end, y, raw, at, after_gap)
        if y >= self._rule.off:
            self._sound(end, max(self._best_fading, raw))
            return self._update(at)
        self._best_fading = max(self._best_fading, raw)
        if end - self._end < self._rule.min_off_s - ROUNDING_S:
            return []
        self._resting, self._run = True, None
        return self._close_if_over(end, at)

    def close(self, at: float) -> list[Event]:
        """End the open event, if there is one, where it was on last."""
        if self._t0 is None:
            return []
        event = self._event("end", at)
        self._not_before = self._end + self._rule.cooldown_s
        self._t0, self._resting, self._gap = None, False, False
        return [event]

    def _silent(
        self, begin: float, end: float, y: float, raw: float, at: float, after_gap: bool
    ) -> list[Event]:
        if end <= begin or not self._runs(begin, end, y, raw, after_gap):
            return []
        assert self._run is not None
        self._t0, self._gap = self._run, self._run_gap
        self._best = 0.0
        self._sound(end, self._run_best)
        self._next_update = self._plan_update(at)
        return [self._event("start", at)]

    def _rest(
        self, begin: float, end: float, y: float, raw: float, at: float, after_gap: bool
    ) -> list[Event]:
        self._best_fading = max(self._best_fading, raw)
        if self._runs(begin, end, y, raw, after_gap):
            self._gap = self._gap or self._run_gap
            self._sound(end, self._best_fading)
            return self._update(at)
        return self._close_if_over(end, at)

    def _runs(self, begin: float, end: float, y: float, raw: float, after_gap: bool) -> bool:
        """Carry the run on or break it; True once it has lasted ``min_on_s``."""
        if y < self._rule.on:
            self._run = None
            return False
        if self._run is None:
            self._run, self._run_best, self._run_gap = begin, 0.0, after_gap
        self._run_best = max(self._run_best, raw)
        return end - self._run >= self._rule.min_on_s - ROUNDING_S

    def _sound(self, end: float, best: float) -> None:
        self._end, self._best = end, max(self._best, best)
        self._best_fading = 0.0
        self._resting, self._run = False, None

    def _close_if_over(self, end: float, at: float) -> list[Event]:
        # A run that began in time may still revive the event.
        waits_for = end if self._run is None else self._run
        if waits_for - self._end < self._rule.merge_gap_s - ROUNDING_S:
            return []
        return self.close(at)

    def _update(self, at: float) -> list[Event]:
        if at < self._next_update:
            return []
        self._next_update = self._plan_update(at)
        return [self._event("update", at)]

    def _plan_update(self, at: float) -> float:
        every = self._rule.update_s
        return float("inf") if every is None else at + every - ROUNDING_S

    def _event(self, kind: Literal["start", "update", "end"], at: float) -> Event:
        assert self._t0 is not None
        return Event(kind, self._label, self._t0, self._end, at, self._best, self._last, self._gap)
