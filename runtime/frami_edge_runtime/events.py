"""Events from a stream of results: hysteresis, durations, merging and cooldown.

A result describes a window, so it decides one *stretch* of audio: from the middle of the previous
result's window to the middle of its own. With ``on`` and ``off`` around 0.5, where a sound fills
about half of the window, an event therefore starts and ends where the sound did, however long the
window is. The last result of a clip decides up to its end. The middle of an exponential window has
half of the weight on each side. Audio that was lost in a gap counts as below every threshold.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.stream import Result

LONGEST_S: Final = 86_400.0
ROUNDING_S: Final = 1e-9
"""Durations are differences of float64 times: this much shorter counts as equal."""
_PER_LABEL: Final = ("on", "off", "min_on_s", "min_off_s", "merge_gap_s", "cooldown_s", "update_s")


@dataclass(frozen=True)
class EventSpec:
    """Settings of an `EventDetector`; durations in seconds of the sample clock.

    Raises:
        StreamError: A setting is out of range or can never have an effect; the reason is named.
    """

    on: float = 0.5
    """An event starts where the score stays at or above this threshold."""
    off: float | None = None
    """An event ends where the score stays below this threshold. Default, as in silero-vad:
    ``max(on - 0.15, 0.01)``, or ``on`` where that is lower."""
    min_on_s: float = 0.0
    """Time at or above ``on``, without a break, that starts an event."""
    min_off_s: float = 0.0
    """Time below ``off`` that ends an event; shorter dips belong to it."""
    merge_gap_s: float = 0.0
    """A start less than this after an end continues the event, so ends are reported that much
    later."""
    cooldown_s: float = 0.0
    """Time after an end during which the label is ignored."""
    smooth_s: float = 0.0
    """Half-life of an exponential average over the scores that decide; 0: none. Events report raw
    scores."""
    update_s: float | None = 1.0
    """Minimum time between updates of an open event; None: no updates."""
    min_level_db: float | None = None
    """Results about windows quieter than this, in dB of full scale, count as score 0. Needs
    ``level_db`` in `EventDetector.push`."""
    watch: tuple[str, ...] | None = None
    """Only these labels; None: all."""
    ignore: tuple[str, ...] = ()
    """All labels but these."""
    overrides: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Settings for single labels, as ``{"siren": {"on": 0.8, "min_on_s": 2.0}}``."""

    def __post_init__(self) -> None:
        _check_number("on", self.on, 1.0)
        _check_number("off", self.threshold_off, 1.0)
        for name in ("min_on_s", "min_off_s", "merge_gap_s", "cooldown_s", "smooth_s"):
            _check_number(name, getattr(self, name), LONGEST_S)
        if self.update_s is not None:
            _check_number("update_s", self.update_s, LONGEST_S)
        if self.min_level_db is not None:
            _check_number("min_level_db", self.min_level_db, 0.0, -200.0)
        pause = max(self.merge_gap_s, self.min_off_s)
        for wrong, why in (
            (self.threshold_off <= 0, "off is 0: no event would ever end"),
            (self.threshold_off > self.on, "off is above on: events would end as they start"),
            (self.on == 1 and self.smooth_s > 0, "on is 1, which an average never reaches"),
            (
                0 < self.merge_gap_s <= self.min_off_s,
                "merge_gap_s can never act: it must be above min_off_s",
            ),
            (
                0 < self.cooldown_s <= pause,
                "cooldown_s can never act: it must be above merge_gap_s and min_off_s",
            ),
        ):
            if wrong:
                raise StreamError(f"{why}.", fix="Change one of them, or leave it out.")
        for name, labels in (("watch", self.watch or ()), ("ignore", self.ignore)):
            if not isinstance(labels, Sequence) or isinstance(labels, (str, bytes)):
                raise StreamError(f"{name} is no sequence of labels.", fix=f'{name}=("siren",)')
        if self.watch is not None and not set(self.watch) - set(self.ignore):
            raise StreamError("No label is left to watch.", fix="Ignore fewer labels.")
        for label in self.overrides:
            self.rule(label)

    @property
    def threshold_off(self) -> float:
        """``off``, or its default."""
        return min(self.on, max(self.on - 0.15, 0.01)) if self.off is None else self.off

    def rule(self, label: str) -> EventSpec | None:
        """The settings of one label; None where it is not watched.

        Raises:
            StreamError: Its override changes what cannot be changed per label, or to nonsense.
        """
        watched = label not in self.ignore and (self.watch is None or label in self.watch)
        if label not in self.overrides:
            return replace(self, overrides={}) if watched else None
        changes: Any = self.overrides[label]
        if not watched or not isinstance(changes, Mapping) or set(changes) - set(_PER_LABEL):
            raise StreamError(
                f"The override for {label!r} cannot be used.",
                fix=f"Watch the label, and set only {', '.join(_PER_LABEL)}.",
            )
        if "on" in changes:
            changes = {"off": None, **changes}  # an `off` for another `on` would mean nothing
        try:
            return replace(self, overrides={}, **changes)
        except StreamError as error:
            raise StreamError(f"For {label!r}: {error.message}", fix=error.fix) from None

    def rules(self, labels: Sequence[str]) -> list[EventSpec | None]:
        """`rule` for each of the (K,) labels.

        Raises:
            StreamError: A label is named that is not among ``labels``, or none is left.
        """
        for label in (*(self.watch or ()), *self.ignore, *self.overrides):
            if label not in labels:
                near = difflib.get_close_matches(label, labels, 3, 0.5) or list(labels)[:5]
                known = ", ".join(map(repr, near)) + (", ..." if len(near) < len(labels) else "")
                raise StreamError(f"The model has no label {label!r}.", fix=f"It has {known}.")
        rules = [self.rule(label) for label in labels]
        if not any(rules):
            raise StreamError("No label is left to watch.", fix="Ignore fewer labels.")
        return rules


