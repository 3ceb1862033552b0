"""What a listening program prints: plain lines, or JSON Lines."""

from __future__ import annotations

import json
import sys
from typing import Any, Final, Protocol

from frami_edge_runtime.events import Event
from frami_edge_runtime.listen.records import Gap, Heard, Start, Summary, printable

_BAR: Final = 12
_BAR_FLOOR_DB: Final = -60.0
_LOSSES_EVERY_S: Final = 10.0


class Display(Protocol):
    """Takes what happens, in its order."""

    def start(self, start: Start) -> None:
        """Before the first audio."""

    def heard(self, heard: Heard) -> None:
        """A result."""

    def event(self, event: Event) -> None:
        """A start, update or end."""

    def gap(self, gap: Gap) -> None:
        """Samples were lost."""

    def warn(self, text: str) -> None:
        """Something the user must know."""

    def finish(self, summary: Summary) -> None:
        """After the last audio."""

    def close(self) -> None:
        """Whatever happened."""


class Plain:
    """Results and events on stdout, everything else on stderr."""

    def __init__(self, *, quiet: bool, flush: bool) -> None:
        """`quiet` leaves events and warnings."""
        self._quiet, self._flush = quiet, flush
        self._losses = Losses()

    def start(self, start: Start) -> None:
        """Two lines on stderr."""
        if not self._quiet:
            self._say(
                f"{start.model}: {len(start.labels)} classes, {start.model_rate} Hz, on "
                f"{start.backend} ({start.backend_reason})"
            )
            self._say(f"listening to {start.source} at {start.sample_rate} Hz, {start.mode}")
        for note in start.notes:
            self._say(f"note: {note}")

    def heard(self, heard: Heard) -> None:
        """One line."""
        if not self._quiet:
            top = "  ".join(f"{printable(label)} {score:.2f}" for label, score in heard.top)
            self._print(f"{heard.t1:9.2f} s  {heard.level_db:6.1f} dB {bar(heard.level_db)}  {top}")

    def event(self, event: Event) -> None:
        """One line for a start and one for an end."""
        if line := event_line(event):
            self._print(line)

    def gap(self, gap: Gap) -> None:
        """On stderr, but not each of many."""
        if line := self._losses.add(gap):
            self._say(f"warning: {line}")

    def warn(self, text: str) -> None:
        """On stderr."""
        self._say(f"warning: {text}")

    def finish(self, summary: Summary) -> None:
        """On stderr."""
        if not self._quiet:
            self._say(summary.sentence())

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, line: str) -> None:
        print(line, flush=self._flush)

    def _say(self, line: str) -> None:
        # In its place between the lines of stdout, where both go to one terminal.
        if self._flush:
            sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)


class JsonLines:
    """One JSON object a line on stdout; the records are those of the runtime's README."""

    def __init__(self, *, quiet: bool, flush: bool) -> None:
        """`quiet` leaves the results out."""
        self._quiet, self._flush = quiet, flush

    def start(self, start: Start) -> None:
        """``{"type": "start", ...}``."""
        self._print("start", start.to_dict())

    def heard(self, heard: Heard) -> None:
        """``{"type": "result", ...}``."""
        if not self._quiet:
            self._print("result", heard.to_dict())

    def event(self, event: Event) -> None:
        """``{"type": "event", ...}``."""
        fields = {name: getattr(event, name) for name in Event.__dataclass_fields__}
        self._print("event", fields)

    def gap(self, gap: Gap) -> None:
        """``{"type": "gap", ...}``."""
        self._print("gap", gap.to_dict())

    def warn(self, text: str) -> None:
        """``{"type": "warning", ...}``."""
        self._print("warning", {"message": text})

    def finish(self, summary: Summary) -> None:
        """``{"type": "summary", ...}``."""
        self._print("summary", summary.to_dict())

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, kind: str, fields: dict[str, Any]) -> None:
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}
        print(json.dumps({"type": kind, **rounded}, allow_nan=False), flush=self._flush)


class Losses:
    """Sums gaps up, so that a machine that does not keep up does not fill a log."""

    def __init__(self) -> None:
        """Nothing lost yet."""
        self._lost_s = 0.0
        self._gaps = 0
        self._quiet_until = -1.0

    def add(self, gap: Gap) -> str | None:
        """A sentence about all since the last one; None within `_LOSSES_EVERY_S` of it."""
        self._lost_s += gap.lost_s
        self._gaps += 1
        if gap.t < self._quiet_until:
            return None
        self._quiet_until = gap.t + _LOSSES_EVERY_S
        line = f"{self._lost_s:.3f} s of audio were lost at {gap.t:.2f} s"
        if self._gaps > 1:
            line = (
                f"{self._lost_s:.3f} s of audio were lost in {self._gaps} gaps up to {gap.t:.2f} s"
            )
        self._lost_s, self._gaps = 0.0, 0
        return line


def event_line(event: Event) -> str | None:
    """A start or an end for people; None for an update."""
    label, lost = printable(event.label), "  (audio was lost)" if event.gap else ""
    if event.kind == "start":
        return f"{event.at:9.2f} s  >> {label} began at {event.t0:.2f} s, {event.score:.2f}{lost}"
    if event.kind == "end":
        return (
            f"{event.at:9.2f} s  << {label} {event.t0:.2f}-{event.t1:.2f} s, "
            f"{event.duration_s:.2f} s, best {event.score:.2f}{lost}"
        )
    return None


def bar(level_db: float) -> str:
    """A level meter from -60 to 0 dB of full scale."""
    filled = round(_BAR * min(1.0, max(0.0, 1 - level_db / _BAR_FLOOR_DB)))
    return f"[{'#' * filled}{'.' * (_BAR - filled)}]"
