"""The one latency measurement: calls timed in turns within the same seconds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Array, cpu_session, parity_inputs, with_context
from frami_edge_export.report import Artifact, Draft
from frami_edge_runtime.modelfile import ModelInfo

MIN_ROUNDS: Final = 15
_WARM_UP: Final = 5


@dataclass(frozen=True)
class Latency:
    """Percentiles of one call, milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    rounds: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Latency:
        """Percentiles of the times of all rounds, milliseconds."""
        p50, p95, p99 = (float(np.percentile(times_ms, p)) for p in (50, 95, 99))
        return cls(p50, p95, p99, len(times_ms))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, budget_s: float, max_rounds: int
) -> dict[str, Latency]:
    """Time each call once per round; the order rotates, which is fair on a busy machine.

    Args:
        calls: The calls by name; each does the same work every time.
        budget_s: Total seconds to spend; at least `MIN_ROUNDS` rounds are run.
        max_rounds: Largest number of rounds.
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


def session_latency(
    graphs: Mapping[str, tuple[Any, Array]], options: ExportOptions
) -> dict[str, Latency]:
    """Latency of ONNX graphs of one input: by name, each graph and what to feed it."""

    def call(graph: Any, x: Array) -> Callable[[], object]:
        session = cpu_session(graph)
        feed = {session.get_inputs()[0].name: x}
        return lambda: session.run(None, feed)

    calls = {name: call(graph, x) for name, (graph, x) in graphs.items()}
    if not calls:
        return {}
    return interleaved(calls, budget_s=options.bench_budget_s, max_rounds=options.bench_rounds)


@dataclass(frozen=True)
class BenchInputs:
    """1 s of audio in the form of each kind of graph, and one streaming chunk."""

    classifier: Array
    """(1, 1, M, T) mel of 1 s."""
    streaming: Array
    """The same with the clip's context."""
    waveform: Array
    """(1, N) samples of 1 s."""
    chunk: Array
    """(1, 1, M, T) mel of one chunk after its carried context."""
    context_frames: int

    @classmethod
    def of(cls, info: ModelInfo, options: ExportOptions) -> BenchInputs:
        """Random inputs for the front end and receptive field of ``info``."""
        mel, context = info.mel, info.receptive_field - info.stride
        steps = max(1, round(options.chunk_s / info.frame_s))
        lengths = (max(mel.frames(mel.sample_rate), 1), context + steps * info.stride)
        second, chunk = parity_inputs(lengths, mel, options.seed)
        noise = np.random.default_rng(options.seed).normal(0, 0.1, (1, mel.sample_rate))
        padded = with_context(second, (info.context.left, info.context.right))
        return cls(second, padded, noise.astype(np.float32), chunk, context)


def bench_drafts(
    drafts: Sequence[Draft], inputs: BenchInputs, options: ExportOptions
) -> tuple[list[Artifact], dict[str, Any]]:
    """Time every graph on 1 s of audio, and the streaming ones on a chunk too.

    Returns:
        The artefacts with their latency, and how it was measured.
    """
    timed = {d.artifact.name: d for d in drafts if d.timed}
    second = session_latency(
        {n: (d.graph, getattr(inputs, d.artifact.kind)) for n, d in timed.items()}, options
    )
    streaming = {n: d for n, d in timed.items() if d.artifact.kind == "streaming"}
    chunk = session_latency({n: (d.graph, inputs.chunk) for n, d in streaming.items()}, options)
    artifacts = []
    for draft in drafts:
        a = draft.artifact
        if a.name in second:
            a = replace(a, p50_ms=second[a.name].p50_ms, p95_ms=second[a.name].p95_ms)
            # A waveform graph does the front end's work too, so it has no speedup over a trunk.
            if a.kind != "waveform":
                a = replace(a, speedup=second["fp32"].p50_ms / second[a.name].p50_ms)
        if a.name in chunk:
            p50_ms = chunk[a.name].p50_ms
            a = replace(a, chunk_p50_ms=p50_ms, chunk_speedup=chunk["fp32"].p50_ms / p50_ms)
        artifacts.append(a)
    description = {
        "threads": 1,
        "batch": 1,
        "cpu": cpu_name(),
        "rounds": second["fp32"].rounds,
        "frames_1s": inputs.classifier.shape[3],
        "frames_chunk": inputs.chunk.shape[3],
        "context_frames": inputs.context_frames,
        "chunk_s": options.chunk_s,
    }
    return artifacts, description


def cpu_name() -> str:
    """Name of this machine's CPU, for a report."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
