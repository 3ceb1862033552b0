"""What every backend proves of a model before its first stream.

Shape legend: B batch, M mel bands, T mel frames, C channels, D = 2 C, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from frami_edge_runtime._strict_json import EXPORT_AGAIN
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.modelfile import METADATA_KEY

EXACT: Final = 1e-3
"""Largest difference, absolute and relative, where runs of other lengths must give the same bits or
nearly so; a trunk that looks beyond its receptive field differs by 0.1 and more."""
ON_GPU: Final = {"fp32": 2e-3, "fp16": 2e-2, "int8": 1e-1}
"""Likewise on a GPU, which may run other lengths with other kernels that round differently: int8 by
whole steps."""


def check_threads(threads: int) -> int:
    """``threads``, if it is a sane number of them.

    Raises:
        ModelFileError: It is not in 1..256.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256:
        raise ModelFileError(f"threads must lie in 1..256, not {threads!r}.", fix="Use 1.")
    return threads


def check_port(ports: Sequence[Any], name: str, shape: tuple[int | None, ...], who: str) -> None:
    """Check that a session has exactly one such input or output; None is a dynamic dimension.

    Raises:
        ModelFileError: It has others.
    """
    try:
        found = ", ".join(f"{p.name} {p.type} {list(p.shape)}" for p in ports)[:300]
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{who} has damaged names: {error}.", fix=EXPORT_AGAIN) from None
    fits = len(ports) == 1 and ports[0].name == name and ports[0].type == "tensor(float)"
    fits = fits and len(ports[0].shape) == len(shape)
    # A dimension without a fixed size is a name or None; where it must be dynamic it has to be one.
    fits = fits and all(
        not isinstance(n, int) if wanted is None else n == wanted or not isinstance(n, int)
        for n, wanted in zip(ports[0].shape, shape, strict=True)
    )
    if not fits:
        dims = ["dynamic" if n is None else n for n in shape]
        raise ModelFileError(
            f"{who} must have {name} as float32 {dims}, not {found or 'nothing'}.",
            fix=EXPORT_AGAIN,
        )


def check_model(model: Backend, tolerance: float = EXACT) -> None:
    """Two frames at once must equal the same two one by one: else nothing could be streamed.

    Args:
        model: Loaded and ready to run.
        tolerance: Largest difference, absolute and relative.

    Raises:
        ModelFileError: The model does not do what its metadata says.
    """
    info = model.info
    if model.max_mel_frames >= info.receptive_field + info.stride:
        _check_frames(model, tolerance)
    else:
        shortest = np.zeros((1, 1, info.mel.n_mels, info.receptive_field), np.float32)
        _check_shape(model, shortest.shape[3], model.frames(shortest).shape, 1)
    if model.logits(np.zeros((1, info.pooled_size), np.float32)).shape != (1, len(info.labels)):
        raise ModelFileError(
            f"{model.name}: the head does not give {len(info.labels)} logits.", fix=EXPORT_AGAIN
        )


def _check_frames(model: Backend, tolerance: float) -> None:
    info = model.info
    shape = (1, 1, info.mel.n_mels, info.receptive_field + info.stride)
    # As good as noise here, and a device need not load numpy.random, 7 ms, for it.
    mel_BMT = np.sin(np.square(np.arange(np.prod(shape)))).astype(np.float32).reshape(shape)
    both = model.frames(mel_BMT)
    _check_shape(model, mel_BMT.shape[3], both.shape, 2)
    # One mel frame less than two trunk frames need: an overstated receptive field shows here.
    first = model.frames(np.ascontiguousarray(mel_BMT[..., :-1]))
    _check_shape(model, mel_BMT.shape[3] - 1, first.shape, 1)
    second = model.frames(np.ascontiguousarray(mel_BMT[..., info.stride :]))
    one_by_one = np.concatenate([first, second], axis=2)
    if not np.allclose(both, one_by_one, rtol=tolerance, atol=tolerance):
        raise ModelFileError(
            f"{model.name}: a trunk frame is not a function of its {info.receptive_field} mel "
            f"frames, so a stream could not equal the whole clip.",
            fix="Train the student without padding, normalisation or attention along time.",
        )


def _check_shape(model: Backend, mel_frames: int, shape: tuple[int, ...], frames: int) -> None:
    info = model.info
    if shape != (1, info.channels, frames):
        raise ModelFileError(
            f"{model.name}: {METADATA_KEY} says receptive_field {info.receptive_field}, stride "
            f"{info.stride}, channels {info.channels}, but {mel_frames} mel frames give {shape}.",
            fix=EXPORT_AGAIN,
        )
