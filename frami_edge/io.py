"""Files that are either whole or absent, plain JSON, and the hashes that name files and weights."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import date
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the block ends without an error.

    The temporary name keeps the suffix, by which writers choose a format. Missing parent folders
    are made. A symbolic link is written through, not replaced.

    Raises:
        OSError: `path` cannot be written; `filename` is `path`, never the temporary name.
    """
    target = Path(path)
    real = target.resolve()
    temporary = real.parent / f".{secrets.token_hex(4)}.tmp.{real.name[-100:]}"
    try:
        if real.exists() and not real.is_file():  # a rename would replace a device
            kind = errno.EISDIR if real.is_dir() else errno.EINVAL
            raise OSError(kind, "it is not a regular file", str(target))
        real.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())  # some network file systems refuse
        os.replace(temporary, real)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` whole or not at all; raises as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinities become null."""
    atomic_write_text(path, json_text(value) + "\n")


def json_text(value: object, *, indent: int | None = 2) -> str:
    """JSON in ASCII of what `plain` understands; with ``indent=None`` on one line."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as dicts, lists, strings, finite numbers, booleans and None.

    Understands pydantic models, mappings, sequences, sets, paths, enums, dates, and everything with
    `tolist()` (NumPy scalars and arrays, tensors); anything else is a TypeError.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def nfc(text: str) -> str:
    """Text in Unicode's form NFC: an accented letter is one character, whatever wrote it."""
    return unicodedata.normalize("NFC", text)


def read_small(path: str | os.PathLike[str], most: int) -> bytes:
    """The whole of a regular file of at most ``most`` bytes.

    Raises:
        OSError: It cannot be read, is not a regular file (a pipe may never end), or is larger.
    """
    file = Path(path)
    size = file.stat().st_size
    if not file.is_file():
        kind = errno.EISDIR if file.is_dir() else errno.EINVAL
        raise OSError(kind, "it is not a regular file", os.fspath(path))
    if size > most:
        raise OSError(errno.EFBIG, f"it holds more than {most} bytes", os.fspath(path))
    return file.read_bytes()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits, read in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors: names, dtypes, shapes and values, in the order of the names.

    Independent of device, memory layout and insertion order, so a state dict hashes the same before
    it is saved and after it is loaded.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(len(header).to_bytes(8, "little") + header.encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
