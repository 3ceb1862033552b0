"""The live display: a level meter, the top classes and the latest events, on a terminal."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

from frami_edge_runtime.events import Event
from frami_edge_runtime.listen.displays import Losses, event_line
from frami_edge_runtime.listen.records import Gap, Heard, Start, Summary, printable

_FRAMES_A_SECOND: Final = 10
_BAR: Final = 40
_FLOOR_DB: Final = -60.0
_LOUD_DB: Final = -6.0


def live_display() -> LiveDisplay | None:
    """The live display, or None where rich is not installed."""
    try:
        # Imported here: it is an extra, and costs more time than everything else at the start.
        live: Any = importlib.import_module("rich.live")
        table: Any = importlib.import_module("rich.table")
        text: Any = importlib.import_module("rich.text")
        console: Any = importlib.import_module("rich.console")
    except ImportError:
        return None
    return LiveDisplay(live, table, text, console)


class LiveDisplay:
    """Drawn at most ten times a second; events and warnings stay above it when it ends."""

    def __init__(self, live: Any, table: Any, text: Any, console: Any) -> None:
        """Begin to draw."""
        self._table, self._text, self._group = table.Table, text.Text, console.Group
        self._heading = ""
        self._heard: Heard | None = None
        self._open: dict[str, float] = {}
        self._losses = Losses()
        self._module, self._console = live, console
        self._live: Any = None

    def start(self, start: Start) -> None:
        """Draw from now on."""
        self._heading = (
            f"{printable(start.model)} on {start.backend}, {start.mode}, from "
            f"{printable(start.source)} at {start.sample_rate} Hz"
        )
        self._live = self._module.Live(
            console=self._console.Console(highlight=False),
            refresh_per_second=_FRAMES_A_SECOND,
            get_renderable=self._draw,
            transient=True,
        )
        self._live.start()
        for note in start.notes:
            self._print(f"note: {note}")

    def heard(self, heard: Heard) -> None:
        """Shown at the next drawing."""
        self._heard = heard

    def event(self, event: Event) -> None:
        """Starts and ends scroll by above; what goes on is shown below."""
        if event.kind == "end":
            self._open.pop(event.label, None)
        else:
            self._open[event.label] = event.t0
        if line := event_line(event):
            self._print(line)

    def gap(self, gap: Gap) -> None:
        """A line above."""
        if line := self._losses.add(gap):
            self._print(f"warning: {line}")

    def warn(self, text: str) -> None:
        """A line above."""
        self._print(f"warning: {text}")

    def finish(self, summary: Summary) -> None:
        """Draw no more; the summary stays."""
        self.close()
        print(summary.sentence(), file=sys.stderr)

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()

    def _print(self, line: str) -> None:
        self._live.console.print(self._text(line))

    def _draw(self) -> Any:
        heading = self._text(self._heading, style="dim", no_wrap=True, overflow="ellipsis")
        heard = self._heard
        if heard is None:
            return self._group(heading, self._text("waiting for the first result"))
        share = min(1.0, max(0.0, 1 - heard.level_db / _FLOOR_DB))
        level = self._text(f"{heard.t1:9.2f} s  {heard.level_db:6.1f} dB  ")
        style = "red" if heard.level_db > _LOUD_DB else "green"
        level.append("█" * round(_BAR * share), style=style)
        grid = self._table.grid(padding=(0, 2))
        for label, score in heard.top:
            name = self._text(printable(label), style="bold" if label in self._open else "")
            grid.add_row(name, f"{score:.2f}", self._text("━" * round(_BAR * score), style="cyan"))
        going_on = "  ".join(
            f"{printable(label)} since {t0:.1f} s" for label, t0 in self._open.items()
        )
        return self._group(heading, level, grid, self._text(going_on, style="bold yellow"))
