"""Log-mel features of clips, cached on disk, and batches of them.

Shape legend: B batch, N samples, M mel bands, T frames.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save

from frami_edge.data.clips import Clip, decode, read_bytes
from frami_edge.errors import DataError
from frami_edge.frontend import LogMel, resample, tile_to_window
from frami_edge.io import atomic_write_bytes
from frami_edge.progress import Progress, ProgressCallback
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.melspec import MelSpec

log = logging.getLogger("frami_edge")

CACHE_VARIABLE = "FRAMI_EDGE_CACHE"
_VERSION = 3
"""Changes whenever the same file and the same MelSpec would give other features."""
_BATCH_SAMPLES = 2_000_000
"""About 125 s at 16 kHz: bounds the memory of one transform."""
_SHOWN = 10
"""Rejected files that a warning names; the manifest names all."""


def cache_folder() -> Path:
    """``$FRAMI_EDGE_CACHE``, else ``~/.cache/frami-edge``."""
    return Path(os.path.expanduser(os.environ.get(CACHE_VARIABLE) or "~/.cache/frami-edge"))


@dataclass(frozen=True)
class Rejected:
    """A file that was left out, and why."""

    path: Path
    reason: str
    name: str = ""  # path within the set, as in `Clip.name`


@dataclass
class Features:
    """Normalised log-mels of the clips that could be used."""

    mels: list[torch.Tensor]  # (M, T_i) float32 each
    labels: torch.Tensor  # (number of clips,) int64
    clips: list[Clip]  # the clips kept, in the given order
    hashes: list[str]  # SHA-256 of each kept clip's file
    rejected: list[Rejected]
    sha256: str  # of the sorted (name within the set, file hash) list of the kept clips
    mel: MelSpec  # the front end, with its mean and std
    audio: list[str] = field(default_factory=list)  # hash of each kept clip's samples, 16 digits

    def __len__(self) -> int:
        return len(self.mels)

    @property
    def lengths(self) -> list[int]:
        """Frames of each clip."""
        return [mel.shape[1] for mel in self.mels]

    def normalised(self, mel: MelSpec) -> Features:
        """The same raw log-mels with the mean and std of ``mel``, the same front end otherwise.

        Raises:
            ValueError: These features are normalised already.
        """
        if self.mel != mel.replace(mean=0.0, std=1.0):
            raise ValueError("only raw log-mels of the same front end can be normalised")
        mean_M1, std_M1 = _statistics(mel)
        return replace(self, mels=[(m - mean_M1) / std_M1 for m in self.mels], mel=mel)

    def only(self, keep: Sequence[bool]) -> Features:
        """The clips that are kept; raises as `FeatureStore.load` where there are none."""
        index = [i for i, kept in enumerate(keep) if kept]
        clips, hashes = [self.clips[i] for i in index], [self.hashes[i] for i in index]
        return replace(
            self,
            mels=[self.mels[i] for i in index],
            labels=self.labels[index],
            clips=clips,
            hashes=hashes,
            audio=[self.audio[i] for i in index],
            sha256=_digest(clips, hashes),
        )

    def manifest(self) -> dict[str, Any]:
        """Plain values for a manifest: what was used, what was left out and why; no paths."""
        return {
            "clips": len(self),
            "sha256": self.sha256,
            "rejected": len(self.rejected),
            "rejected_files": [{"name": r.name, "reason": r.reason} for r in self.rejected],
        }


def load_features(
    mel: MelSpec,
    clips: Sequence[Clip],
    progress: ProgressCallback | None = None,
    phase: str = "log-mels",
) -> Features:
    """Features of clips from the default cache; a warning names the files that were left out.

    Raises:
        DataError: None of the clips can be used.
    """
    features = FeatureStore(mel).load(clips, progress, phase)
    rejected = features.rejected
    if rejected:
        lines = "".join(f"\n  {r.name}: {r.reason}" for r in rejected[:_SHOWN])
        more = f"\n  and {len(rejected) - _SHOWN} more" if len(rejected) > _SHOWN else ""
        log.warning(f"{len(rejected)} of {len(clips)} clips cannot be used:{lines}{more}")
    return features


class FeatureStore:
    """Log-mels of clips, cached in one file per front end and fold of a set.

    Stored log-mels have no mean and std applied, so that measuring or changing these needs no
    second pass. A file is computed anew where a clip has another path, size or time of change.
    Clips shorter than one window are repeated (`frami_edge.frontend.tile_to_window`).

    Args:
        mel: The front end; its mean and std are applied on loading.
        cache_dir: None for ``$FRAMI_EDGE_CACHE/features``, else ``~/.cache/frami-edge/features``.
    """

    def __init__(self, mel: MelSpec, cache_dir: Path | None = None) -> None:
        self.mel = mel
        self.cache_dir = cache_folder() / "features" if cache_dir is None else Path(cache_dir)
        self._raw = mel.replace(mean=0.0, std=1.0)
        self._log_mel = LogMel(self._raw)

    def load(
        self,
        clips: Sequence[Clip],
        progress: ProgressCallback | None = None,
        phase: str = "log-mels",
    ) -> Features:
        """Features of clips, from the cache where they are there.

        A file that is missing, truncated, silent, not finite or no audio is left out and listed in
        `Features.rejected`. `progress` is called with the number of clips done.

        Raises:
            DataError: None of the clips can be used.
        """
        folds: dict[str, list[Path]] = {}
        for clip in clips:
            folds.setdefault(clip.fold, []).append(clip.path)
        found: dict[Path, _Entry] = {}

        for paths in folds.values():
            before = len(found)

            def report(done: int, before: int = before) -> None:
                if progress:
                    progress(Progress(phase, before + done, len(clips)))

            unique = list(dict.fromkeys(paths))
            found |= self._fold(unique, report)
            report(len(unique))
        kept = [clip for clip in clips if found[clip.path].mel is not None]
        names = {clip.path: clip.name or clip.path.name for clip in clips}
        rejected = [Rejected(p, e.reason, names[p]) for p, e in found.items() if e.mel is None]
        if clips and not kept:
            raise DataError(
                f"None of {len(clips)} clips can be used; {rejected[0].path}: "
                f"{rejected[0].reason}.",
                fix="Check the files and the data root.",
            )
        mean_M1, std_M1 = _statistics(self.mel)
        for entry in found.values():
            if entry.mel is not None:
                entry.mel.sub_(mean_M1).div_(std_M1)
        hashes = [found[clip.path].sha256 for clip in kept]
        return Features(
            mels=[mel for clip in kept if (mel := found[clip.path].mel) is not None],
            labels=torch.tensor([clip.label for clip in kept], dtype=torch.int64),
            clips=kept,
            hashes=hashes,
            rejected=rejected,
            sha256=_digest(kept, hashes),
            mel=self.mel,
            audio=[found[clip.path].audio for clip in kept],
        )

    def _fold(self, paths: list[Path], report: Callable[[int], None]) -> dict[Path, _Entry]:
        """Raw log-mels of one fold, from its cache file, which is written where there is none."""
        stamps = [[os.fspath(path.absolute()), *_stamp(path)] for path in paths]
        key = json.dumps([_VERSION, self._raw.digest, stamps])
        file = self.cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        try:
            with safe_open(file, framework="pt") as cached:
                listed = json.loads(cached.metadata()["entries"])
                return {
                    path: _Entry(None if why else cached.get_tensor(str(i)), sha256, why, audio)
                    for i, (path, (sha256, why, audio)) in enumerate(
                        zip(paths, listed, strict=True)
                    )
                }
        except Exception:  # a missing or damaged file is computed anew
            entries = self._compute(paths, report)
        tensors = {str(i): e.mel for i, e in enumerate(entries.values()) if e.mel is not None}
        listed = json.dumps([[e.sha256, e.reason, e.audio] for e in entries.values()])
        try:
            atomic_write_bytes(file, save(tensors, metadata={"entries": listed}))
        except OSError as error:
            log.warning(f"Features are not cached in {self.cache_dir}: {error}")
        return entries

    @torch.no_grad()
    def _compute(self, paths: list[Path], report: Callable[[int], None]) -> dict[Path, _Entry]:
        """Clips of equal length share one transform."""
        entries: dict[Path, _Entry] = dict.fromkeys(paths, _Entry(None, "", ""))
        waiting: dict[int, dict[Path, torch.Tensor]] = {}
        done = 0

        def transform(group: dict[Path, torch.Tensor]) -> None:
            mels_NMT = self._log_mel(torch.stack(list(group.values())))
            for path, mel in zip(group, mels_NMT.unbind(), strict=True):
                entries[path].mel = mel.clone(memory_format=torch.contiguous_format)

        for path in paths:
            try:
                data = read_bytes(path)
                sha256 = hashlib.sha256(data).hexdigest()
                decoded, rate = decode(data)
                entries[path] = _Entry(None, sha256, "", hash_samples(decoded))
                resampled = resample(torch.from_numpy(decoded), rate, self.mel.sample_rate)
                samples = tile_to_window(resampled, self.mel)
            except AudioError as error:
                entries[path] = _Entry(None, "", error.message)
                continue
            group = waiting.setdefault(len(samples), {})
            group[path] = samples
            if len(group) * len(samples) >= _BATCH_SAMPLES:
                transform(waiting.pop(len(samples)))
                done += len(group)
                report(done)
        for group in waiting.values():
            transform(group)
        return entries


@dataclass
class _Entry:
    """The raw log-mel of one file, or the reason why there is none."""

    mel: torch.Tensor | None
    sha256: str
    reason: str
    audio: str = ""


def hash_samples(samples: npt.NDArray[np.float32]) -> str:
    """16 hexadecimal digits: the same for one sound in a WAV and in a FLAC file of any name."""
    return hashlib.blake2b(samples.tobytes(), digest_size=8).hexdigest()


def _digest(clips: Sequence[Clip], hashes: Sequence[str]) -> str:
    names = [clip.name or clip.path.name for clip in clips]
    named = sorted(zip(names, hashes, strict=True))
    return hashlib.sha256("".join(f"{name}\t{h}\n" for name, h in named).encode()).hexdigest()


def _statistics(
    mel: MelSpec, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std, (M, 1) or (1, 1) each."""
    mean, std = (torch.tensor(v, dtype=dtype).reshape(-1, 1) for v in (mel.mean, mel.std))
    return mean, std


