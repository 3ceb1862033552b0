"""Tables as data: domain code returns them, a terminal or a notebook prints them."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

WIDTH = 120
"""Columns where no terminal sets the width; Rich would cut at 80."""

_NUMERIC = re.compile(r"[-+±]?\d[\d.,]*(e[-+]?\d+)?( ?[%\w/µ]{1,5})?( ?±.*)?")


@dataclass(frozen=True)
class Table:
    """A table for people; `str(table)` draws it.

    Attributes:
        title: Printed above the table.
        columns: Headings.
        rows: Cells, see `show`. Columns of numbers are set flush right.
        caption: Printed below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def __str__(self) -> str:
        """The table as plain text."""
        text = io.StringIO()
        self.draw(Console(file=text, width=WIDTH, highlight=False, color_system=None))
        return text.getvalue()

    def draw(self, console: Console) -> None:
        """Print the table; a narrow console folds long cells instead of cutting them."""
        table = RichTable(title=escape(self.title), caption=escape(self.caption) or None)
        cells = [[show(value) for value in row] for row in self.rows]
        for place, heading in enumerate(self.columns):
            column = [row[place] for row in cells if row[place] != "-"]
            numeric = bool(column) and all(_NUMERIC.fullmatch(cell) for cell in column)
            table.add_column(
                escape(heading), justify="right" if numeric else "left", overflow="fold"
            )
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        boundless = console.options.update(max_width=10 * WIDTH)
        if Measurement.get(console, boundless, table).maximum > console.width:
            table.padding = (0, 0)  # leave the width to the cells
        console.print(table)


def show(value: object) -> str:
    """A cell as text: floats with 4 significant digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def percent(share: float | None, digits: int = 2) -> str | None:
    """A share as a percentage; None stays None."""
    return None if share is None else f"{100 * share:.{digits}f} %"
