"""results.jsonl: one line a student, appended under a lock, never computed twice."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from frami_edge.errors import RunError
from frami_edge.io import json_text

NAME = "results.jsonl"


class Results:
    """The rows of a protocol.

    Several processes may append; each line is written whole under a lock of the file.

    Args:
        folder: Of the protocol's runs.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order in which they were written.

        Raises:
            RunError: A line before the last is damaged; a cut last line is left out.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                if number == len(lines):
                    continue  # cut by a kill: its student is made again
                raise RunError(
                    f"{self.path}, line {number}, is damaged.",
                    fix="Delete that line and run the command again: it alone is made anew.",
                ) from None
            found.append(row)
        return found

    def __contains__(self, key: str) -> bool:
        """Whether the student of this key is done."""
        return any(row["key"] == key for row in self.rows())

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; a key that is there already is left as it is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if row["key"] in self:
                return
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                cut = file.read(1) != b"\n"
                if cut:
                    text = self.path.read_bytes()
                    file.truncate(text.rfind(b"\n") + 1)
            file.write((json_text(row, indent=None) + "\n").encode())
            file.flush()
