"""How long each kernel took last time: the second build on the same device takes a fraction."""

from __future__ import annotations

from pathlib import Path

from frami_edge_runtime._files import write_whole

MAX_CACHE_BYTES = 1 << 28


def cache_path(folder: Path, tensorrt: str, sm: str) -> Path:
    """One file for each TensorRT version and GPU architecture: others would be rejected."""
    return folder / f"timing-{tensorrt}-sm{sm.replace('.', '')}.cache"


def read_cache(path: Path | None) -> bytes:
    """The cache's bytes; empty where there is none, or it cannot be read: it only saves time."""
    if path is None:
        return b""
    try:
        return path.read_bytes() if path.stat().st_size <= MAX_CACHE_BYTES else b""
    except OSError:
        return b""


def write_cache(path: Path | None, data: bytes) -> bool:
    """Replace the cache whole or not at all; False where it could not be written."""
    if path is None or not data:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(data))
    except OSError:
        return False
    return True
