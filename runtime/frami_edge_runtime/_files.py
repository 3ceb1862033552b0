"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
