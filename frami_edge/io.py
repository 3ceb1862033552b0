"""Files that are either whole or absent, and the hashes that name them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from datetime import date
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 20

# torch and safetensors report a full disk in their own exception types; these are their words.
_DISK_FULL_WORDS = (
    "No space left on device",
    "StorageFull",
    "failed writing file",
    "unexpected pos",
)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path`, moved over it when the block ends well, removed otherwise.

    The temporary name keeps the suffix, so writers that choose a format by it still do. Missing
    parent folders are made. A symbolic link is written through, not replaced.

    Args:
        path: Where the finished file shall lie.

    Yields:
        The path to write to, in the same folder.

    Raises:
        OSError: The place cannot be written; `filename` is always `path`, never the temporary name.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        real = target.resolve()
        _refuse_what_is_no_file(real, target)
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = real.parent / f".{secrets.token_hex(4)}.tmp.{real.name[-100:]}"
        yield temporary
        _sync(temporary)
        os.replace(temporary, real)
        _sync(real.parent)
    except OSError as error:
        ours = error.filename is None or temporary is None or error.filename == str(temporary)
        if ours:
            error.filename = str(target)
            error.filename2 = None
        raise
    except Exception as error:
        if any(words in str(error) for words in _DISK_FULL_WORDS):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; see `atomic_path` for what is raised."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON with a last newline; NaN and infinities become null."""
    atomic_write_text(path, json_text(value) + "\n")


def json_text(value: object, *, indent: int | None = 2) -> str:
    """JSON that every parser and terminal reads: ASCII, NaN and infinities as null.

    Args:
        value: Anything that `plain` understands; keys keep their order.
        indent: Spaces a level; None for one line.
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as dicts, lists, strings, finite numbers, booleans and None.

    Understands pydantic models, mappings, sequences, sets, paths, enums, dates, and whatever has
    `tolist()` (NumPy scalars and arrays, tensors).

    Raises:
        TypeError: A value of another kind.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_small(path: str | os.PathLike[str], most: int) -> bytes:
    """The whole of a regular file that holds at most ``most`` bytes.

    Devices, pipes and sockets are refused: reading one may never end.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger; its ``strerror`` says which.
    """
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode):
        kind = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.EINVAL
        raise OSError(kind, "it is no regular file", os.fspath(path))
    if facts.st_size > most:
        raise OSError(errno.EFBIG, f"it holds more than {most} bytes", os.fspath(path))
    found = bytearray()
    with open(path, "rb") as file:
        # By blocks: reading `most` at once would take that much memory for the smallest file.
        while block := file.read(_BLOCK):
            found += block
            if len(found) > most:  # it grows while it is read, as those below /proc do
                raise OSError(errno.EFBIG, f"it holds more than {most} bytes", os.fspath(path))
    return bytes(found)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits, read in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors: names, dtypes, shapes and values, in the order of the names.

    Independent of device, memory layout and insertion order, so a state dict hashes the same before
    it is saved and after it is loaded.

    Args:
        tensors: Name to tensor of any shape and dtype.

    Returns:
        64 hexadecimal digits.
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


def _refuse_what_is_no_file(real: Path, named: Path) -> None:
    """Renaming over a device such as /dev/null would replace it; over a folder fail late."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = real.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(named))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(named))


def _sync(path: Path) -> None:
    """Flush to disk: a rename that outlives a power cut must not point at missing data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network and container file systems refuse fsync on folders.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, (bool, int, float)):
        return str(plain(key))
    raise TypeError(f"a JSON key must be text, got {type(key).__name__}")
