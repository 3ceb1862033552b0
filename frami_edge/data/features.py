"""Log-mel features of clips, as batches and manifests need them.

Shape legend: N clips, M mel bands, T frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from frami_edge.data.clips import Clip
from frami_edge.data.errors import DataError
from frami_edge.data.reading import Rejected
from frami_edge_runtime.melspec import MelSpec


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
