"""metrics.jsonl: one JSON object a line, written through at once, readable after any crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from frami_edge.errors import RunError
from frami_edge.io import atomic_write_text, json_text


class MetricsFile:
    """Appends rows; each is on disk's way when `append` returns.

    Args:
        path: The file; made by the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; NaN and infinities become null."""
        if self._file is None:
            self._drop_torn_line()
            self._file = self.path.open("a", encoding="utf-8")
        try:
            self._file.write(json_text(row, indent=None) + "\n")
            self._file.flush()
        except OSError as error:
            error.filename = str(self.path)
            raise

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a last line that a crash has torn is ignored.

        Raises:
            RunError: A damaged line before the last.
        """
        if not self.path.exists():
            return []
        if not self.path.is_file():
            raise RunError(f"{self.path} is no regular file.", fix="Take it out of the run.")
        *lines, torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        del torn
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise RunError(
                    f"{self.path} is damaged: line {number} is no JSON object.",
                    fix="Delete that line, or start the run again.",
                )
            rows.append(row)
        return rows

    def rewind(self, step: int, match: dict[str, Any]) -> None:
        """Drop the rows after `step` among those that have all of `match`."""
        rows = self.rows()
        kept = [
            row
            for row in rows
            if row.get("step", 0) <= step or any(row.get(k) != v for k, v in match.items())
        ]
        if len(kept) == len(rows):
            return
        self.close()
        atomic_write_text(self.path, "".join(json_text(row, indent=None) + "\n" for row in kept))

    def close(self) -> None:
        """Release the file; a later `append` opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _drop_torn_line(self) -> None:
        """Without its newline a torn line would swallow the next row."""
        if not self.path.is_file():  # a device has no end to look for
            return
        with self.path.open("r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
