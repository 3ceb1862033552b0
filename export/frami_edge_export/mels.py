"""A streaming model file on log-mels: many clips at once, as the runtime would answer each.

Shape legend: N clips, B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from frami_edge_export.errors import ExportError
from frami_edge_runtime.backends.ort import OrtModel
from frami_edge_runtime.pooling import mean_std

BATCH_FRAMES: Final = 4096
"""Mel frames per run, at least one clip: bounds memory."""


def classify_mels(
    path: str | os.PathLike[str] | bytes,
    mels: Sequence[npt.NDArray[np.floating]],
    *,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """Logits of a streaming model file for clips of any lengths.

    Context around the clip, trunk, statistics in float64, head: the definition of
    frami-edge-runtime. Clips of one length share runs.

    Args:
        path: The ``.onnx`` file, or its bytes.
        mels: (M, T_i) normalised log-mels, T_i >= 1.
        threads: CPU threads.

    Returns:
        (N, K) float32, in the order given.

    Raises:
        ModelFileError: The file is no such model.
        ExportError: A mel is not (M, T) of this model's front end, or not finite.
    """
    model = OrtModel(path, threads=threads)
    info = model.info
    around = ((0, 0), (info.context.left, info.context.right))
    by_length: dict[int, list[int]] = {}
    for i, mel in enumerate(mels):
        _check(mel, i, info.mel.n_mels)
        by_length.setdefault(mel.shape[1], []).append(i)
    logits_NK = np.empty((len(mels), len(info.labels)), np.float32)
    for length, indices in by_length.items():
        step = max(1, BATCH_FRAMES // (length + info.receptive_field))
        for start in range(0, len(indices), step):
            some = indices[start : start + step]
            x_BMT = np.stack(
                [np.pad(mels[i], around, constant_values=info.context.value) for i in some]
            )
            frames_BCT = model.frames(x_BMT[:, None].astype(np.float32))
            pooled_BD = mean_std(frames_BCT, info.pooling.eps)
            logits_NK[some] = model.logits(pooled_BD.astype(np.float32))
    return logits_NK


def _check(mel: npt.NDArray[np.floating], index: int, n_mels: int) -> None:
    if mel.ndim != 2 or mel.shape[0] != n_mels or mel.shape[1] < 1:
        raise ExportError(
            f"Mel {index} has shape {mel.shape}, not ({n_mels}, T) with T >= 1.",
            fix="Compute it with the model's own MelSpec.",
        )
    if not np.isfinite(mel).all():
        raise ExportError(f"Mel {index} holds values that are not finite.", fix="Check its audio.")
