"""When a label counts as on: checked settings, with what can never work refused."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any, Final

from frami_edge_runtime.errors import StreamError

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
