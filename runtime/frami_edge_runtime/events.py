"""From results to events: hysteresis, durations, merging and cooldown, one code for any source.

Time is the sample clock of the results, never the wall clock. A result is about a window, so it
stands for one *stretch* of audio: from the middle of the previous result's window to the middle of
its own. The stretches follow each other without holes or overlap; the first begins at 0 s, the last
before a gap or the end reaches up to there. So an event's ``t0`` is the middle of the last window
*before* its first one at or above ``on``, and ``t1`` is the middle of its last window at or above
``off``: with ``on`` and ``off`` around 0.5, where a sound fills about half of the window, both lie
where the sound began and ended, however long the window is. The middle of an exponential window is
where half of its weight lies. What was decided when is `Event.at`.

What is lost in a gap counts as unheard: below every threshold, for as long as it took.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._eventspec import EventSpec, Rule, check_seconds
from frami_edge_runtime._track import Event, Track
from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.result import Result

__all__ = ["Event", "EventDetector", "EventSpec", "Rule"]

_UNHEARD: Final = -1.0


class EventDetector:
    """Turns the results of one stream into events; of any batching the same ones.

    It holds plain Python values only, a few per active label: pickle it to save it.

    Args:
        spec: When a label is on.
        labels: (K,) of the model.
        forget_s: Of the stream, where it was opened with that instead of ``window_s``: the middle
            of its window depends on it.

    Raises:
        StreamError: The spec names labels that the model does not have, or leaves none; or
            ``forget_s`` is no duration.
    """

    def __init__(
        self, spec: EventSpec, labels: Sequence[str], *, forget_s: float | None = None
    ) -> None:
        """Resolve the spec for these labels."""
        if forget_s is not None:
            check_seconds("forget_s", forget_s, above=0.0)
        self.spec = spec
        self.labels = tuple(labels)
        self._forget_s = forget_s
        self._rules = spec.rules(self.labels)
        # An ignored label has a threshold that no score reaches.
        self._on_K = np.array(
            [math.inf if rule is None else rule.on for rule in self._rules], np.float64
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything, without ending what is open; the next result is of a new clip."""
        self._tracks: dict[int, Track] = {}
        self._middle = 0.0  # up to where the stretches reach
        self._t0 = self._t1 = 0.0  # of the last result
        self._smooth_K: npt.NDArray[np.float64] | None = None
        self._raw_K: npt.NDArray[np.float64] | None = None
        self._gap_end: float | None = None

    def push(self, result: Result, *, level_db: float | None = None) -> list[Event]:
        """Take the next result of the stream, also the one of `Stream.flush`; give what it decides.

        Args:
            result: Of the same labels, not older than the last one.
            level_db: Of the result's window, for a spec with ``min_level_db``.

        Raises:
            StreamError: The result is of another model, or older than the last one.
        """
        self._check(result)
        events: list[Event] = []
        if result.gap:
            events += self._lose(result)
        middle = max(self._middle, self._middle_of(result))
        raw_K = result.scores.astype(np.float64)
        quiet = (
            level_db is not None
            and self.spec.min_level_db is not None
            and level_db < self.spec.min_level_db
        )
        y_K = self._smoothed(np.zeros_like(raw_K) if quiet else raw_K, middle - self._middle)
        if middle > self._middle:
            events += self._step(self._middle, middle, y_K, raw_K, result.t1)
        self._middle, self._t0, self._t1, self._raw_K = middle, result.t0, result.t1, raw_K
        return events

    def finish(self, t: float | None = None) -> list[Event]:
        """End the clip at ``t`` seconds: the last result stands up to there; all events end.

        Args:
            t: End of the clip on the sample clock; None for the end of the last result.

        Raises:
            StreamError: ``t`` lies before the end of the last result.
        """
        end = self._t1 if t is None else t
        if not end >= self._t1 - 1e-9:
            raise StreamError(
                f"The clip cannot end at {end} s: there was a result up to {self._t1:.3f} s.",
                fix="Give the end of the clip, or nothing.",
            )
        events = self._extend(end, end)
        for index in sorted(self._tracks):
            events += self._tracks[index].close(end)
        self.reset()
        return events

    def _check(self, result: Result) -> None:
        if result.labels != self.labels:
            raise StreamError(
                "This result is of a model with other labels.",
                fix="Use one detector for each stream.",
            )
        if result.t1 < self._t1 or result.t0 < self._t0:
            raise StreamError(
                f"A result about {result.t0:.3f}-{result.t1:.3f} s came after one about "
                f"{self._t0:.3f}-{self._t1:.3f} s.",
                fix="Push results in their order, and call finish() or reset() between clips.",
            )

    def _middle_of(self, result: Result) -> float:
        length = result.t1 - result.t0
        if self._forget_s is None:
            return result.t0 + length / 2
        half = (1 - 2 ** (-length / self._forget_s)) / 2
        return result.t1 + self._forget_s * math.log2(1 - half)

    def _lose(self, result: Result) -> list[Event]:
        """Samples were lost before this result: finish what was heard, then be deaf."""
        unheard = result.t0 > self._t1  # else its window reaches across the gap
        events = self._extend(self._t1, self._t1) if unheard else []
        for track in self._tracks.values():
            track.lose()
        if unheard:
            self._smooth_K = None
            deaf_K = np.full(len(self.labels), _UNHEARD)
            raw_K = deaf_K if self._raw_K is None else self._raw_K
            events += self._step(self._middle, result.t0, deaf_K, raw_K, result.t0)
            self._middle = result.t0
        self._gap_end = self._middle
        return events

    def _extend(self, t: float, at: float) -> list[Event]:
        """Let the last result stand up to ``t``."""
        if self._raw_K is None or t <= self._middle:
            return []
        y_K = self._raw_K if self._smooth_K is None else self._smooth_K
        events = self._step(self._middle, t, y_K, self._raw_K, at)
        self._middle = t
        return events

    def _smoothed(self, raw_K: npt.NDArray[np.float64], seconds: float) -> npt.NDArray[np.float64]:
        if self.spec.smooth_s == 0 or self._smooth_K is None:
            self._smooth_K = raw_K
        else:
            keep = 2 ** (-seconds / self.spec.smooth_s)
            self._smooth_K = keep * self._smooth_K + (1 - keep) * raw_K
        return self._smooth_K

    def _step(
        self,
        begin: float,
        end: float,
        y_K: npt.NDArray[np.float64],
        raw_K: npt.NDArray[np.float64],
        at: float,
    ) -> list[Event]:
        """One stretch for every label that is active or may become so."""
        events: list[Event] = []
        loud = np.flatnonzero(y_K >= self._on_K).tolist()
        for index in sorted({*loud, *self._tracks}):
            track = self._tracks.get(index)
            if track is None:
                rule = self._rules[index]
                assert rule is not None  # its threshold is finite
                track = self._tracks[index] = Track(self.labels[index], rule)
            y, raw = float(y_K[index]), float(raw_K[index])
            events += track.step(begin, end, y, raw, at, after_gap=begin == self._gap_end)
            if track.idle(end):
                del self._tracks[index]
        return sorted(events, key=lambda event: event.kind != "end")
