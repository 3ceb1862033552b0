"""What a long job saves to go on from: tensors and plain values, checked by a hash when read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frami_edge.io import atomic_write_bytes
from frami_edge.stopping import NEVER, Stop

_MAGIC = b"frami-edge state 1\n"


@dataclass
class Trail:
    """Where a job that is a part of another one leaves its state, and who may stop it.

    Attributes:
        path: Of the state.
        stop: Asked after steps.
        warn: Told of a state that cannot be used.
    """

    path: Path
    stop: Stop = NEVER
    warn: Callable[[str], None] = lambda _: None

    def load(self) -> dict[str, Any] | None:
        """The state to go on from; None to begin."""
        if not self.path.exists():
            return None
        state = load_state(self.path)
        if state is None:
            self.warn(damaged(self.path, "this part"))
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        save_state(self.path, state)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` whole or not at all; the one that lay there stays until then.

    Raises:
        OSError: The place cannot be written; see `frami_edge.io.atomic_path`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    atomic_write_bytes(path, _MAGIC + hashlib.sha256(data).digest() + data)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote; None where the file is damaged, in however small a way.

    Nothing in the file is executed.

    Raises:
        OSError: It cannot be read.
    """
    data = path.read_bytes()
    body = data[len(_MAGIC) + 32 :]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) :][:32] != hashlib.sha256(body).digest():
        return None
    try:
        state: Any = torch.load(io.BytesIO(body), weights_only=True)
    except Exception:  # a hash that fits says nothing of who wrote the file
        return None
    return state if isinstance(state, dict) else None


def damaged(path: Path, what: str) -> str:
    """The sentence for a checkpoint that `load_state` gave None for.

    Args:
        path: Of the checkpoint.
        what: What is done again from its first step, to the same result.
    """
    return (
        f"The checkpoint {path} is damaged: {what} is done again from its first step, to the same "
        "result."
    )
