"""Batches of clips of similar length, padded at the floor and masked by their true lengths.

Shape legend: B batch, M mel bands, T frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from frami_edge.data.sets import Clip, Rejected, decode, read_bytes
from frami_edge.errors import DataError, UnusableClipError
from frami_edge.frontend import LogMel, resample, tile_to_window
from frami_edge.io import atomic_path, atomic_write_bytes
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.melspec import MelSpec

# --- SHA-256 of audio files, remembered by path, size and time of change


class HashMemory:
    """Content hashes, kept in one small JSON file per folder of clips.

    A file whose size or time of change (ns) differs is hashed again.

    Args:
        folder: Where the JSON files lie.
    """

    def __init__(self, folder: Path) -> None:
        """Remember in this folder; nothing is read or written yet."""
        self._folder = folder
        self._known: dict[Path, dict[str, list[int | str]]] = {}
        self._changed: set[Path] = set()

    def sha256(self, path: Path) -> str:
        """Hex digest of a file's content.

        Raises:
            UnusableClipError: The file is missing, unreadable, empty or too large.
        """
        parent = path.parent
        if parent not in self._known:
            self._known[parent] = self._load(parent)
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            stamp = []
        known = self._known[parent].get(path.name)
        if known and stamp and known[:2] == stamp:
            return str(known[2])
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        self._known[parent][path.name] = [*stamp, digest]
        self._changed.add(parent)
        return digest

    def forget(self, path: Path) -> None:
        """Hash this file again next time: its content was not what the memory said."""
        if self._known.get(path.parent, {}).pop(path.name, None):
            self._changed.add(path.parent)

    def save(self) -> None:
        """Write what is new; a folder that cannot be written is only slower next time."""
        for parent in self._changed:
            with suppress(OSError):
                atomic_write_bytes(self._file(parent), json.dumps(self._known[parent]).encode())
        self._changed.clear()

    def _file(self, parent: Path) -> Path:
        key = hashlib.sha256(os.fsencode(parent.absolute())).hexdigest()[:24]
        return self._folder / f"{key}.json"

    def _load(self, parent: Path) -> dict[str, list[int | str]]:
        try:
            values = json.loads(self._file(parent).read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(values, Mapping):
            return {}
        return {str(name): list(entry) for name, entry in values.items() if _sound(entry)}


def _sound(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(v, int) for v in entry[:2])
        and isinstance(entry[2], str)
        and len(entry[2]) == 64
        and set(entry[2]) <= set("0123456789abcdef")
    )


# --- Log-mels on disk: a few checked shards instead of thousands of small files
# A shard is a safetensors file with ``values`` (flat float32, the clips one after another, each
# (M, T) row-major), ``lengths`` (frames), ``keys`` (SHA-256 of the audio file) and ``checks``
# (CRC-32 of key, length and values). A shard in which anything does not fit is deleted whole.

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


# --- Log-mel features of clips, as batches and manifests need them
# Shape legend: N clips, M mel bands, T frames.


@dataclass
class Features:
    """Normalised log-mels of the clips that could be used."""

    mels: list[torch.Tensor]
    """(M, T_i) float32 each. Clips of equal content share one tensor."""
    labels: torch.Tensor
    """(N,) int64."""
    clips: list[Clip]
    """The clips kept, in the order asked for."""
    hashes: list[str]
    """SHA-256 of each kept clip's file."""
    rejected: list[Rejected]
    """Files left out, with the reason."""
    sha256: str
    """Of the sorted (name within the set, file hash) list of the kept clips."""
    spec: MelSpec
    """The front end that gave them, with its mean and std."""

    def __len__(self) -> int:
        """Clips kept."""
        return len(self.mels)

    @property
    def lengths(self) -> list[int]:
        """Frames of each clip."""
        return [mel.shape[1] for mel in self.mels]

    def manifest(self) -> dict[str, Any]:
        """Plain values for a manifest: what was used, what was left out and why; no paths."""
        return {
            "clips": len(self),
            "sha256": self.sha256,
            "rejected": len(self.rejected),
            "rejected_files": [{"name": r.name, "reason": r.reason} for r in self.rejected],
        }


def measure_normalisation(features: Features) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel over every band and frame, one number each.

    Measured before normalisation: whatever mean and std the features carry are undone first.

    Raises:
        DataError: There are no features, or they do not vary.
    """
    mean_M1 = torch.tensor(features.spec.mean, dtype=torch.float64).reshape(-1, 1)
    std_M1 = torch.tensor(features.spec.std, dtype=torch.float64).reshape(-1, 1)
    count, total, squares = 0, 0.0, 0.0
    for mel in features.mels:
        raw = mel.double() * std_M1 + mean_M1
        count += raw.numel()
        total += float(raw.sum())
        squares += float(raw.square().sum())
    mean = total / max(count, 1)
    std = max(squares / max(count, 1) - mean * mean, 0.0) ** 0.5
    if count == 0 or std < 1e-6:
        raise DataError("The features do not vary: no normalisation.", fix="Use real clips.")
    return mean, std


def digest_of(named: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over sorted (name, file hash) pairs."""
    lines = "".join(f"{name}\t{key}\n" for name, key in sorted(named))
    return hashlib.sha256(lines.encode()).hexdigest()


