"""A stream's state in one NumPy archive: written whole or not at all, read without pickle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError

# --- Files that are written whole or not at all


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` fill a file beside ``target``, and move it there when all is on the disk.

    Raises:
        OSError: The place cannot be written to; whatever was there is as it was.
        ValueError: The path is none, or ``write`` says so.
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


# --- Reading back a saved state: all is checked before anything changes


class StateReader:
    """Typed access to a state dictionary that may come from anywhere.

    Args:
        state: What a ``state()`` method gave.
        owner: The class that reads it, for messages.

    Raises:
        StreamError: ``state`` is no dictionary; later, whatever does not fit.
    """

    def __init__(self, state: Any, owner: str) -> None:
        """Check that there is a mapping to read."""
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
        """Whatever is stored under ``key``."""
        self._seen.add(key)
        if key not in self._state:
            raise self._error(f"{key} is missing")
        return self._state[key]

    def text(self, key: str, wanted: str) -> None:
        """Refuse anything but this string."""
        value = self.value(key)
        self.require(isinstance(value, str) and value == wanted, key)

    def integer(self, key: str, least: int, most: int = 1 << 62) -> int:
        """An integer within bounds."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self._error(f"{key} is no integer")
        self.require(bool(least <= value <= most), key)
        return int(value)

    def array(
        self, key: str, dtype: Any, shape: tuple[int | None, ...], *, most: int | None = None
    ) -> npt.NDArray[Any]:
        """A finite array of this dtype and shape (None: any length, up to ``most``)."""
        value = self.value(key)
        if not isinstance(value, np.ndarray) or value.dtype != dtype:
            raise self._error(f"{key} is no array of {np.dtype(dtype)}")
        fits = value.ndim == len(shape) and all(
            n == wanted or (wanted is None and (most is None or n <= most))
            for n, wanted in zip(value.shape, shape, strict=False)
        )
        self.require(fits and bool(np.isfinite(value).all()), key)
        return value

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        if unknown := sorted(str(key)[:40] for key in set(self._state) - self._seen):
            raise self._error(f"it has unknown keys: {', '.join(unknown)[:200]}")

    def _error(self, why: str) -> StreamError:
        return StreamError(
            f"This state cannot be loaded into {self._owner}: {why}.",
            fix="Use what state() gave for the same model, rate and options.",
        )


# --- A stream's state in one NumPy archive: written whole or not at all, read without pickle

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
