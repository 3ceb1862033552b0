"""The saved state of a stream: one NumPy archive, written whole or not at all, without pickle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frami_edge_runtime.errors import OutputError, StreamError


def check_place(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Check that a file, or files in a folder, can be written: before the work that makes them.

    Nothing is left there. Folders that are missing are no fault: writers make them.

    Raises:
        OutputError: A file or folder is in the way, or the place is not writable.
    """
    import tempfile  # only here: it takes as long to load as the rest of the module

    place, problem = Path(path), ""
    try:
        place = place.resolve()
        if not folder:
            if place.exists() and not place.is_file():
                problem = "it is a folder" if place.is_dir() else "it is not a regular file"
            place = place.parent
        while not place.exists():
            place = place.parent
        if not problem and not place.is_dir():
            problem = f"{place} is not a folder"
        if not problem:
            tempfile.TemporaryFile(dir=place).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        problem = f"{place}: {reason(error)}"
    if problem:
        raise OutputError(f"{path} cannot be written: {problem}.", fix="Give another place.")


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
                inner[name] = array if array.ndim else array.item()
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
            flat[f"{prefix}{key}"] = value
    return flat


def require(fits: bool, what: str) -> None:
    """Refuse a state because of ``what`` unless it fits.

    Raises:
        StreamError: It does not fit.
    """
    if not fits:
        raise StreamError(
            f"This state cannot be loaded: {what} does not fit.",
            fix="Use the state() of a stream of the same model, rate and options.",
        )


def check_alike(state: Any, own: Mapping[str, Any], what: str = "it") -> None:
    """Check that a state has the keys and types of the ``own`` one of the stream that loads it.

    Raises:
        StreamError: Keys or types differ, a number is negative, or an array is not finite or has
            another dtype or number of dimensions.
    """
    require(isinstance(state, Mapping) and state.keys() == own.keys(), what)
    for key, mine in own.items():
        value = state[key]
        if isinstance(mine, Mapping):
            check_alike(value, mine, key)
        elif isinstance(mine, np.ndarray):
            alike = isinstance(value, np.ndarray) and (
                (value.dtype, value.ndim) == (mine.dtype, mine.ndim)
            )
            require(alike and bool(np.isfinite(value).all()), key)
        else:
            require(type(value) is type(mine), key)
            require(isinstance(value, str) or 0 <= value < 1 << 62, key)
