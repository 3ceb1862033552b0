"""Draws docs/images/quickstart.svg from the text that `make quickstart` printed.

    make quickstart 2>&1 | tee docs/images/quickstart.txt
    python docs/images/record.py

The transcript is kept beside the picture. Only the last update of each progress line is drawn, and
lines that install packages or name pictures are left out; nothing else is changed.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

HERE = Path(__file__).parent
WIDTH = 116
_PROGRESS = re.compile(r"(\S+) \d+/\d+ \(\d+%\)")
_LEFT_OUT = re.compile(
    r"\.venv/bin/|Pictures: |WARNING: Location|Resolved |Prepared |Installed |Uninstalled "
    r"|   Building| +Built | [-+] \S+==|real\t|user\t|sys\t"
)


def drawn(transcript: str) -> list[str]:
    """The lines of the picture."""
    lines: list[str] = []
    for line in transcript.splitlines():
        if _LEFT_OUT.match(line):
            continue
        if name := _PROGRESS.match(line):
            # Phases run side by side: the latest line of each, back to the last other line.
            at = len(lines)
            while at and _PROGRESS.match(lines[at - 1]):
                at -= 1
            lines[at:] = [x for x in lines[at:] if not x.startswith(f"{name[1]} ")]
        lines.append(line)
    return [line for line in lines if line.strip()]


def styled(line: str) -> Text:
    """Progress and notes dim, as on a terminal; tables bright."""
    text = Text(line)
    if _PROGRESS.match(line) or line.startswith(("Device:", "Scores ", "On ", "        Seconds")):
        text.stylize("dim")
    elif line.startswith("next: "):
        text.stylize("bold")
    else:
        text.highlight_regex(r"\d+(\.\d+)? %", "bold green")
    return text


def main() -> None:
    """Write the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), ("make quickstart", "bold")))
    for line in drawn((HERE / "quickstart.txt").read_text(encoding="utf-8")):
        console.print(styled(line))
    console.save_svg(str(HERE / "quickstart.svg"), title="frami-edge", theme=MONOKAI)


if __name__ == "__main__":
    main()
