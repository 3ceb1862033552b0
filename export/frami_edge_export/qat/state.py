"""What a fine-tuning saves to go on from, so that one that was killed repeats little."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frami_edge_export.graph import write_files

_MAGIC = b"frami-edge qat state 1\n"

EVERY = 25
"""Steps between two states."""


@dataclass(frozen=True)
class QatState:
    """A file that is read only by the fine-tuning that wrote it, or one that is alike in all.

    Attributes:
        path: Of the file; missing where nothing was begun.
    """

    path: Path

    def save(self, key: str, state: dict[str, Any]) -> None:
        """Replace the file, whole or not at all.

        Args:
            key: Of `key_of`.
            state: Tensors and plain values.

        Raises:
            ExportError: It cannot be written.
        """
        buffer = io.BytesIO()
        torch.save({"key": key, **state}, buffer)
        data = buffer.getvalue()
        head = _MAGIC + hashlib.sha256(data).digest()
        write_files(self.path.parent, {self.path.name: head + data})

    def load(self, key: str) -> dict[str, Any] | None:
        """The state; None where there is none, it is damaged, or another fine-tuning's."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        start = len(_MAGIC) + 32
        if data[:start] != _MAGIC + hashlib.sha256(data[start:]).digest():
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(data[start:]), weights_only=True)
        return state if state["key"] == key else None

    def clear(self) -> None:
        """The result is written: nothing is left to go on from."""
        self.path.unlink(missing_ok=True)


def key_of(parts: Iterable[bytes], facts: object) -> str:
    """A hash of everything that decides what a fine-tuning gives.

    Args:
        parts: Graph and clips.
        facts: Targets, ranges and options, as JSON knows them.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
