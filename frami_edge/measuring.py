"""How fast models are on this machine: the graph alone, and the whole stream.

Shape legend: M mel bands, T mel frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Final

import numpy as np
import numpy.typing as npt

from frami_edge.errors import ConfigError
from frami_edge.opening import OpenedModel
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_export.bench import Latency, interleaved
from frami_edge_export.parity import parity_inputs
from frami_edge_runtime.errors import StreamError

Array = npt.NDArray[np.float32]

BUDGET_S: Final = 3.0
"""Seconds of measuring for each row of the table."""
_WINDOW_S, _AUDIO_S = 1.0, 10.0
QUIET_S: Final = 95.0
"""Seconds of quiet around a sound that lasts a twentieth of both together."""
_QUIET_DB, _SOUND_DB, _OPEN_S = -70.0, -30.0, 5.0  # _OPEN_S: until a gate is closed
_GATE_ROUNDS: Final = 3


@dataclass
class ModelTiming:
    """Timings of one model.

    Attributes:
        latency: Latency by input. ``1 s`` and ``chunk 0.1 s`` (with its context) time the graph
            alone, ``push`` a whole `Stream.push`: log-mel, trunk, pooling and head.
        core_share: CPU seconds per second of audio of the whole stream.
        real_time_factor: Wall seconds per second of audio of the whole stream, by the median push.
        gate_saves: Share of the CPU time that a gate saves in a quiet room; None where the stream
            cannot have one.
        gate_saves_with_sounds: The same in a room that is quiet for 95 % of the time.
    """

    latency: dict[str, Latency] = field(default_factory=dict)
    core_share: float | None = None
    real_time_factor: float | None = None
    gate_saves: float | None = None
    gate_saves_with_sounds: float | None = None


def measure(
    models: Sequence[OpenedModel],
    *,
    seconds: Sequence[float] = (1.0, 5.0),
    chunk_s: float = 0.1,
    rounds: int = 300,
) -> list[ModelTiming]:
    """Time exported models; within each round they take turns, so that their ratio is fair.

    They run on audio of each length that an engine's profile allows, and on streaming chunks with
    ``chunk_s`` of new audio.

    Raises:
        ConfigError: A model is a checkpoint, which no device runs.
    """
    pushes = {i: _Push(m, chunk_s) for i, m in enumerate(models) if m.classifier is not None}
    jobs: dict[str, dict[int, Callable[[], object]]] = {}
    for i, model in enumerate(models):
        inputs = {f"{length:g} s": graph_input(model, length) for length in seconds}
        if i in pushes:
            inputs[f"chunk {chunk_s:g} s"] = graph_input(model, chunk_s, chunk=True)
        for name, x in inputs.items():
            if x is not None:
                jobs.setdefault(name, {})[i] = partial(model.graph, x)
    jobs["push"] = dict(pushes)
    found = [ModelTiming() for _ in models]
    for name, calls in jobs.items():
        if calls:
            named = {str(i): call for i, call in calls.items()}
            times = interleaved(named, budget_s=BUDGET_S, max_rounds=rounds)
            for key, latency in times.items():
                found[int(key)].latency[name] = latency
    for i, push in pushes.items():
        found[i].core_share = push.cpu_s / (push.calls * chunk_s)
        found[i].real_time_factor = found[i].latency["push"].p50_ms / 1000 / chunk_s
        found[i].gate_saves, found[i].gate_saves_with_sounds = gate_saves(models[i], chunk_s)
    return found


def gate_saves(model: OpenedModel, chunk_s: float) -> tuple[float | None, float | None]:
    """Shares of CPU time that a gate saves: in a quiet room, and with a sound in 5 % of the time.

    Streams with and without a gate take turns; the least times count. None where there is no gate.
    """
    assert model.classifier is not None
    rate = model.mel.sample_rate
    rng, half, sound_s = np.random.default_rng(0), QUIET_S / 2, QUIET_S / 19
    levels = [(_QUIET_DB, _OPEN_S + half), (_SOUND_DB, sound_s), (_QUIET_DB, half)]
    parts = [10 ** (db / 20) * rng.standard_normal(round(s * rate)) for db, s in levels]
    x, size = np.concatenate(parts).astype(np.float32), max(1, round(chunk_s * rate))
    chunks = [x[i : i + size] for i in range(0, len(x), size)]
    opened, quiet = round(_OPEN_S / chunk_s), round((_OPEN_S + half) / chunk_s)
    stretches = chunks[opened:quiet], chunks[quiet:]
    window_s, least_s = max(_WINDOW_S, chunk_s), np.full((2, 2), np.inf)
    for _ in range(_GATE_ROUNDS):
        streams = []
        for gate_db in (None, _QUIET_DB + 20):
            try:
                stream = model.classifier.stream(window_s=window_s, gate_db=gate_db)
            except StreamError:
                return None, None
            stream.push(np.concatenate(chunks[:opened]))
            streams.append(stream)
        for i, stretch in enumerate(stretches):
            for k, stream in enumerate(streams):
                busy_s = time.process_time()
                for chunk in stretch:
                    stream.push(chunk)
                least_s[k, i] = min(least_s[k, i], time.process_time() - busy_s)
    plain_s, gated_s = least_s
    return 1 - gated_s[0] / plain_s[0], 1 - gated_s.sum() / plain_s.sum()


def graph_input(model: OpenedModel, seconds: float, *, chunk: bool = False) -> Array | None:
    """Input of one run of the graph, or None where it is too long for an engine.

    A chunk continues a stream: the frames carried from before replace the context.

    Raises:
        ConfigError: The model is a checkpoint.
    """
    info = model.info
    if info is None:
        raise ConfigError(
            f"{model.path} is a checkpoint, which does not run on a device.",
            fix=f"Export it first: frami-edge export {model.path} --out FOLDER.",
        )
    samples = max(info.mel.min_samples, round(seconds * info.mel.sample_rate))
    if model.kind == "waveform":
        return np.random.default_rng(0).uniform(-0.5, 0.5, (1, samples)).astype(np.float32)
    frames = max(1, info.mel.frames(samples))
    if chunk:
        new_frames = max(1, round(seconds / info.frame_s)) - 1
        frames = info.receptive_field + new_frames * info.stride
    elif model.classifier is not None:
        frames += info.receptive_field - 1
    if model.classifier is not None and frames > model.classifier.model.max_mel_frames:
        return None
    return parity_inputs([frames], model.mel, 0)[0]


class _Push:
    """Pushes the next chunk of procedural audio, again and again, and counts CPU time."""

    def __init__(self, model: OpenedModel, chunk_s: float) -> None:
        assert model.classifier is not None
        rate = model.mel.sample_rate
        size = max(1, round(chunk_s * rate))
        audio = ProceduralAudio(rate, max(_AUDIO_S, 2 * chunk_s)).clips(1, 0)[0]
        self._chunks = cycle([audio[i : i + size] for i in range(0, len(audio) - size + 1, size)])
        self._stream = model.classifier.stream(window_s=max(_WINDOW_S, chunk_s), hop_s=chunk_s)
        self.calls, self.cpu_s = 0, 0.0

    def __call__(self) -> None:
        chunk = next(self._chunks)
        busy_s = time.process_time()
        self._stream.push(chunk)
        self.cpu_s += time.process_time() - busy_s
        self.calls += 1