def _check_number(name: str, value: Any, most: float, least: float = 0.0) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and least <= value <= most):
        raise StreamError(
            f"{name} must be a number in {least:g}..{most:g}, not {str(value)[:40]!r}.",
            fix="Leave it out for the default.",
        )


@dataclass(frozen=True)
class Event:
    """The start, an update or the end of a label's event."""

    kind: Literal["start", "update", "end"]
    label: str
    t0: float
    """Start of the event in seconds of the sample clock; see `frami_edge_runtime.events`."""
    t1: float
    """Last time at which it was on: final in an ``end``, so far in the others."""
    at: float
    """End of the audio, received or lost, that decided this, in seconds of the sample clock."""
    score: float
    """Best raw score of the results between ``t0`` and ``t1``, in 0..1."""
    last_score: float
    """Raw score of the newest result."""
    gap: bool
    """Samples were lost within the event or next to it."""

    @property
    def duration_s(self) -> float:
        """Seconds from ``t0`` to ``t1``."""
        return self.t1 - self.t0


class _Track:
    """State of one label.

    A *run* is an unbroken sequence of stretches at or above ``on``. An open event is *resting* once
    it was below ``off`` for ``min_off_s``: only a new run within ``merge_gap_s`` revives it.
    """

    def __init__(self, label: str, rule: EventSpec) -> None:
        self.label, self.rule = label, rule
        self.t0: float | None = None  # start of the open event
        self.end = 0.0  # where it was on last
        self.best = self.last = 0.0
        self.best_since = 0.0  # since `end`; counts only if the event continues
        self.resting = self.gap = self.run_gap = False
        self.run: float | None = None  # start of the run
        self.run_best = 0.0
        self.not_before = 0.0  # end of the cooldown
        self.next_update = 0.0

    def idle(self, now: float) -> bool:
        return self.t0 is None and self.run is None and now >= self.not_before

    def step(
        self, begin: float, end: float, y: float, raw: float, at: float, after_gap: bool
    ) -> list[Event]:
        """One stretch (``begin``, ``end``] with the score ``y`` that decides and the raw score."""
        self.last = raw
        if self.t0 is None:
            begin = max(begin, self.not_before)
            if end <= begin or not self._run_is_long(begin, end, y, raw, after_gap):
                return []
            self.t0, self.gap, self.best = self.run, self.run_gap, 0.0
            self._stay_on(end, self.run_best)
            return [self._report("start", at)]
        self.best_since = max(self.best_since, raw)
        if self.resting:
            on = self._run_is_long(begin, end, y, raw, after_gap)
            self.gap = self.gap or (on and self.run_gap)
        else:
            on = y >= self.rule.threshold_off
        if on:
            self._stay_on(end, self.best_since)
            return [self._report("update", at)] if at >= self.next_update else []
        if not self.resting:
            if end - self.end < self.rule.min_off_s - ROUNDING_S:
                return []
            self.resting, self.run = True, None
        # A run that began in time may still revive the event.
        waited_until = end if self.run is None else self.run
        if waited_until - self.end < self.rule.merge_gap_s - ROUNDING_S:
            return []
        return self.close(at)

    def close(self, at: float) -> list[Event]:
        """End the open event, if there is one, where it was on last."""
        if self.t0 is None:
            return []
        event = self._report("end", at)
        self.not_before = self.end + self.rule.cooldown_s
        self.t0, self.resting, self.gap = None, False, False
        return [event]

    def _run_is_long(self, begin: float, end: float, y: float, raw: float, gap: bool) -> bool:
        """Extend the run or break it; True once it has lasted ``min_on_s``."""
        if y < self.rule.on:
            self.run = None
            return False
        if self.run is None:
            self.run, self.run_best, self.run_gap = begin, 0.0, gap
        self.run_best = max(self.run_best, raw)
        return end - self.run >= self.rule.min_on_s - ROUNDING_S

    def _stay_on(self, end: float, best: float) -> None:
        self.end, self.best, self.best_since = end, max(self.best, best), 0.0
        self.resting, self.run = False, None

    def _report(self, kind: Literal["start", "update", "end"], at: float) -> Event:
        every = self.rule.update_s
        self.next_update = math.inf if every is None else at + every - ROUNDING_S
        assert self.t0 is not None
        return Event(kind, self.label, self.t0, self.end, at, self.best, self.last, self.gap)


