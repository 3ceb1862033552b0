"""What a long job saves to go on from: tensors and plain values, checked by a hash when read."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from frami_edge.io import atomic_write_bytes

_MAGIC = b"frami-edge state 1\n"


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
    state: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
    return state


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
