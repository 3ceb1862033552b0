"""SHA-256 of audio files, remembered by path, size and time of change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from frami_edge.data.reading import read_bytes
from frami_edge.io import atomic_write_bytes


class HashMemory:
    """Content hashes, kept in one small JSON file per folder of clips.

    A file whose size or time of change (ns) differs is hashed again.

    Args:
        folder: Where the JSON files lie.
    """

    def __init__(self, folder: Path) -> None:
        """Remember in this folder; nothing is read or written yet."""
        self._folder = folder
        self._known: dict[Path, dict[str, list[int | str]]] = {}
        self._changed: set[Path] = set()

    def sha256(self, path: Path) -> str:
        """Hex digest of a file's content.

        Raises:
            UnusableClipError: The file is missing, unreadable, empty or too large.
        """
        parent = path.parent
        if parent not in self._known:
            self._known[parent] = self._load(parent)
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            stamp = []
        known = self._known[parent].get(path.name)
        if known and stamp and known[:2] == stamp:
            return str(known[2])
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        self._known[parent][path.name] = [*stamp, digest]
        self._changed.add(parent)
        return digest

    def forget(self, path: Path) -> None:
        """Hash this file again next time: its content was not what the memory said."""
        if self._known.get(path.parent, {}).pop(path.name, None):
            self._changed.add(path.parent)

    def save(self) -> None:
        """Write what is new; a folder that cannot be written is only slower next time."""
        for parent in self._changed:
            with suppress(OSError):
                atomic_write_bytes(self._file(parent), json.dumps(self._known[parent]).encode())
        self._changed.clear()

    def _file(self, parent: Path) -> Path:
        key = hashlib.sha256(os.fsencode(parent.absolute())).hexdigest()[:24]
        return self._folder / f"{key}.json"

    def _load(self, parent: Path) -> dict[str, list[int | str]]:
        try:
            values = json.loads(self._file(parent).read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(values, Mapping):
            return {}
        return {str(name): list(entry) for name, entry in values.items() if _sound(entry)}


def _sound(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(v, int) for v in entry[:2])
        and isinstance(entry[2], str)
        and len(entry[2]) == 64
        and set(entry[2]) <= set("0123456789abcdef")
    )