# --- `FeatureStore`: log-mels computed once, cached by front end and file content
# Shape legend: N samples or clips, M mel bands, T frames.

CACHE_VARIABLE = "FRAMI_EDGE_CACHE"
_VERSION = "1"
"""Changes whenever the same file and the same MelSpec would give other features."""
_CLIPS_PER_SHARD = 500
_BATCH_SAMPLES = 2_000_000
"""About 125 s at 16 kHz: bounds the memory that one transform takes."""

Progress = Callable[[int, int], None]


def default_cache_dir() -> Path:
    """``$FRAMI_EDGE_CACHE/features``, else ``~/.cache/frami-edge/features``."""
    base = os.environ.get(CACHE_VARIABLE)
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "frami-edge") / "features"


class FeatureStore:
    """Log-mels of clips, cached on disk by front end and file content.

    What is stored has no mean and std applied, so that measuring them, or changing them, costs no
    second pass. Stored clips carry a checksum; a damaged shard is computed again. Clips shorter
    than one window are repeated (`frami_edge.frontend.tile_to_window`).

    Args:
        spec: The front end; its mean and std are applied on loading.
        cache_dir: None for `default_cache_dir`.
    """

    def __init__(self, spec: MelSpec, cache_dir: Path | None = None) -> None:
        """Open the cache; nothing is read or written yet."""
        self.spec = spec
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir)
        raw = spec.replace(mean=0.0, std=1.0)
        key = hashlib.sha256(f"{_VERSION} {raw.digest}".encode()).hexdigest()[:24]
        self._log_mel = LogMel(raw)
        self._shards = ShardFolder(self.cache_dir / key, spec.n_mels)

    def load(self, clips: Sequence[Clip], progress: Progress | None = None) -> Features:
        """Features of clips, from the cache where they are there.

        A file that is missing, truncated, silent, not finite or no audio is left out and listed in
        `Features.rejected`.

        Args:
            clips: Any clips, of one set or several.
            progress: Called with (clips done, clips in all).

        Raises:
            DataError: Not one of the clips can be used.
        """
        memory = HashMemory(self.cache_dir / "hashes")
        key_of: dict[Path, str] = {}
        reasons: dict[Path, str] = {}
        for clip in clips:
            try:
                key_of[clip.path] = memory.sha256(clip.path)
            except UnusableClipError as error:
                reasons[clip.path] = error.message

        def report_from(before: int) -> Callable[[int], None]:
            def report(done: int) -> None:
                if progress is not None:
                    progress(before + done, len(clips))

            return report

        mels = self._shards.read(key_of.values(), report_from(0))
        todo = {key: path for path, key in key_of.items() if key not in mels}
        refused: dict[str, str] = {}
        for first in range(0, len(todo), _CLIPS_PER_SHARD):
            part = list(todo.items())[first : first + _CLIPS_PER_SHARD]
            fresh, reason_of = self._compute(part, report_from(len(mels)))
            self._shards.write(fresh)
            mels |= fresh
            refused |= reason_of
        for key in refused:
            memory.forget(todo[key])
        memory.save()
        report_from(0)(len(clips))
        reasons |= {path: refused[key] for path, key in key_of.items() if key in refused}
        return self._gather(clips, key_of, mels, reasons)

    def _compute(
        self, part: Sequence[tuple[str, Path]], done: Callable[[int], None]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Mels by key, and reasons by key; clips of equal length share one transform."""
        waiting: dict[int, dict[str, torch.Tensor]] = {}
        mels: dict[str, torch.Tensor] = {}
        refused: dict[str, str] = {}
        for key, path in part:
            try:
                samples = self._samples(key, path)
            except AudioError as error:
                refused[key] = error.message
                continue
            n = len(samples)
            group = waiting.setdefault(n, {})
            group[key] = samples
            if len(group) * n >= _BATCH_SAMPLES:
                mels |= self._mels(waiting.pop(n))
                done(len(mels))
        for group in waiting.values():
            mels |= self._mels(group)
        done(len(mels))
        return mels, refused

    def _samples(self, key: str, path: Path) -> torch.Tensor:
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != key:
            raise UnusableClipError("changed while it was being read")
        samples, rate = decode(data)
        resampled = resample(torch.from_numpy(samples), rate, self.spec.sample_rate)
        return tile_to_window(resampled, self.spec)

    @torch.no_grad()
    def _mels(self, group: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mels_NMT = self._log_mel(torch.stack(list(group.values())))
        return dict(zip(group, mels_NMT.unbind(), strict=True))

    def _gather(
        self,
        clips: Sequence[Clip],
        key_of: dict[Path, str],
        mels: dict[str, torch.Tensor],
        reasons: dict[Path, str],
    ) -> Features:
        names = {clip.path: clip.name or clip.path.name for clip in clips}
        rejected = [Rejected(p, reasons[p], names[p]) for p in names if p in reasons]
        kept = [clip for clip in clips if clip.path not in reasons]
        if clips and not kept:
            example = f"{rejected[0].path}: {rejected[0].reason}"
            raise DataError(
                f"None of {len(clips)} clips can be used; {example}.",
                fix="Check the files and the data root.",
            )
        mean_M1 = torch.tensor(self.spec.mean, dtype=torch.float32).reshape(-1, 1)
        std_M1 = torch.tensor(self.spec.std, dtype=torch.float32).reshape(-1, 1)
        for mel in mels.values():
            mel.sub_(mean_M1).div_(std_M1)
        hashes = [key_of[clip.path] for clip in kept]
        return Features(
            mels=[mels[key] for key in hashes],
            labels=torch.tensor([clip.label for clip in kept], dtype=torch.int64),
            clips=kept,
            hashes=hashes,
            rejected=rejected,
            sha256=digest_of((names[c.path], key) for c, key in zip(kept, hashes, strict=True)),
            spec=self.spec,
        )


# --- Batches of clips of similar length, padded at the floor and masked by their true lengths


def length_buckets(
    lengths: Sequence[int],
    batch_size: int,
    *,
    generator: torch.Generator | None,
    max_waste: float = 0.1,
    min_batch: int = 1,
) -> list[list[int]]:
    """Index batches of similar length: every index exactly once.

    Args:
        lengths: Frames of each clip.
        batch_size: Most clips in a batch.
        generator: Shuffles the batches and, within similar lengths, their members; None gives
            batches in order of length, always the same.
        max_waste: Largest share of padding in a batch, 0..1.
        min_batch: Batches smaller than this are merged with their neighbour in length, even
            where that breaks ``max_waste`` or exceeds ``batch_size`` (BatchNorm cannot train on
            one clip).

    Raises:
        ValueError: A size is below 1, or ``max_waste`` is outside 0..1.
    """
    if batch_size < 1 or min_batch < 1 or not 0 <= max_waste < 1:
        raise ValueError("length_buckets needs batch_size >= 1, min_batch >= 1, 0 <= max_waste < 1")
    keys = np.asarray(lengths, dtype=np.float64)
    if generator is not None:
        # Jitter within the tolerated waste, so that every epoch meets other neighbours.
        keys = keys * (1 + max_waste * (torch.rand(len(keys), generator=generator).numpy() - 0.5))
        ties = torch.randperm(len(keys), generator=generator).numpy()
    else:
        ties = np.arange(len(keys))
    batches: list[list[int]] = []
    batch: list[int] = []
    total = longest = 0
    for i in np.lexsort((ties, keys)).tolist():
        n = int(lengths[i])
        grown, peak = total + n, max(longest, n)
        if batch and (
            len(batch) == batch_size or grown < (1 - max_waste) * peak * (len(batch) + 1)
        ):
            batches.append(batch)
            batch, grown, peak = [], n, n
        batch.append(i)
        total, longest = grown, peak
    if batch:
        batches.append(batch)
    batches = _merge_small(batches, min_batch)
    if generator is None:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _merge_small(batches: list[list[int]], min_batch: int) -> list[list[int]]:
    merged: list[list[int]] = []
    for batch in batches:
        if merged and min(len(merged[-1]), len(batch)) < min_batch:
            merged[-1] = merged[-1] + batch
        else:
            merged.append(batch)
    return merged


def collate(
    mels: Sequence[torch.Tensor],
    indices: Sequence[int],
    *,
    pad_value: float | torch.Tensor | npt.NDArray[np.floating],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack clips of different length, padded on the right.

    Args:
        mels: (M, T_i) each.
        indices: Which of them.
        pad_value: The front end's floor (`MelSpec.floor`), one number or one per band.

    Returns:
        ``x_B1MT`` in the mels' dtype, and ``lengths_B`` int64: true frames, for the mask.
    """
    chosen = [mels[i] for i in indices]
    lengths_B = torch.tensor([m.shape[-1] for m in chosen], dtype=torch.int64)
    first = chosen[0]
    pad_M1 = torch.as_tensor(pad_value, dtype=first.dtype, device=first.device).reshape(-1, 1)
    x_BMT = pad_M1.repeat(1, int(lengths_B.max())).expand(len(chosen), first.shape[0], -1).clone()
    for row, mel in zip(x_BMT, chosen, strict=True):
        row[:, : mel.shape[-1]] = mel
    return x_BMT.unsqueeze(1), lengths_B
