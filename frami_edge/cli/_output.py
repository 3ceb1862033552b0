"""The one sink of every command: results on stdout, everything else on stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from frami_edge.cli._progress import Bar, Lines, Progress
from frami_edge.io import json_text

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
