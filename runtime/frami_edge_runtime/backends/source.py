"""Where a model comes from: a path or bytes, ONNX or a TensorRT engine."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from frami_edge_runtime.errors import ModelFileError

MAX_FILE_BYTES: Final = 1 << 29
_PLAN_MAGIC: Final = b"ftrt"
_ENGINE_SUFFIXES: Final = (".engine", ".plan")


def read_model(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """Name for messages, and the bytes.

    Raises:
        ModelFileError: It is neither a path nor bytes, cannot be read, or is absurdly large.
    """
    if isinstance(source, bytes):
        return "model bytes", source
    path = _path(source)
    try:
        facts = path.stat()
        size = facts.st_size
        if not stat.S_ISREG(facts.st_mode):  # reading a device may never end
            what = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
            raise ModelFileError(
                f"Cannot read the model {path}: it is {what}.",
                fix="Give the path of an .onnx file that frami-edge export wrote.",
            )
        if size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path} takes {size} bytes; at most {MAX_FILE_BYTES} are read.",
                fix="Check that this is a model of frami-edge export.",
            )
        return path.name, path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelFileError(
            f"Cannot read the model {path}: {reason}.",
            fix="Give the path of an .onnx file that frami-edge export wrote.",
        ) from None


def is_engine(source: str | os.PathLike[str] | bytes) -> bool:
    """Whether a model is a TensorRT engine: by its first bytes, else by its name."""
    if isinstance(source, bytes):
        return source.startswith(_PLAN_MAGIC)
    path = _path(source)
    if path.suffix.lower() in _ENGINE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_PLAN_MAGIC)) == _PLAN_MAGIC
    except (OSError, ValueError):
        return False


def _path(source: object) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise ModelFileError(
            f"A model is a path or bytes, not {type(source).__name__}.", fix="Pass its path."
        )
    return Path(source)
