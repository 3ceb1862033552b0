"""Batches of clips of similar length, padded at the floor and masked by their true lengths.

Shape legend: B batch, M mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


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
