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

import difflib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.stream import Result

# --- When a label counts as on: checked settings, with what can never work refused

LONGEST_S: Final = 86_400.0
OFF_BELOW_ON: Final = 0.15
"""Default hysteresis, and its lowest threshold: silero-vad's."""
LOWEST_OFF: Final = 0.01


@dataclass(frozen=True)
class Rule:
    """What decides about one label; see `EventSpec`, which has the defaults."""

    on: float
    off: float
    min_on_s: float
    min_off_s: float
    merge_gap_s: float
    cooldown_s: float
    update_s: float | None


_PER_LABEL: Final = tuple(f.name for f in fields(Rule))


@dataclass(frozen=True)
class EventSpec:
    """Hysteresis, durations and labels for an `EventDetector`. Seconds of the sample clock.

    Raises:
        StreamError: A setting is out of range, or can never have an effect; the reason is named.
    """

    on: float = 0.5
    """An event starts where the score stays at or above this ..."""
    off: float | None = None
    """... and ends where it stays below this. Default: ``max(on - 0.15, 0.01)``, or ``on`` where
    that is lower."""
    min_on_s: float = 0.0
    """How long the score must stay at or above ``on``, without a break, to start an event."""
    min_off_s: float = 0.0
    """How long it must stay below ``off`` to end one; shorter dips belong to it."""
    merge_gap_s: float = 0.0
    """A new start less than this after an end makes one event of both; ends are told that much
    later."""
    cooldown_s: float = 0.0
    """After an end, audio that the label is deaf to."""
    smooth_s: float = 0.0
    """Half-life of an exponential average over the scores that decide; raw ones stay in the events.
    0: none."""
    update_s: float | None = 1.0
    """Least time between updates of an event that goes on; None: no updates."""
    min_level_db: float | None = None
    """dB of full scale: results about windows that are quieter count as score 0. Closed-set models
    name silence too. Needs the levels; see `EventDetector.push`."""
    watch: tuple[str, ...] | None = None
    """Only these labels; None: all."""
    ignore: tuple[str, ...] = ()
    """Not these."""
    overrides: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Other values for single labels, as ``{"siren": {"on": 0.8, "min_on_s": 2.0}}``."""

    def __post_init__(self) -> None:
        """Check every value, also of the overrides."""
        check_seconds("smooth_s", self.smooth_s)
        if self.min_level_db is not None:
            _check_number("min_level_db", self.min_level_db, -200.0, 0.0)
        watch = () if self.watch is None else self.watch
        for name, labels in (("watch", watch), ("ignore", self.ignore)):
            if not _is_labels(labels):
                raise StreamError(
                    f"{name} must be a sequence of labels.", fix=f'Write {name}=("siren",).'
                )
        if self.watch is not None and not set(self.watch) - set(self.ignore):
            raise StreamError(
                "No label is left to watch: watch and ignore leave none.",
                fix="Watch a label that is not ignored.",
            )
        self._check_rule(self._rule({}), "")
        if not isinstance(self.overrides, Mapping):
            raise StreamError(
                "overrides must be a dictionary of dictionaries.",
                fix='Write overrides={"siren": {"on": 0.8}}.',
            )
        for label, changes in self.overrides.items():
            if not isinstance(changes, Mapping):
                raise StreamError(
                    f"The override for {str(label)[:40]!r} must be a dictionary.",
                    fix='Write overrides={"siren": {"on": 0.8}}.',
                )
            if unknown := sorted(map(str, set(changes) - set(_PER_LABEL))):
                raise StreamError(
                    f"{', '.join(unknown)} cannot be set for {label!r} alone.",
                    fix=f"Per label there are {', '.join(_PER_LABEL)}.",
                )
            if label in self.ignore or (self.watch is not None and label not in self.watch):
                raise StreamError(
                    f"There is an override for {label!r}, which is not watched.",
                    fix="Watch it, or take the override out.",
                )
            self._check_rule(self._rule(changes), f" for {label!r}")

    def rules(self, labels: Sequence[str]) -> list[Rule | None]:
        """One rule for each of the (K,) labels; None where it is not watched.

        Raises:
            StreamError: A label is named that is not among ``labels``, or none is left.
        """
        for label in (*(self.watch or ()), *self.ignore, *self.overrides):
            if label not in labels:
                near = difflib.get_close_matches(label, labels, 3, 0.5) or list(labels)[:5]
                raise StreamError(
                    f"The model has no label {label!r}.",
                    fix=f"It has {', '.join(map(repr, near))}"
                    + (" and others." if len(near) < len(labels) else "."),
                )
        watched = set(labels if self.watch is None else self.watch) - set(self.ignore)
        if not watched:
            raise StreamError(
                "No label is left to watch: all are ignored.", fix="Ignore fewer of them."
            )
        return [
            self._rule(self.overrides.get(label, {})) if label in watched else None
            for label in labels
        ]

    def check_reach(self, *, hop_s: float | None, length_s: float | None = None) -> None:
        """Refuse what results every ``hop_s`` seconds can never bring about.

        Args:
            hop_s: `Stream.hop_s`.
            length_s: Seconds that will be heard at most, where that is known.

        Raises:
            StreamError: There are no results before the end, or no event could start in time.
        """
        if hop_s is None:
            raise StreamError(
                "The stream gives a single result, at its end: too few for events.",
                fix="Open it with window_s or forget_s.",
            )
        shortest = min(
            [
                self.min_on_s,
                *(c["min_on_s"] or 0 for c in self.overrides.values() if "min_on_s" in c),
            ]
        )
        if length_s is not None and shortest > length_s:
            raise StreamError(
                f"min_on_s {shortest:g} is longer than the {length_s:g} s that will be heard: no "
                "event could ever start.",
                fix="Lower min_on_s, or listen longer.",
            )

    def _rule(self, changes: Mapping[str, Any]) -> Rule:
        values = {name: getattr(self, name) for name in _PER_LABEL} | dict(changes)
        if "on" in changes and "off" not in changes:
            values["off"] = None  # an `off` for another `on` would mean nothing
        on, off = values["on"], values["off"]
        if off is None and isinstance(on, (int, float)):
            values["off"] = min(on, max(on - OFF_BELOW_ON, LOWEST_OFF))
        return Rule(**values)

    def _check_rule(self, rule: Rule, whose: str) -> None:
        for name in ("min_on_s", "min_off_s", "merge_gap_s", "cooldown_s"):
            check_seconds(name + whose, getattr(rule, name))
        if rule.update_s is not None:
            check_seconds("update_s" + whose, rule.update_s)
        _check_number("on" + whose, rule.on, 0.0, 1.0)
        _check_number("off" + whose, rule.off, 0.0, 1.0)
        if rule.off <= 0:
            raise StreamError(
                f"off{whose} is 0: no score is below it, so no event would ever end.",
                fix="Use 0.01 or more.",
            )
        if rule.off > rule.on:
            raise StreamError(
                f"off {rule.off:g} is above on {rule.on:g}{whose}: events would end as they start.",
                fix="Lower off, or leave it out.",
            )
        if rule.on == 1 and self.smooth_s > 0:
            raise StreamError(
                f"on{whose} is 1: an average over scores never reaches it.",
                fix="Lower on, or do not smooth.",
            )
        if 0 < rule.merge_gap_s <= rule.min_off_s:
            raise StreamError(
                f"merge_gap_s {rule.merge_gap_s:g}{whose} can never act: pauses up to min_off_s "
                f"{rule.min_off_s:g} do not end an event at all.",
                fix="Raise merge_gap_s above min_off_s, or leave it 0.",
            )
        if 0 < rule.cooldown_s <= max(rule.merge_gap_s, rule.min_off_s):
            raise StreamError(
                f"cooldown_s {rule.cooldown_s:g}{whose} can never act: so soon a start belongs to "
                "the event before it, by merge_gap_s or min_off_s.",
                fix="Raise cooldown_s above both, or leave it 0.",
            )


def _is_labels(labels: Any) -> bool:
    listed = isinstance(labels, (Sequence, Set)) and not isinstance(labels, (str, bytes))
    return listed and all(isinstance(label, str) for label in labels)


def check_seconds(name: str, value: Any, above: float = -1.0) -> None:
    """Refuse what is no duration of at most `LONGEST_S`, and what is not above a limit.

    Raises:
        StreamError: It is one of these.
    """
    _check_number(name, value, 0.0, LONGEST_S)
    if value <= above:
        raise StreamError(f"{name} must be above {above:g}.", fix="Leave it out for the default.")


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and least <= value <= most):
        raise StreamError(
            f"{name} must be a number in {least:g}..{most:g}, not {str(value)[:40]!r}.",
            fix="Leave it out for the default.",
        )


# --- The state of one label: silent, sounding, fading, waiting for a merge, cooling down

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


# --- From results to events: hysteresis, durations, merging and cooldown, one code for any sourc

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
