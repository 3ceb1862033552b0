"""The saved state of a stream: one NumPy archive, written whole or not at all, read without pickle.

Every part of a stream checks its share of a state with `StateReader` before anything changes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Fill a temporary file beside ``target`` with ``write``, then move it into place.

    Raises:
        OSError: The folder cannot be written to; an existing file is unchanged.
    """
    draft = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        with contextlib.suppress(OSError, ValueError):
            draft.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Why a file could not be read or written, in one line and without its name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def save_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state to ``path``; an existing file is replaced only when all is written.

    Raises:
        StreamError: It cannot be written.
    """
    try:
        write_whole(Path(path), lambda file: np.savez(file, **_flatten(state)))
    except (OSError, ValueError) as error:
        raise StreamError(
            f"Cannot write the state to {path}: {reason(error)}.",
            fix="Give a path in a folder that can be written to.",
        ) from None


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `save_state` wrote; ``load_state`` checks its content.

    Raises:
        StreamError: The file cannot be read, or is no state.
    """
    state: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                *folders, name = key.split(".")
                inner = state
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                array = archive[key]
                scalar = array.ndim == 0 and array.dtype.kind in "iuU"
                inner[name] = array.item() if scalar else array
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise a dozen types
        raise StreamError(
            f"Cannot read a stream's state from {path}: {reason(error)}.",
            fix="Use a file that save() of a stream of the same model, rate and options wrote.",
        ) from None
    return state


def _flatten(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat


class StateReader:
    """Typed access to a state dictionary of unknown origin.

    Args:
        state: What a ``state()`` method returned.
        owner: The class that reads it, for messages.

    Raises:
        StreamError: From the constructor and every method, where the state does not fit.
    """

    def __init__(self, state: Any, owner: str) -> None:
        self._owner = owner
        self._seen: set[str] = set()
        if not isinstance(state, Mapping):
            raise self._error("it is no dictionary")
        self._state = state

    def require(self, condition: bool, key: str) -> None:
        """Refuse the state because of ``key`` unless the condition holds."""
        if not condition:
            raise self._error(f"{key} does not fit")

    def value(self, key: str) -> Any:
        """The value under ``key``, of any type."""
        self._seen.add(key)
        if key not in self._state:
            raise self._error(f"{key} is missing")
        return self._state[key]

    def integer(self, key: str, least: int, most: int = 1 << 62) -> int:
        """An integer within bounds."""
        value = self.value(key)
        integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        self.require(integer and bool(least <= value <= most), key)
        return int(value)

    def array(
        self, key: str, dtype: Any, shape: tuple[int | None, ...], *, most: int | None = None
    ) -> npt.NDArray[Any]:
        """A finite array of this dtype and shape (None: any length, up to ``most``)."""
        value = self.value(key)
        self.require(
            isinstance(value, np.ndarray)
            and value.dtype == dtype
            and value.ndim == len(shape)
            and all(
                n == wanted or (wanted is None and (most is None or n <= most))
                for n, wanted in zip(value.shape, shape, strict=True)
            )
            and bool(np.isfinite(value).all()),
            key,
        )
        found: npt.NDArray[Any] = value
        return found

    def done(self) -> None:
        """Refuse keys that were not read."""
        if unknown := sorted(str(key)[:40] for key in set(self._state) - self._seen):
            raise self._error(f"it has unknown keys: {', '.join(unknown)[:200]}")

    def _error(self, why: str) -> StreamError:
        return StreamError(
            f"This state cannot be loaded into {self._owner}: {why}.",
            fix="Use the state() of a stream of the same model, rate and options.",
        )
