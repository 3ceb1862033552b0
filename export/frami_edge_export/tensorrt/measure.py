"""An engine against the ONNX file that it came from, and its speed on this device.

Shape legend: N clips, B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C,
K classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from frami_edge_export.scoring import Comparison
from frami_edge_export.tensorrt.profiles import mel_frames
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.pooling import mean_std

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]
Times = dict[str, tuple[float, float]]
"""Median and 95th percentile in ms, by engine."""

TOLERANCES: Final = {"fp32": 1e-3, "fp16": 2e-2}
"""Largest |difference| of the logits per unit of the largest, at least 1."""
MIN_SQNR_DB: Final = 20.0
"""Of int8, whose values may fall on either side of the edge between two steps: both are right."""
CLIPS: Final = 256
CLIP_S: Final = 1.0
WARM_UP: Final = 10
MIN_ROUNDS: Final = 15
MAX_ROUNDS: Final = 2000


def plausible_mels(spec: MelSpec, count: int | None = None, seed: int = 0) -> Array:
    """Mels for a device that has no bank: (N, 1, M, T) between the front end's floor and ceiling.

    A slow random walk over bands and time, each clip at its own level: not sound, but of the range
    and the smoothness of one, so that every layer works where it does in use.
    """
    count = CLIPS if count is None else count
    rng = np.random.default_rng(seed)
    frames = max(8, spec.frames(round(CLIP_S * spec.sample_rate)))
    walk = rng.standard_normal((count, 1, spec.n_mels, frames))
    for axis in (2, 3):
        walk = np.cumsum(walk, axis=axis) / np.sqrt(np.arange(1, walk.shape[axis] + 1)).reshape(
            [-1 if i == axis else 1 for i in range(4)]
        )
    walk += rng.standard_normal((count, 1, 1, 1))
    share = 1 / (1 + np.exp(-walk))
    low, high = spec.floor[None, None, :, None], spec.ceiling[None, None, :, None]
    mels: Array = (low + (high - low) * share).astype(np.float32)
    return mels


def logits(backend: Backend, mels_N1MT: Array) -> Array64:
    """(N, K) logits of whole clips: context, trunk in calls that fit, float64 statistics, head."""
    rows = [backend.logits(_pooled(backend, mel_1MT[None]))[0] for mel_1MT in mels_N1MT]
    return np.stack(rows).astype(np.float64)


def compare(reference_NK: Array64, found_NK: Array64) -> Comparison:
    """Two models' logits on the same mels; nothing agrees with logits that are not finite."""
    if not np.isfinite(found_NK).all():
        return Comparison(0.0, float(np.finfo(np.float64).max), None)
    return Comparison.of(reference_NK, found_NK)


def within(precision: str, found: Comparison, largest: float, min_agreement: float) -> bool:
    """Parity holds: the same classes, and the same numbers as far as the precision goes."""
    if found.agreement < min_agreement:
        return False
    if precision in TOLERANCES:
        return found.max_abs_difference / max(1.0, largest) <= TOLERANCES[precision]
    exact = found.max_abs_difference == 0.0
    return exact or (found.sqnr_db is not None and found.sqnr_db >= MIN_SQNR_DB)


def latencies(engines: Mapping[str, Backend], seconds: float | None, budget_s: float) -> Times:
    """Median and 95th percentile in ms of one call, engines taking turns in the same seconds.

    Args:
        engines: By name.
        seconds: Of audio in a call, cut to what an engine takes; None: one trunk frame.
        budget_s: Seconds to measure for, of all engines together.
    """
    feeds = {name: _feed(engine, seconds) for name, engine in engines.items()}
    for name, engine in engines.items():
        for _ in range(WARM_UP):
            engine.frames(feeds[name])
    times: dict[str, list[float]] = {name: [] for name in engines}
    names, end, rounds = list(engines), time.perf_counter() + budget_s, 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() < end):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            engines[name].frames(feeds[name])
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {n: (float(np.median(t)), float(np.percentile(t, 95))) for n, t in times.items()}


def _feed(engine: Backend, seconds: float | None) -> Array:
    info = engine.info
    frames = info.receptive_field if seconds is None else mel_frames(info, seconds)
    frames = min(frames, engine.max_mel_frames)
    return plausible_mels(info.mel, 1)[..., np.arange(frames) % _clip_frames(info)]


def _clip_frames(info: ModelInfo) -> int:
    return max(8, info.mel.frames(round(CLIP_S * info.mel.sample_rate)))


def _pooled(backend: Backend, mel_11MT: Array) -> Array:
    info = backend.info
    around = ((0, 0), (0, 0), (0, 0), (info.context.left, info.context.right))
    padded = np.pad(mel_11MT, around, constant_values=info.context.value)
    parts: Sequence[Array] = [
        backend.frames(np.ascontiguousarray(padded[..., start:stop]))
        for start, stop in _calls(info, padded.shape[3], backend.max_mel_frames)
    ]
    return mean_std(np.concatenate(parts, axis=2), info.pooling.eps).astype(np.float32)


def _calls(info: ModelInfo, frames: int, most: int) -> list[tuple[int, int]]:
    """Mel frames of each call: as long as the engine takes, overlapping by field - stride."""
    runs = (frames - info.receptive_field) // info.stride + 1
    longest = (min(most, frames) - info.receptive_field) // info.stride + 1
    calls = []
    for first in range(0, runs, longest):
        last = min(first + longest, runs) - 1
        calls.append((first * info.stride, last * info.stride + info.receptive_field))
    return calls
