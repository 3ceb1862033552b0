"""Log-mel features of clips, computed once and cached.

Shape legend: N samples or clips, M mel bands, T frames.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from frami_edge.data.clips import Clip
from frami_edge.data.errors import DataError, UnusableClipError
from frami_edge.data.hashes import HashMemory
from frami_edge.data.reading import Rejected, decode, read_bytes
from frami_edge.data.shards import ShardFolder
from frami_edge.frontend import LogMel, resample, tile_to_window
from frami_edge_runtime.melspec import MelSpec

CACHE_VARIABLE = "FRAMI_EDGE_CACHE"
_VERSION = "1"
"""Changes whenever the same file and the same MelSpec would give other features."""
_CLIPS_PER_SHARD = 500
_BATCH_SAMPLES = 2_000_000

Progress = Callable[[int, int], None]


@dataclass
class Features:
    """Normalised log-mels of the clips that could be used."""

    mels: list[torch.Tensor]
    """(M, T_i) float32 each."""
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


def default_cache_dir() -> Path:
    """``$FRAMI_EDGE_CACHE/features``, else ``~/.cache/frami-edge/features``."""
    base = os.environ.get(CACHE_VARIABLE)
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "frami-edge") / "features"


class FeatureStore:
    """Log-mels of clips, cached on disk by front end and file content.

    What is stored has no mean and std applied, so that measuring them, or changing them, costs no
    second pass. Stored clips carry a checksum; a damaged shard is computed again.

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
        report = progress or (lambda done, total: None)
        memory = HashMemory(self.cache_dir / "hashes")
        reasons: dict[Path, str] = {}
        key_of: dict[Path, str] = {}
        for clip in clips:
            try:
                key_of[clip.path] = memory.sha256(clip.path)
            except UnusableClipError as error:
                reasons[clip.path] = error.message
        memory.save()
        stored = self._shards.read(set(key_of.values()), lambda done: report(done, len(clips)))
        todo: dict[str, Path] = {}
        for path, key in key_of.items():
            if key not in stored:
                todo.setdefault(key, path)
        for part in _parts(list(todo.items()), _CLIPS_PER_SHARD):
            fresh = self._compute(
                part, reasons, partial(_report_from, report, len(stored), len(clips))
            )
            self._shards.write(fresh)
            stored |= fresh
        return self._gather(clips, key_of, stored, reasons, report)

    def _compute(
        self,
        part: Sequence[tuple[str, Path]],
        reasons: dict[Path, str],
        done: Callable[[int], None],
    ) -> dict[str, torch.Tensor]:
        waiting: dict[int, list[tuple[str, torch.Tensor]]] = {}
        fresh: dict[str, torch.Tensor] = {}
        for key, path in part:
            try:
                samples = self._samples(key, path)
            except UnusableClipError as error:
                reasons[path] = error.message
                continue
            group = waiting.setdefault(len(samples), [])
            group.append((key, samples))
            if len(group) * len(samples) >= _BATCH_SAMPLES:
                fresh |= self._mels(waiting.pop(len(samples)))
                done(len(fresh))
        for group in waiting.values():
            fresh |= self._mels(group)
        done(len(fresh))
        return fresh

    def _samples(self, key: str, path: Path) -> torch.Tensor:
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != key:
            raise UnusableClipError("changed while it was being read")
        samples, rate = decode(data)
        try:
            return tile_to_window(
                resample(torch.from_numpy(samples), rate, self.spec.sample_rate), self.spec
            )
        except UnusableClipError:
            raise
        except Exception as error:
            message = getattr(error, "message", str(error))
            raise UnusableClipError(f"cannot be resampled ({message})") from None

    @torch.no_grad()
    def _mels(self, group: Sequence[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        mels_NMT = self._log_mel(torch.stack([samples for _, samples in group]))
        return {key: mel.contiguous() for (key, _), mel in zip(group, mels_NMT, strict=True)}

    def _gather(
        self,
        clips: Sequence[Clip],
        key_of: dict[Path, str],
        stored: dict[str, torch.Tensor],
        reasons: dict[Path, str],
        report: Progress,
    ) -> Features:
        # The same content may lie under two names, of which only the first was decoded.
        reason_of_key = {key_of[path]: reason for path, reason in reasons.items() if path in key_of}
        mean_M1 = torch.tensor(self.spec.mean, dtype=torch.float32).reshape(-1, 1)
        std_M1 = torch.tensor(self.spec.std, dtype=torch.float32).reshape(-1, 1)
        for mel in stored.values():
            mel.sub_(mean_M1).div_(std_M1)
        kept = [clip for clip in clips if key_of.get(clip.path) in stored]
        rejected = [
            Rejected(path, reasons.get(path) or reason_of_key[key_of[path]])
            for path in dict.fromkeys(clip.path for clip in clips)
            if key_of.get(path) not in stored
        ]
        if clips and not kept:
            raise DataError(
                f"None of {len(clips)} clips can be used; {rejected[0].path}: {rejected[0].reason}.",
                fix="Check the files and the data root.",
            )
        report(len(clips), len(clips))
        hashes = [key_of[clip.path] for clip in kept]
        return Features(
            mels=[stored[key] for key in hashes],
            labels=torch.tensor([clip.label for clip in kept], dtype=torch.int64),
            clips=kept,
            hashes=hashes,
            rejected=rejected,
            sha256=_digest(
                zip((clip.name or clip.path.name for clip in kept), hashes, strict=True)
            ),
            spec=self.spec,
        )


def measure_normalisation(features: Features) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel over every band and frame, one number each.

    Measured before normalisation: whatever mean and std the features carry are undone first.

    Raises:
        DataError: There are no features, or they do not vary.
    """
    mean_M = torch.tensor(features.spec.mean, dtype=torch.float64)
    std_M = torch.tensor(features.spec.std, dtype=torch.float64)
    count, total, squares = 0, 0.0, 0.0
    for mel in features.mels:
        raw = mel.double() * std_M.reshape(-1, 1) + mean_M.reshape(-1, 1)
        count += raw.numel()
        total += float(raw.sum())
        squares += float(raw.square().sum())
    mean = total / max(count, 1)
    std = max(squares / max(count, 1) - mean * mean, 0.0) ** 0.5
    if count == 0 or std < 1e-6:
        raise DataError(
            "The features do not vary, so they cannot be normalised.", fix="Use real clips."
        )
    return mean, std


def _report_from(report: Progress, before: int, total: int, done: int) -> None:
    report(before + done, total)


def _digest(named: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"{name}\t{key}\n" for name, key in sorted(named))
    return hashlib.sha256(lines.encode()).hexdigest()


def _parts(items: Sequence[tuple[str, Path]], size: int) -> Iterable[Sequence[tuple[str, Path]]]:
    return (items[i : i + size] for i in range(0, len(items), size))
