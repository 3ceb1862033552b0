"""The one sink of every command: results on stdout, everything else on stderr."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from frami_edge.io import json_text, plain
from frami_edge.progress import Progress, ProgressCallback
from frami_edge.tables import WIDTH, Table, show

SCHEMA = 1
"""Version of every JSON object on stdout."""
LINE_SHARE = 0.1
"""Share of the work after which a log gets a line."""
LINE_SECONDS = 60.0
"""Seconds after which a log gets a line in any case."""
BAR_REFRESH_HZ = 4.0
"""Redraws per second; more would take time from training on two cores."""


class Output:
    """Prints what a command found, and its notes, warnings and progress.

    What domain code logs under `frami_edge` is shown as notes and warnings. `json`: one JSON object
    instead of tables. `quiet`: no notes, hints and progress.
    """

    printed: ClassVar[bool] = False
    """Whether the JSON object of the running command is printed."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        Output.printed = False
        self._err = Console(stderr=True, highlight=False)
        logger = logging.getLogger("frami_edge")
        logger.handlers = [_Handler(self)]
        logger.setLevel(logging.INFO)

    def result(self, obj: BaseModel | Mapping[str, object]) -> None:
        """Print the command's result with `--json`; do nothing otherwise.

        Raises:
            RuntimeError: There was a result already, and one JSON object is promised.
        """
        if self.json:
            print_json(plain(obj))

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str | None = None,
    ) -> None:
        """Print a table on stdout, see `frami_edge.tables.Table`; do nothing with `--json`."""
        self.tables([Table(title, columns, rows, caption or "")])

    def tables(self, tables: Iterable[Table]) -> None:
        """Print tables on stdout; do nothing with `--json`."""
        if not self.json:
            console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
            for table in tables:
                table.draw(console)

    def note(self, text: str) -> None:
        """Print information on stderr."""
        if not self.quiet:
            self._say(Text(text))

    def warn(self, text: str) -> None:
        """Print a warning on stderr, also with `--quiet`."""
        self._say(Text.assemble(("warning: ", "bold yellow"), text))

    def hint(self, next_command: str) -> None:
        """Print the command to run next on stderr, on one line so that it can be copied."""
        if not self.quiet:
            self._say(Text.assemble(("next: ", "dim"), (next_command, "bold")))

    @contextmanager
    def live(self) -> Iterator[ProgressCallback | None]:
        """A callback that shows progress on stderr: a bar on a terminal, lines on a pipe."""
        terminal = self._err.is_terminal
        if self.quiet or (self.json and not terminal):
            yield None
            return
        shown = Bars(self._err) if terminal else Lines(self._say)
        try:
            yield shown
        finally:
            shown.close()

    def _say(self, text: Text | str) -> None:
        # A wrapped path or command cannot be copied.
        self._err.print(Text(text) if isinstance(text, str) else text, soft_wrap=True)


def megabytes(show: ProgressCallback | None, name: str) -> ProgressCallback | None:
    """The callback for a download of `name`, whose progress counts bytes."""
    if show is None:
        return None

    def report(update: Progress) -> None:
        done, total = (round((n or 0) / 1e6) for n in (update.done, update.total))
        show(Progress(f"{update.phase} {name}, MB", done, total or None))

    return report


def print_json(obj: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command on stdout.

    Raises:
        RuntimeError: There was one already.
    """
    if Output.printed:
        raise RuntimeError("a command has one result")
    Output.printed = True
    sys.stdout.write(json_text({"schema": SCHEMA, **obj}) + "\n")
    sys.stdout.flush()


class _Handler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        urgent = record.levelno >= logging.WARNING
        (self.output.warn if urgent else self.output.note)(record.getMessage())


class _Runs:
    """Tells where a phase begins: by its name, or because it counts from the start again."""

    _last: Progress | None = None

    def _begins(self, progress: Progress) -> bool:
        last, self._last = self._last, progress
        return last is None or progress.phase != last.phase or progress.done < last.done


class Bars(_Runs):
    """A live bar per phase, with count, elapsed time, time left and metrics."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichProgress | None = None

    def __call__(self, progress: Progress) -> None:
        """Show one update."""
        if self._begins(progress) or self._bar is None:
            self.close()
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[metrics]}", style="cyan", markup=False),
                console=self._console,
                refresh_per_second=BAR_REFRESH_HZ,
                redirect_stdout=False,  # results keep going to stdout
                expand=True,
            )
            self._bar.add_task(progress.phase, total=progress.total, metrics="")
            self._bar.start()
        self._bar.update(
            self._bar.task_ids[0],
            completed=progress.done,
            total=progress.total,
            metrics=_figures(progress.metrics),
        )

    def close(self) -> None:
        """Draw the bar a last time and give the cursor back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Lines(_Runs):
    """A plain line at every tenth of a phase, and at least once a minute."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock

    def __call__(self, progress: Progress) -> None:
        """Print a line where one is due."""
        now = self._clock()
        if self._begins(progress):
            self._start, self._first = now, progress.done - 1
            self._line, self._tenth = now, _tenth(self._first, progress.total)
        tenth = _tenth(progress.done, progress.total)
        if tenth == self._tenth and now - self._line < LINE_SECONDS:
            return
        self._tenth, self._line = tenth, now
        elapsed, total = now - self._start, progress.total
        parts = [f"{progress.phase} {progress.done}"]
        if total:
            parts[0] += f"/{total} ({progress.done / total:.0%})"
        parts.append(f"{_minutes(elapsed)} elapsed")
        if total and progress.done < total:
            left = elapsed / (progress.done - self._first) * (total - progress.done)
            parts.append(f"{_minutes(left)} left")
        if figures := _figures(progress.metrics):
            parts.append(figures)
        self._say(", ".join(parts))

    def close(self) -> None:
        """Nothing is left to do: every line is printed."""


def _tenth(done: int, total: int | None) -> int:
    return int(done / total / LINE_SHARE + 1e-9) if total else 0


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in metrics.items())


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
