"""Events from a stream of results: hysteresis, durations, merging and cooldown.

A result describes a window, so it decides one *stretch* of audio: from the middle of the previous
result's window to the middle of its own. With ``on`` and ``off`` around 0.5, where a sound fills
about half of the window, an event therefore starts and ends where the sound did, however long the
window is. The last result of a clip decides up to its end, where it starts no event on its own:
noise that breaks off may resemble a sound. The middle of an exponential window has half of the
weight on each side. Audio that was lost in a gap counts as below every threshold.
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
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.stream import Result
from frami_edge_runtime.thresholds import NEVER, Thresholds, decision_scores

LONGEST_S: Final = 86_400.0
ROUNDING_S: Final = 1e-9
"""Durations are differences of float64 times: this much shorter counts as equal."""
_DURATIONS: Final = ("min_on_s", "min_off_s", "merge_gap_s", "cooldown_s", "update_s")
_PER_LABEL: Final = ("on", "off", *_DURATIONS)


@dataclass(frozen=True)
class EventSpec:
    """Settings of an `EventDetector`; durations in seconds of the sample clock.

    Raises:
        StreamError: A setting is out of range.
    """

    on: float = 0.5
    """An event starts where the score stays at or above this threshold; 1: none starts."""
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
    reject: float | None = None
    """Scores count times the share to which a sound is one of the labels: the logistic function of
    the energy ln Σ exp(logits) less this; None: fully."""
    watch: tuple[str, ...] | None = None
    """Only these labels; None: all."""
    ignore: tuple[str, ...] = ()
    """All labels but these."""
    overrides: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Settings for single labels, as ``{"siren": {"on": 0.8, "min_on_s": 2.0}}``."""

    def __post_init__(self) -> None:
        ranges = {
            "on": (0.0, 1.0),
            "off": (0.0, 1.0),
            "min_level_db": (-200.0, 0.0),
            **dict.fromkeys((*_DURATIONS, "smooth_s"), (0.0, LONGEST_S)),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise StreamError(
                    f"{name} must be a number in {least:g}..{most:g}, not {value}.",
                    fix="Leave it out for the default.",
                )
        if not 0 < self.threshold_off <= self.on:
            raise StreamError(
                "off must be above 0, or no event would end, and not above on.",
                fix="Change on or off, or leave off out.",
            )

    @classmethod
    def for_model(
        cls, info: ModelInfo, *, on_at_most: float | None = None, **settings: Any
    ) -> EventSpec:
        """Settings with the thresholds of a model file.

        Args:
            info: `Classifier.info`.
            on_at_most: The file's thresholds above this are lowered to it, so that more sounds of
                their labels are found.
            settings: Those of `EventSpec`. With ``on`` or ``off`` the file's thresholds are not
                used; ``overrides`` win over them.

        Raises:
            StreamError: A setting is out of range.
            ModelFileError: The file's thresholds are damaged.
        """
        found = Thresholds.of(info)
        if found is None or {"on", "off"} & set(settings):
            if on_at_most is not None:
                raise StreamError(
                    "on_at_most lowers thresholds of the model file, which are not used.",
                    fix="Give `on` alone, or export the model anew if it has no thresholds.",
                )
            return cls(**settings)
        overrides: dict[str, dict[str, float | None]] = {
            label: {"on": on, "off": off}
            if on_at_most is None or on <= on_at_most
            else {"on": on_at_most}
            for label, on, off in zip(info.labels, found.on, found.off, strict=True)
        }
        for label, changes in settings.pop("overrides", {}).items():
            kept = {} if "on" in changes else overrides.get(label, {})
            overrides[label] = {**kept, **changes}
        return cls(**{"reject": found.reject, **settings, "overrides": overrides})

    @property
    def threshold_off(self) -> float:
        """``off``, or its default."""
        return min(self.on, max(self.on - 0.15, 0.01)) if self.off is None else self.off

    def rules(self, labels: Sequence[str]) -> dict[str, EventSpec]:
        """Settings of each watched label, in the order of ``labels``.

        Raises:
            StreamError: A label is not among ``labels``, none is left to watch, or an override
                cannot be used.
        """
        for label in (*(self.watch or ()), *self.ignore, *self.overrides):
            if label not in labels:
                near = difflib.get_close_matches(label, labels, 3, 0.5) or labels[:5]
                fix = f"It has labels such as {', '.join(map(repr, near))}."
                raise StreamError(f"The model has no label {label!r}.", fix=fix)
        rules = {}
        for label in labels:
            if label in self.ignore or (self.watch is not None and label not in self.watch):
                continue
            changes: Mapping[str, Any] = self.overrides.get(label, {})
            if unknown := set(changes) - set(_PER_LABEL):
                raise StreamError(
                    f"The override for {label!r} has {', '.join(sorted(unknown))}.",
                    fix=f"Set only {', '.join(_PER_LABEL)} per label.",
                )
            if "on" in changes:
                changes = {"off": None, **changes}  # an `off` for another `on` would mean nothing
            rules[label] = replace(self, **changes)
        if not rules:
            raise StreamError("No label is left to watch.", fix="Ignore fewer labels.")
        return rules


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
    model: str = ""
    """Short hash of the model file, as in `Result.model`."""
    wall_t0: float | None = None
    """Wall-clock time of ``t0`` in seconds since 1970 (UTC), as `time.time`; None where
    `EventDetector.push` was not given ``wall_t1``."""
    wall_t1: float | None = None
    """Wall-clock time of ``t1``."""


class EventDetector:
    """Turns the results of one stream into events, the same ones for any chunking.

    It holds a few plain Python values per active label: pickle it to save it.

    Args:
        spec: Thresholds and durations.
        labels: (K,) labels of the model.
        forget_s: Half-life of the stream, where it was opened with ``forget_s`` instead of
            ``window_s``: the middle of its window depends on it.

    Raises:
        StreamError: See `EventSpec.rules`.
    """

    def __init__(
        self, spec: EventSpec, labels: Sequence[str], *, forget_s: float | None = None
    ) -> None:
        self.spec = spec
        self.labels = tuple(labels)
        self._forget_s = forget_s
        self._rules = spec.rules(self.labels)
        on = [self._rules[x].on if x in self._rules else NEVER for x in self.labels]
        # A score of 1 - 1e-9 is 1 in float32: no score may reach a threshold of 1.
        self._on_K = np.array([math.inf if y >= NEVER else y for y in on])
        self.reset()

    def reset(self) -> None:
        """Forget everything without ending open events; the next result starts a new clip."""
        self._tracks: dict[int, _Track] = {}  # active labels by their index
        self._middle = 0.0  # end of the stretches so far
        self._t1 = 0.0  # end of the last result
        self._first = True  # there was one result at most
        self._raw_K = np.zeros(len(self.labels))  # scores of the last result
        self._smooth_K: npt.NDArray[np.float64] | None = None  # None: at the start, in a gap
        self._after_gap = False
        self._model = ""
        self._wall_s: float | None = None  # wall clock less sample clock

    def push(
        self, result: Result, *, level_db: float | None = None, wall_t1: float | None = None
    ) -> list[Event]:
        """Take the next result of the stream, including the one of `Stream.flush`.

        Args:
            result: A result with the labels of the detector, not older than the last one.
            level_db: Level of the result's window, for a spec with ``min_level_db``.
            wall_t1: Wall-clock time (`time.time`) of the audio at ``result.t1``; events then carry
                wall-clock times.

        Returns:
            The events that this result decides.

        Raises:
            StreamError: The result has other labels, or is older than the last one.
        """
        if result.labels != self.labels or result.t1 < self._t1:
            raise StreamError(
                f"This result, up to {result.t1:.3f} s, does not continue a stream that is at "
                f"{self._t1:.3f} s, or has other labels.",
                fix="Use one detector per stream, and call finish() or reset() between clips.",
            )
        events = self._lose(result.t0) if result.gap else []
        middle = max(self._middle, self._middle_of(result))
        self._raw_K = result.scores.astype(np.float64)
        least_db = self.spec.min_level_db
        quiet = level_db is not None and least_db is not None and level_db < least_db
        y_K = np.zeros_like(self._raw_K) if quiet else self._raw_K
        if self.spec.reject is not None:
            y_K = decision_scores(y_K, result.logits, self.spec.reject)
        if self.spec.smooth_s > 0 and self._smooth_K is not None:
            keep = 2 ** (-(middle - self._middle) / self.spec.smooth_s)
            y_K = keep * self._smooth_K + (1 - keep) * y_K
        self._smooth_K = y_K
        events += self._decide(middle, result.t1)
        self._t1 = result.t1
        self._model = result.model
        self._wall_s = None if wall_t1 is None else wall_t1 - result.t1
        return self._stamp(events)

    def finish(self) -> list[Event]:
        """End the clip: the last result decides up to its end, and all events end."""
        events = self._decide(self._t1, self._t1, ends=True)
        for index in sorted(self._tracks):
            events += self._tracks[index].close(self._t1)
        events = self._stamp(events)
        self.reset()
        return events

    def _stamp(self, events: list[Event]) -> list[Event]:
        """Add the model and, where it is known, the wall-clock time."""
        if self._wall_s is None:
            return [replace(e, model=self._model) for e in events]
        wall = self._wall_s
        return [
            replace(e, model=self._model, wall_t0=wall + e.t0, wall_t1=wall + e.t1) for e in events
        ]

    def _middle_of(self, result: Result) -> float:
        length = result.t1 - result.t0
        if self._forget_s is None:
            return result.t0 + length / 2
        half = (1 - 2 ** (-length / self._forget_s)) / 2
        return result.t1 + self._forget_s * math.log2(1 - half)

    def _lose(self, until: float) -> list[Event]:
        """Samples were lost, and the window of the next result starts at ``until``."""
        apart = until > self._t1  # else that window reaches across the gap
        events = self._decide(self._t1, self._t1, ends=True) if apart else []
        for track in self._tracks.values():
            track.gap = track.run_gap = True
        if apart:
            self._smooth_K = None
            events += self._decide(until, until)
        self._after_gap = True
        return events

    def _decide(self, end: float, at: float, *, ends: bool = False) -> list[Event]:
        """Let the current scores decide up to ``end``, for labels that are or become active.

        Args:
            end: Seconds.
            at: See `Event.at`.
            ends: The audio ends here, and the current scores have decided before.
        """
        begin = self._middle
        if end <= begin:
            return []
        y_K = np.full(len(self.labels), -1.0) if self._smooth_K is None else self._smooth_K
        events: list[Event] = []
        on = np.flatnonzero(y_K >= self._on_K).tolist()
        for index in sorted({*on, *self._tracks}):
            if index not in self._tracks:
                label = self.labels[index]
                self._tracks[index] = _Track(label, self._rules[label])
            track = self._tracks[index]
            y, raw = float(y_K[index]), float(self._raw_K[index])
            if ends and not self._first and track.t0 is None and track.is_new:
                continue
            events += track.step(begin, end, y, raw, at, self._after_gap)
            if track.idle(end):
                del self._tracks[index]
        self._middle, self._after_gap, self._first = end, False, begin == 0
        return sorted(events, key=lambda event: event.kind != "end")


@dataclass
class _Track:
    """State of one active label.

    A *run* is an unbroken sequence of stretches at or above ``on``. An open event is *resting* once
    it was below ``off`` for ``min_off_s``: only a new run within ``merge_gap_s`` revives it.
    """

    label: str
    rule: EventSpec
    t0: float | None = None  # start of the open event
    end: float = 0.0  # where it was on last
    best: float = 0.0
    best_since: float = 0.0  # since `end`; counts only if the event continues
    last: float = 0.0
    gap: bool = False
    resting: bool = False
    run: float | None = None  # start of the run
    run_best: float = 0.0
    run_gap: bool = False
    alone: bool = True  # one result makes up the run
    not_before: float = 0.0  # end of the cooldown
    next_update: float = 0.0

    @property
    def is_new(self) -> bool:
        """The newest result is the only one of the run, or there is no run yet."""
        return self.alone or self.run is None

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
        self.alone = self.run is None
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
