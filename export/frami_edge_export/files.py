"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frami_edge_export.errors import ExportError


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename.

    Raises:
        ExportError: The folder cannot be written to, or the disk is full; nothing is left behind.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a model is shared like any other.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise ExportError(
            f"Cannot write {path}: {error.strerror or error}.",
            fix="Choose a folder that you may write to, with room for the files.",
        ) from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """One JSON object with a final newline; never NaN."""
    write_bytes(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()
