"""What is timed: every graph on 1 s of audio, the streaming ones on a chunk with its context too.

Shape legend: M mel bands, T mel frames.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from frami_edge_export.frontend import WAVEFORM
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import cpu_session, parity_inputs, with_context
from frami_edge_export.report import Artifact
from frami_edge_runtime.modelfile import TRUNK_INPUT, ModelInfo

# --- Latency of several graphs in the same seconds: interleaving is fair on a busy machine

MIN_ROUNDS = 15
_WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Percentiles of one graph or call, milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    rounds: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Latency:
        """Of the times of all rounds, milliseconds."""
        p50, p95, p99 = (float(np.percentile(times_ms, p)) for p in (50, 95, 99))
        return cls(p50, p95, p99, len(times_ms))


def interleaved_latency(
    sessions: Mapping[str, ort.InferenceSession],
    feeds: Mapping[str, Mapping[str, npt.NDArray[np.float32]]],
    *,
    budget_s: float,
    max_rounds: int,
) -> dict[str, Latency]:
    """`interleaved` runs of ONNX Runtime sessions.

    Args:
        sessions: By name.
        feeds: Inputs of each session, by its name and theirs.
        budget_s: Seconds to spend in all; at least `MIN_ROUNDS` rounds are run.
        max_rounds: Stop after so many.
    """

    def call(name: str) -> Callable[[], object]:
        return lambda: sessions[name].run(None, feeds[name])

    return interleaved({n: call(n) for n in sessions}, budget_s=budget_s, max_rounds=max_rounds)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, budget_s: float, max_rounds: int
) -> dict[str, Latency]:
    """Time each call once a round, in an order that turns from round to round.

    Args:
        calls: By name; each does the same work every time.
        budget_s: Seconds to spend in all; at least `MIN_ROUNDS` rounds are run.
        max_rounds: Stop after so many.
    """
    names = list(calls)
    for name in names:
        for _ in range(_WARM_UP):
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget_s
    rounds = 0
    while rounds < max_rounds and (rounds < MIN_ROUNDS or time.perf_counter() < end):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            # Untimed: a device runs one model, so the others must not have emptied its caches.
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {name: Latency.of(t) for name, t in times.items()}


# --- What is timed: every graph on 1 s of audio, the streaming ones on a chunk with its context


class Bench:
    """Latency of all graphs of one export.

    Args:
        info: Of the model: front end, receptive field, stride.
        options: Chunk length and budgets.
    """

    def __init__(self, info: ModelInfo, options: ExportOptions) -> None:
        mel = info.mel
        self._options = options
        self.context_frames = info.receptive_field - info.stride
        steps = max(1, round(options.chunk_s / info.frame_s))
        frames_1s = max(mel.frames(mel.sample_rate), 1)
        frames_chunk = self.context_frames + steps * info.stride
        self.mel_1s, self.mel_chunk = parity_inputs((frames_1s, frames_chunk), mel, options.seed)
        self.trunk_1s = with_context(self.mel_1s, (info.context.left, info.context.right))
        noise = np.random.default_rng(options.seed).normal(0, 0.1, (1, mel.sample_rate))
        self.wave_1s = noise.astype(np.float32)
        self._waveforms: set[str] = set()
        self._second: dict[str, Latency] = {}
        self._chunk: dict[str, Latency] = {}

    def run(self, graphs: Mapping[str, tuple[str, onnx.ModelProto]]) -> None:
        """Time graphs on 1 s and the streaming ones on a chunk: kind and graph by artefact."""
        second = {
            "streaming": {TRUNK_INPUT: self.trunk_1s},
            "classifier": {TRUNK_INPUT: self.mel_1s},
            "waveform": {WAVEFORM: self.wave_1s},
        }
        sessions = {n: cpu_session(g) for n, (kind, g) in graphs.items() if kind in second}
        streaming = {n: s for n, s in sessions.items() if graphs[n][0] == "streaming"}
        self._waveforms = {n for n in sessions if graphs[n][0] == "waveform"}
        self._second = self._measure(sessions, {n: second[graphs[n][0]] for n in sessions})
        self._chunk = self._measure(
            streaming, {n: {TRUNK_INPUT: self.mel_chunk} for n in streaming}
        )

    def timed(self, artifact: Artifact) -> Artifact:
        """The artefact with its latency fields filled in, where it was timed."""
        name = artifact.name
        second, chunk = self._second.get(name), self._chunk.get(name)
        if second is None:
            return artifact
        return replace(
            artifact,
            p50_ms=second.p50_ms,
            p95_ms=second.p95_ms,
            # A waveform classifier does the front end's work too: no rival of a trunk.
            speedup=None
            if name in self._waveforms
            else self._second["fp32"].p50_ms / second.p50_ms,
            chunk_p50_ms=None if chunk is None else chunk.p50_ms,
            chunk_speedup=None if chunk is None else self._chunk["fp32"].p50_ms / chunk.p50_ms,
        )

    def description(self) -> dict[str, Any]:
        """How it was measured, for the report."""
        return {
            "threads": 1,
            "batch": 1,
            "cpu": cpu_name(),
            "rounds": self._second["fp32"].rounds,
            "frames_1s": int(self.mel_1s.shape[3]),
            "frames_chunk": int(self.mel_chunk.shape[3]),
            "context_frames": self.context_frames,
            "chunk_s": self._options.chunk_s,
        }

    def _measure(
        self,
        sessions: Mapping[str, Any],
        feeds: Mapping[str, Mapping[str, npt.NDArray[np.float32]]],
    ) -> dict[str, Latency]:
        return interleaved_latency(
            sessions,
            feeds,
            budget_s=self._options.bench_budget_s,
            max_rounds=self._options.bench_rounds,
        )


def cpu_name() -> str:
    """Of this machine, for a report."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
