"""`FeatureStore`: log-mels computed once, cached by front end and file content.

Shape legend: N samples or clips, M mel bands, T frames.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from frami_edge.data.clips import Clip
from frami_edge.data.errors import DataError, UnusableClipError
from frami_edge.data.features import Features, digest_of
from frami_edge.data.hashes import HashMemory
from frami_edge.data.reading import Rejected, decode, read_bytes
from frami_edge.data.shards import ShardFolder
from frami_edge.frontend import LogMel, resample, tile_to_window
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.melspec import MelSpec

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
