"""The one sink of every command: results on stdout, everything else on stderr."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from frami_edge.io import json_text

# --- Progress in three voices: a live bar, plain lines for logs, and silence

T = TypeVar("T")

LINE_SHARE = 0.1
"""Share of the work after which a log gets a line."""
LINE_SECONDS = 60.0
"""Seconds after which a log gets a line in any case."""
BAR_REFRESH_HZ = 4.0
"""Redraws a second; more takes time from training on two cores."""


class Progress:
    """Steps done, out of a total, with live values; silent, and the base of the two that speak."""

    def __init__(
        self, description: str, total: int | None, fields: Sequence[str], completed: int
    ) -> None:
        self.description = description
        self.total = total
        self.completed = completed
        self._started_at = completed
        self._values: dict[str, float | int | str] = {}
        self._fields = tuple(fields)

    def update(self, advance: int = 1, **fields: float | int | str) -> None:
        """`advance` steps further; `fields` are the values to show from now on."""
        self.completed += advance
        self._values.update(fields)
        self._changed()

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """The items, one step each; the step counts when the loop body is over."""
        for item in items:
            yield item
            self.update()

    def values(self) -> str:
        """The live values: `loss 0.123, kd 0.45`, in the order they were announced."""
        order = [*self._fields, *(name for name in self._values if name not in self._fields)]
        shown = [(name, self._values[name]) for name in order if name in self._values]
        return ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in shown
        )

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; nothing is left running, whatever happened."""

    def _changed(self) -> None:
        """Say it, where somebody listens."""


class Bar(Progress):
    """A live bar with count, elapsed time, time left and values."""

    def __init__(
        self,
        description: str,
        total: int | None,
        fields: Sequence[str],
        completed: int,
        *,
        console: Console,
    ) -> None:
        super().__init__(description, total, fields, completed)
        self._rich = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            _Values(self),
            console=console,
            refresh_per_second=BAR_REFRESH_HZ,
            redirect_stdout=False,  # results keep going to stdout
            expand=True,
        )
        self._task = self._rich.add_task(description, total=total, completed=completed)

    def __enter__(self) -> Self:
        """Draw the bar."""
        self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw it a last time and give the cursor back."""
        self._rich.stop()

    def _changed(self) -> None:
        self._rich.update(self._task, completed=self.completed)


class _Values(ProgressColumn):
    """Formats the values only when the bar is drawn, not at every step."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.values(), style="cyan")


class Lines(Progress):
    """A plain line at every tenth of the work, and at least once a minute."""

    def __init__(
        self,
        description: str,
        total: int | None,
        fields: Sequence[str],
        completed: int,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(description, total, fields, completed)
        self._say = say
        self._clock = clock
        self._begin = self._last_time = clock()
        self._last_tenth = self._tenth()

    def _tenth(self) -> int:
        return int(self.completed / self.total / LINE_SHARE + 1e-9) if self.total else 0

    def _changed(self) -> None:
        now = self._clock()
        if self._tenth() == self._last_tenth and now - self._last_time < LINE_SECONDS:
            return
        self._last_tenth, self._last_time = self._tenth(), now
        elapsed = now - self._begin
        parts = [f"{self.description} {self.completed}"]
        if self.total:
            parts[0] += f"/{self.total} ({self.completed / self.total:.0%})"
        parts.append(f"{_clock_time(elapsed)} elapsed")
        done = self.completed - self._started_at
        if self.total and done > 0 and self.completed < self.total:
            left = elapsed / done * (self.total - self.completed)
            parts.append(f"{_clock_time(left)} left")
        if values := self.values():
            parts.append(values)
        self._say(", ".join(parts))


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- The one sink of every command: results on stdout, everything else on stderr

PIPE_WIDTH = 120
"""Columns of a table that no terminal shows; Rich would cut it at 80."""

_NUMERIC = re.compile(r"[-+±]?\d[\d.,]*(e[-+]?\d+)?( ?[%\w/µ]{1,5})?( ?±.*)?")


class Output:
    """Where a command puts what it found and what it has to say.

    Args:
        json: Print exactly one JSON object on stdout instead of tables.
        quiet: Leave out notes, hints and progress; warnings stay.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self._err = Console(stderr=True, highlight=False)
        self._given = False

    def result(self, obj: BaseModel | Mapping[str, object]) -> None:
        """The command's result: one JSON object with `--json`, nothing otherwise.

        Raises:
            RuntimeError: A second result, which would break the promise of one object.
        """
        if self._given:
            raise RuntimeError("a command has one result")
        self._given = True
        if self.json:
            sys.stdout.write(json_text(obj) + "\n")
            sys.stdout.flush()

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str | None = None,
    ) -> None:
        """A table on stdout for people; nothing with `--json`.

        Args:
            title: Above it.
            columns: Their headings.
            rows: Cells: text as it is, floats with 4 digits, None as a dash. Columns of numbers
                are set flush right.
            caption: Below it.
        """
        if self.json:
            return
        table = Table(title=escape(title), caption=None if caption is None else escape(caption))
        cells = [[show(value) for value in row] for row in rows]
        for place, heading in enumerate(columns):
            column = [row[place] for row in cells if row[place] != "-"]
            numeric = bool(column) and all(_NUMERIC.fullmatch(cell) for cell in column)
            # Folded where the terminal is narrow: a number that ends in an ellipsis says nothing.
            table.add_column(
                escape(heading), justify="right" if numeric else "left", overflow="fold"
            )
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        boundless = console.options.update(max_width=10 * PIPE_WIDTH)
        if Measurement.get(console, boundless, table).maximum > console.width:
            table.padding = (0, 0)  # the room is better spent on the cells
        console.print(table)

    def note(self, text: str) -> None:
        """Something worth knowing, on stderr."""
        if not self.quiet:
            self._say(Text(text))

    def warn(self, text: str) -> None:
        """Something the user must know, on stderr, also with `--quiet`."""
        self._say(Text.assemble(("warning: ", "bold yellow"), text))

    def hint(self, next_command: str) -> None:
        """The command to run next, on stderr, on one line so that it can be copied."""
        if not self.quiet:
            self._say(Text.assemble(("next: ", "dim"), (next_command, "bold")))

    def progress(
        self,
        description: str,
        total: int | None,
        fields: Sequence[str] = ("loss",),
        *,
        completed: int = 0,
    ) -> Progress:
        """Progress on stderr: a bar on a terminal, a line now and then on a pipe.

        Use it as a context manager and call `update(advance, loss=...)`, or iterate over
        `track(items)`.

        Args:
            description: What is being done.
            total: Steps; None where nobody knows.
            fields: Live values to show, in this order.
            completed: Steps done by an earlier run that this one continues.
        """
        terminal = self._err.is_terminal
        if self.quiet or (self.json and not terminal):
            return Progress(description, total, fields, completed)
        if terminal:
            return Bar(description, total, fields, completed, console=self._err)
        return Lines(description, total, fields, completed, say=self._say)

    def _say(self, text: Text | str) -> None:
        # A wrapped path or command cannot be copied.
        self._err.print(Text(text) if isinstance(text, str) else text, soft_wrap=True)


def show(value: object) -> str:
    """A cell or live value as text: floats with 4 significant digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
