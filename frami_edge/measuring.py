"""How fast models are on this machine: the graph alone, and the whole stream.

Shape legend: M mel bands, T mel frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final

import numpy as np
import numpy.typing as npt

from frami_edge.errors import ConfigError
from frami_edge.opening import OpenedModel
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_export.bench import Latency, interleaved
from frami_edge_export.parity import parity_inputs

Array = npt.NDArray[np.float32]

BUDGET_S: Final = 3.0
"""Seconds of measuring for each row of the table."""
WINDOW_S: Final = 1.0
"""Window of the measured stream; it gives a result for each chunk."""
_AUDIO_S = 10.0


@dataclass
class ModelTiming:
    """Timings of one model.

    Attributes:
        latency: Latency by input. ``1 s`` and ``chunk 0.1 s`` (with its context) time the graph
            alone, ``push`` a whole `Stream.push`: log-mel, trunk, pooling and head.
        core_share: CPU seconds per second of audio of the whole stream.
        real_time_factor: Wall seconds per second of audio of the whole stream, by the median push.
    """

    latency: dict[str, Latency] = field(default_factory=dict)
    core_share: float | None = None
    real_time_factor: float | None = None


def measure(
    models: Sequence[OpenedModel],
    *,
    seconds: Sequence[float] = (1.0, 5.0),
    chunk_s: float = 0.1,
    rounds: int = 300,
) -> list[ModelTiming]:
    """Time models; within each round they take turns, so that their ratio is fair.

    Args:
        models: Exported models.
        seconds: Lengths of audio to run at once.
        chunk_s: Seconds of new audio in a streaming chunk.
        rounds: Largest number of rounds for each input.

    Raises:
        ConfigError: A model is a checkpoint, which no device runs.
    """
    for model in models:
        if model.info is None:
            raise ConfigError(
                f"{model.path} is a checkpoint, which does not run on a device.",
                fix=f"Export it first: frami-edge export {model.path} --out FOLDER.",
            )
    found = [ModelTiming() for _ in models]
    jobs: dict[str, list[Callable[[], object] | None]] = {
        f"{length:g} s": [_run(m, whole_input(m, length)) for m in models] for length in seconds
    }
    jobs[f"chunk {chunk_s:g} s"] = [_run(m, chunk_input(m, chunk_s)) for m in models]
    pushes = [None if m.classifier is None else _Push(m, chunk_s) for m in models]
    jobs["push"] = list(pushes)
    for name, calls in jobs.items():
        known = {str(i): call for i, call in enumerate(calls) if call is not None}
        if known:
            for i, latency in interleaved(known, budget_s=BUDGET_S, max_rounds=rounds).items():
                found[int(i)].latency[name] = latency
    for timing, push in zip(found, pushes, strict=True):
        if push is not None:
            timing.core_share = push.cpu_s / (push.calls * chunk_s)
            timing.real_time_factor = timing.latency["push"].p50_ms / 1000 / chunk_s
    return found


def whole_input(model: OpenedModel, seconds: float) -> Array | None:
    """Input of one run of the graph over so much audio; None where an engine takes less."""
    info = model.info
    assert info is not None
    samples = max(info.mel.min_samples, round(seconds * info.mel.sample_rate))
    if model.kind == "waveform":
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, samples))
        return noise.astype(np.float32)
    frames = max(1, info.mel.frames(samples))
    if model.classifier is not None:
        frames += info.context.left + info.context.right
    return _mel_input(model, frames)


def chunk_input(model: OpenedModel, seconds: float) -> Array | None:
    """Input of one run in a stream: new frames after the carried ones; None without a stream."""
    info = model.info
    if model.classifier is None or info is None:
        return None
    new_frames = max(1, round(seconds / info.frame_s)) - 1
    return _mel_input(model, info.receptive_field + new_frames * info.stride)


def _mel_input(model: OpenedModel, frames: int) -> Array | None:
    longest = model.max_mel_frames
    fits = longest is None or frames <= longest
    return parity_inputs([frames], model.mel, 0)[0] if fits else None


def _run(model: OpenedModel, x: Array | None) -> Callable[[], object] | None:
    return None if x is None else lambda: model.graph(x)


class _Push:
    """Pushes the next chunk of procedural audio, again and again, and counts CPU time."""

    def __init__(self, model: OpenedModel, chunk_s: float) -> None:
        assert model.classifier is not None
        rate = model.mel.sample_rate
        size = max(1, round(chunk_s * rate))
        audio = ProceduralAudio(rate, max(_AUDIO_S, 2 * chunk_s)).clips(1, 0)[0]
        self._chunks = cycle([audio[i : i + size] for i in range(0, len(audio) - size + 1, size)])
        self._stream = model.classifier.stream(window_s=max(WINDOW_S, chunk_s), hop_s=chunk_s)
        self.calls, self.cpu_s = 0, 0.0

    def __call__(self) -> None:
        chunk = next(self._chunks)
        busy_s = time.process_time()
        self._stream.push(chunk)
        self.cpu_s += time.process_time() - busy_s
        self.calls += 1
