"""Procedural audio as normalised log-mels. Shape legend: M mel bands, T frames."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.errors import ConfigError
from frami_edge.frontend import LogMel
from frami_edge.inversion.procedural.audio import ProceduralAudio
from frami_edge_runtime.melspec import MelSpec

_CLIP_OVER_CROP = 1.25
"""Clips are longer than crops, so that onsets and ends also fall outside of what is kept."""

_SHORTEST_CLIP_S = 0.5
"""Seconds: even a short crop comes from a clip with room for several events."""

_CHUNK_SAMPLES = 4_000_000
"""Samples of audio held at once: 16 MB."""


def procedural_mels(
    spec: MelSpec,
    n: int,
    frames: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    start: int = 0,
) -> torch.Tensor:
    """Random crops of procedural audio through the real front end.

    Args:
        spec: The teacher's front end.
        n: Number of mels.
        frames: Frames (T) of each.
        seed: Mel i depends on the spec, on ``frames``, on the seed and on i only.
        progress: Called with (done, n) now and then.
        start: i of the first mel.

    Returns:
        (n, 1, M, T) float32 on the CPU, normalised, between ``spec.floor`` and ``spec.ceiling``.

    Raises:
        ConfigError: ``n``, ``frames`` or ``seed`` is out of range.
    """
    if n < 0 or frames < 1 or seed < 0:
        raise ConfigError(
            f"Procedural mels: n {n}, frames {frames}, seed {seed} is out of range.",
            fix="n and seed must not be negative, frames must be at least 1.",
        )
    # A centred front end reflects its edges; those frames are made and dropped.
    edge = math.ceil(spec.n_fft / 2 / spec.hop_length) if spec.center else 0
    needed = _samples_for(spec, frames + 2 * edge)
    seconds = max(_CLIP_OVER_CROP * needed / spec.sample_rate, _SHORTEST_CLIP_S)
    audio = ProceduralAudio(spec.sample_rate, seconds)
    front_end = LogMel(spec)
    floor_M1 = torch.from_numpy(spec.floor)[:, None]
    ceiling_M1 = torch.from_numpy(spec.ceiling)[:, None]
    out = torch.empty(n, 1, spec.n_mels, frames)
    chunk = max(1, _CHUNK_SAMPLES // audio.samples)
    for first in range(0, n, chunk):
        count = min(chunk, n - first)
        at = start + first
        clips = audio.clips(count, seed, start=at)
        crops = np.stack([_crop(clip, needed, seed, at + i) for i, clip in enumerate(clips)])
        with torch.inference_mode():
            mels = front_end(torch.from_numpy(crops))[..., edge : edge + frames]
        out[first : first + count, 0] = mels.clamp(floor_M1, ceiling_M1)
        if progress is not None:
            progress(first + count, n)
    return out


def _samples_for(spec: MelSpec, frames: int) -> int:
    """The fewest samples that give so many frames."""
    if spec.center:
        return max((frames - 1) * spec.hop_length, spec.n_fft // 2 + 1)
    return (frames - 1) * spec.hop_length + spec.n_fft


def _crop(
    clip: npt.NDArray[np.float32], length: int, seed: int, index: int
) -> npt.NDArray[np.float32]:
    # A stream of its own: the clip's own draws must not move with the crop.
    rng = np.random.default_rng([seed, index, 1])
    at = int(rng.integers(0, len(clip) - length + 1))
    return clip[at : at + length]