class EventDetector:
    """Turns the results of one stream into events, the same ones for any chunking.

    It holds a few plain Python values per active label: pickle it to save it.

    Args:
        spec: Thresholds and durations.
        labels: (K,) labels of the model.
        forget_s: Half-life of the stream, where it was opened with ``forget_s`` instead of
            ``window_s``: the middle of its window depends on it.

    Raises:
        StreamError: The spec names labels that the model does not have, or leaves none; or
            ``forget_s`` is no duration.
    """

    def __init__(
        self, spec: EventSpec, labels: Sequence[str], *, forget_s: float | None = None
    ) -> None:
        if forget_s is not None:
            _check_number("forget_s", forget_s, LONGEST_S, ROUNDING_S)
        self.spec = spec
        self.labels = tuple(labels)
        self._forget_s = forget_s
        self._rules = spec.rules(self.labels)
        # An ignored label has a threshold that no score reaches.
        self._on_K = np.array([math.inf if r is None else r.on for r in self._rules], np.float64)
        self.reset()

    def reset(self) -> None:
        """Forget everything without ending open events; the next result starts a new clip."""
        self._tracks: dict[int, _Track] = {}
        self._middle = 0.0  # end of the stretches so far
        self._t0 = self._t1 = 0.0  # of the last result
        self._smooth_K: npt.NDArray[np.float64] | None = None
        self._raw_K: npt.NDArray[np.float64] | None = None
        self._gap_end: float | None = None

    def push(self, result: Result, *, level_db: float | None = None) -> list[Event]:
        """Take the next result of the stream, including the one of `Stream.flush`.

        Args:
            result: A result with the labels of the detector, not older than the last one.
            level_db: Level of the result's window, for a spec with ``min_level_db``.

        Returns:
            The events that this result decides.

        Raises:
            StreamError: The result has other labels, or is older than the last one.
        """
        if result.labels != self.labels:
            raise StreamError(
                "This result is of a model with other labels.",
                fix="Use one detector per stream.",
            )
        if result.t1 < self._t1 or result.t0 < self._t0:
            raise StreamError(
                f"A result about {result.t0:.3f}-{result.t1:.3f} s came after one about "
                f"{self._t0:.3f}-{self._t1:.3f} s.",
                fix="Push results in order, and call finish() or reset() between clips.",
            )
        events = self._lose(result) if result.gap else []
        middle = max(self._middle, self._middle_of(result))
        raw_K = result.scores.astype(np.float64)
        least_db = self.spec.min_level_db
        quiet = level_db is not None and least_db is not None and level_db < least_db
        y_K = np.zeros_like(raw_K) if quiet else raw_K
        if self.spec.smooth_s > 0 and self._smooth_K is not None:
            keep = 2 ** (-(middle - self._middle) / self.spec.smooth_s)
            y_K = keep * self._smooth_K + (1 - keep) * y_K
        self._smooth_K, self._raw_K = y_K, raw_K
        events += self._step(middle, y_K, raw_K, result.t1)
        self._t0, self._t1 = result.t0, result.t1
        return events

    def finish(self, t: float | None = None) -> list[Event]:
        """End the clip: the last result decides up to its end, and all events end.

        Args:
            t: End of the clip in seconds of the sample clock; at least the end of the last result,
                which is the default.
        """
        end = self._t1 if t is None else max(t, self._t1)
        events = self._hold(end)
        for index in sorted(self._tracks):
            events += self._tracks[index].close(end)
        self.reset()
        return events

    def _middle_of(self, result: Result) -> float:
        length = result.t1 - result.t0
        if self._forget_s is None:
            return result.t0 + length / 2
        half = (1 - 2 ** (-length / self._forget_s)) / 2
        return result.t1 + self._forget_s * math.log2(1 - half)

    def _lose(self, result: Result) -> list[Event]:
        """Samples were lost before this result: decide what came before, then count as silent."""
        apart = result.t0 > self._t1  # else the result's window reaches across the gap
        events = self._hold(self._t1) if apart else []
        for track in self._tracks.values():
            track.gap = track.run_gap = True
        if apart:
            self._smooth_K = None
            below_K = np.full(len(self.labels), -1.0)
            raw_K = below_K if self._raw_K is None else self._raw_K
            events += self._step(result.t0, below_K, raw_K, result.t0)
        self._gap_end = self._middle
        return events

    def _hold(self, t: float) -> list[Event]:
        """Let the last result decide up to ``t``."""
        if self._raw_K is None or self._smooth_K is None:
            return []
        return self._step(t, self._smooth_K, self._raw_K, t)

    def _step(
        self,
        end: float,
        y_K: npt.NDArray[np.float64],
        raw_K: npt.NDArray[np.float64],
        at: float,
    ) -> list[Event]:
        """The stretch up to ``end``, for every label that is active or may become so."""
        begin = self._middle
        if end <= begin:
            return []
        self._middle = end
        events: list[Event] = []
        on = np.flatnonzero(y_K >= self._on_K).tolist()
        for index in sorted({*on, *self._tracks}):
            if index not in self._tracks:
                rule = self._rules[index]
                assert rule is not None  # an ignored label never reaches its threshold
                self._tracks[index] = _Track(self.labels[index], rule)
            track = self._tracks[index]
            y, raw = float(y_K[index]), float(raw_K[index])
            events += track.step(begin, end, y, raw, at, after_gap=begin == self._gap_end)
            if track.idle(end):
                del self._tracks[index]
        return sorted(events, key=lambda event: event.kind != "end")