def _stamp(path: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    return -1, -1


def measure_normalisation(features: Features) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel over every band and frame, one number each.

    Measured before normalisation: the mean and std that the features carry are undone first.

    Raises:
        DataError: There are no features, or they do not vary.
    """
    mean_M1, std_M1 = _statistics(features.mel, torch.float64)
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
        batch_size: Most clips per batch.
        generator: Shuffles the batches and, within similar lengths, their members; None gives
            batches in order of length, always the same.
        max_waste: Largest share of padding in a batch, 0..1.
        min_batch: Batches smaller than this are merged with their neighbour in length, even
            where that breaks ``max_waste`` or exceeds ``batch_size`` (BatchNorm cannot train on
            one clip).
    """
    keys = np.asarray(lengths, dtype=np.float64)
    ties = np.arange(len(keys))
    if generator is not None:
        # Jitter within the tolerated waste, so that the neighbours differ between epochs.
        keys = keys * (1 + max_waste * (torch.rand(len(keys), generator=generator).numpy() - 0.5))
        ties = torch.randperm(len(keys), generator=generator).numpy()
    batches: list[list[int]] = []
    total = longest = 0
    for i in np.lexsort((ties, keys)).tolist():
        n = int(lengths[i])
        total, longest = total + n, max(longest, n)
        size = len(batches[-1]) + 1 if batches else 0
        if batches and size <= batch_size and total >= (1 - max_waste) * longest * size:
            batches[-1].append(i)
        else:
            batches.append([i])
            total = longest = n
    merged: list[list[int]] = []
    for batch in batches:
        if merged and min(len(merged[-1]), len(batch)) < min_batch:
            merged[-1] = merged[-1] + batch
        else:
            merged.append(batch)
    if generator is None:
        return merged
    return [merged[i] for i in torch.randperm(len(merged), generator=generator).tolist()]


def collate(
    mels: Sequence[torch.Tensor],
    indices: Sequence[int],
    *,
    pad_value: float | torch.Tensor | npt.NDArray[np.floating],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the clips at ``indices``, each (M, T_i), padded on the right.

    ``pad_value`` is the front end's floor (`MelSpec.floor`), one number or one per band. Returns
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
