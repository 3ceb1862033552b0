"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frami_edge_export.errors import ExportError


def write_files(folder: Path, files: Mapping[str, bytes], seal: str | None = None) -> None:
    """Write every file under a temporary name in the folder, then rename them all.

    Args:
        folder: Made where missing.
        files: Contents by file name.
        seal: The one of them that vouches for the others: the old one goes first and the new one
            comes last, so that a process killed in between leaves none beside files it is not of.

    Raises:
        ExportError: The folder cannot be written to, or the disk is full: no file was replaced.
    """
    staged: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            handle, staged[name] = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(staged[name], 0o666 & ~_umask())  # mkstemp's files are private
        if seal is not None:
            (folder / seal).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == seal):
            os.replace(staged[name], folder / name)
            del staged[name]
        _clear(folder, files)
    except OSError as error:
        raise ExportError(
            f"Cannot write the export to {folder}: {error.strerror or error}.",
            fix="Choose a folder that you may write to, with room for the files.",
        ) from None
    finally:
        for temporary in staged.values():
            Path(temporary).unlink(missing_ok=True)


def _clear(folder: Path, names: Iterable[str]) -> None:
    """Delete what processes left that were killed while they wrote these files."""
    left = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.[a-z0-9_]{{8}}")
    for path in folder.glob(".*"):
        if left.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """One JSON object with a final newline; never NaN."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
