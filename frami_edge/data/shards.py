"""Log-mels on disk: a few checked shards instead of thousands of small files.

A shard is a safetensors file with ``values`` (flat float32, the clips one after another, each
(M, T) row-major), ``lengths`` (frames), ``keys`` (SHA-256 of the audio file) and ``checks``
(CRC-32 of key, length and values). A shard in which anything does not fit is deleted whole.
"""

from __future__ import annotations

import hashlib
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from frami_edge.io import atomic_path

_KEY_BYTES = 32


@dataclass(frozen=True)
class ShardFolder:
    """The shards of one front end.

    Args:
        folder: Where they lie; made when the first is written.
        n_mels: Mel bands (M) of every clip.
    """

    folder: Path
    n_mels: int

    def read(
        self, keys: Collection[str], found: Callable[[int], None] | None = None
    ) -> dict[str, torch.Tensor]:
        """Those clips that are stored and sound: key to (M, T) float32.

        Args:
            keys: SHA-256 hex digests of audio files.
            found: Called with the number of clips read so far.
        """
        wanted = set(keys)
        clips: dict[str, torch.Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            if not wanted:
                break
            try:
                clips |= dict(self._read_shard(path, wanted))
            except (SafetensorError, OSError, ValueError, KeyError, RuntimeError):
                with suppress(OSError):
                    path.unlink()
                continue
            wanted -= clips.keys()
            if found is not None:
                found(len(clips))
        return clips

    def _read_shard(self, path: Path, wanted: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        with safe_open(path, framework="pt") as file:
            key_bytes, lengths = file.get_tensor("keys").numpy(), file.get_tensor("lengths").numpy()
            checks, values = file.get_tensor("checks").numpy(), file.get_slice("values")
            n = len(lengths)
            if key_bytes.shape != (n, _KEY_BYTES) or checks.shape != (n,) or (lengths < 1).any():
                raise ValueError("shapes")
            ends = np.cumsum(lengths) * self.n_mels
            if values.get_shape() != [int(ends[-1]) if n else 0] or values.get_dtype() != "F32":
                raise ValueError("size")
            for row in range(n):
                key = key_bytes[row].tobytes()
                if key.hex() not in wanted:
                    continue
                frames = int(lengths[row])
                flat = values[int(ends[row]) - frames * self.n_mels : int(ends[row])]
                if _check(key, frames, flat) != int(checks[row]):
                    raise ValueError("checksum")
                yield key.hex(), flat.reshape(self.n_mels, frames)

    def write(self, clips: Mapping[str, torch.Tensor]) -> None:
        """Store clips (M, T) float32 in one new shard, whole or not at all.

        A cache that cannot be written costs time, not correctness: it warns and goes on.
        """
        if not clips:
            return
        keys = sorted(clips)
        flat = [clips[key].reshape(-1) for key in keys]
        lengths = [clips[key].shape[1] for key in keys]
        raw = [bytes.fromhex(key) for key in keys]
        tensors = {
            "values": torch.cat(flat),
            "lengths": torch.tensor(lengths, dtype=torch.int64),
            "keys": torch.tensor([list(key) for key in raw], dtype=torch.uint8),
            "checks": torch.tensor(
                [_check(k, n, v) for k, n, v in zip(raw, lengths, flat, strict=True)],
                dtype=torch.int64,
            ),
        }
        target = self.folder / f"{hashlib.sha256(b''.join(raw)).hexdigest()[:24]}.safetensors"
        try:
            with atomic_path(target) as temporary:
                save_file(tensors, temporary)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"Features are not cached in {self.folder}: {error}", stacklevel=2)


def _check(key: bytes, frames: int, flat: torch.Tensor) -> int:
    head = zlib.crc32(key + frames.to_bytes(8, "little"))
    return zlib.crc32(flat.contiguous().numpy().data, head)
