"""A stream's state in one NumPy archive: written whole or not at all, read without pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from frami_edge_runtime._files import reason, write_whole
from frami_edge_runtime.errors import StreamError

MAX_FILE_BYTES: Final = 1 << 30
_SEPARATOR: Final = "."
_FIX: Final = "Use a file that save() of a stream of the same model, rate and options wrote."


def save_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state to ``path``, which is replaced only when all is written.

    Raises:
        StreamError: It cannot be written.
    """
    try:
        write_whole(Path(path), lambda file: np.savez(file, **_flatten(state, "")))
    except (OSError, ValueError) as error:
        raise StreamError(
            f"Cannot write the state to {path}: {reason(error)}.",
            fix="Give a path in a folder that can be written to.",
        ) from None


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `save_state` wrote; what it holds is for ``load_state`` to check.

    Raises:
        StreamError: The file cannot be read, or is no state.
    """
    state: dict[str, Any] = {}
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        with np.load(path, allow_pickle=False) as archive:
            # `save_state` does not compress: nothing may take more memory than the file.
            if sum(entry.file_size for entry in archive.zip.infolist()) > size:
                raise ValueError("it holds more than its size")
            for key in archive.files:
                *folders, name = key.split(_SEPARATOR)
                inner = state
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                inner[name] = _plain(archive[key])
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise a dozen types
        raise StreamError(
            f"Cannot read a stream's state from {path}: {reason(error)}.", fix=_FIX
        ) from None
    return state


def _flatten(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}{_SEPARATOR}"))
        else:
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat


def _plain(array: Any) -> Any:
    return array.item() if array.ndim == 0 and array.dtype.kind in "iuU" else array
