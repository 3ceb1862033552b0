"""The one latency measurement: calls timed in turns within the same seconds.

A ratio of two models is measured in blocks. Each block loads every model again, because where its
weights lie in memory changes its speed by some percent for as long as it is loaded; one block's
medians give one ratio, and the ratios' order gives the interval.
"""

from __future__ import annotations

import contextlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Array, cpu_session, parity_inputs, with_context
from frami_edge_export.report import NO_SLOWER, Artifact, Draft
from frami_edge_runtime.modelfile import ModelInfo

MIN_ROUNDS: Final = 15
BLOCKS: Final = 6
"""Least number of blocks: fewer give no interval of 95 %."""
_WIDE: Final = 1.1
"""An interval is wide where its upper end is more than this times its lower one: something else ran
in a block."""
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


@dataclass(frozen=True)
class Ratio:
    """How much faster than fp32: the median of the blocks, with its 95 % confidence interval."""

    factor: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, factors: Sequence[float]) -> Ratio:
        """From one factor per block, `BLOCKS` to twice as many.

        The interval assumes no distribution: the true median is outside of 6 blocks' range with a
        probability of 2 / 2^6, of the range without the 2 ends on each side of 12 with 3.9 %.
        """
        ordered, ends = sorted(factors), (len(factors) - BLOCKS) // 3
        return cls(statistics.median(ordered), (ordered[ends], ordered[-1 - ends]))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, budget_s: float, max_rounds: int
) -> dict[str, Latency]:
    """Time each call once per round; the order rotates, which is fair on a busy machine.

    Args:
        calls: The calls by name; each does the same work every time.
        budget_s: Total seconds to spend; at least `MIN_ROUNDS` rounds are run.
        max_rounds: Largest number of rounds.
    """
    times = _times_ms(calls, budget_s, MIN_ROUNDS, max_rounds)
    return {name: Latency.of(t) for name, t in times.items()}


def _times_ms(
    calls: Mapping[str, Callable[[], object]], budget_s: float, min_rounds: int, max_rounds: int
) -> dict[str, list[float]]:
    names = list(calls)
    for name in names:
        for _ in range(_WARM_UP):
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget_s
    rounds = 0
    while rounds < max_rounds and (rounds < min_rounds or time.perf_counter() < end):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            # Untimed: a device runs one model, so the others must not have emptied its caches.
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return times


def session_latency(
    graphs: Mapping[str, tuple[Any, Array]], options: ExportOptions
) -> tuple[dict[str, Latency], dict[str, Ratio]]:
    """Time ONNX graphs of one input: by name, each graph and what to feed it.

    Measuring goes on, at most twice as long, while an interval holds `NO_SLOWER`, so that it is
    open whether that graph is slower than fp32, or is wide.

    Returns:
        Latencies, and how much faster each is than ``fp32``.
    """
    data = {name: (graph.SerializeToString(), x) for name, (graph, x) in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    factors: dict[str, list[float]] = {name: [] for name in graphs}
    rounds = max(1, options.bench_rounds // BLOCKS)
    ratios: dict[str, Ratio] = {}
    for block in range(1, 2 * BLOCKS + 1):
        calls = {name: _call(graph, x) for name, (graph, x) in data.items()}
        budget_s = options.bench_budget_s / BLOCKS
        found = _times_ms(calls, budget_s, -(-MIN_ROUNDS // BLOCKS), rounds)
        medians = {name: statistics.median(t) for name, t in found.items()}
        for name in graphs:
            times[name] += found[name]
            factors[name].append(medians["fp32"] / medians[name])
        if block >= BLOCKS:
            ratios = {name: Ratio.of(f) for name, f in factors.items()}
            ends = [ratio.interval for ratio in ratios.values()]
            if not any(low < NO_SLOWER < high or high > _WIDE * low for low, high in ends):
                break
    return {name: Latency.of(t) for name, t in times.items()}, ratios


def _call(graph: bytes, x: Array) -> Callable[[], object]:
    session = cpu_session(graph)
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


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
    second, faster = session_latency(
        {n: (d.graph, getattr(inputs, d.artifact.kind)) for n, d in timed.items()}, options
    )
    streaming = {n: d for n, d in timed.items() if d.artifact.kind == "streaming"}
    chunk, faster_chunk = session_latency(
        {n: (d.graph, inputs.chunk) for n, d in streaming.items()}, options
    )
    artifacts = []
    for draft in drafts:
        a = draft.artifact
        if a.name in second:
            a = replace(a, p50_ms=second[a.name].p50_ms, p95_ms=second[a.name].p95_ms)
            # A waveform graph does the front end's work too, so it has no speedup over a trunk.
            if a.kind != "waveform":
                ratio = faster[a.name]
                a = replace(a, speedup=ratio.factor, speedup_95=ratio.interval)
        if a.name in chunk:
            ratio = faster_chunk[a.name]
            a = replace(
                a,
                chunk_p50_ms=chunk[a.name].p50_ms,
                chunk_speedup=ratio.factor,
                chunk_speedup_95=ratio.interval,
            )
        artifacts.append(a)
    description = {
        "threads": 1,
        "batch": 1,
        "cpu": cpu_name(),
        "target": this_target(),
        "rounds": second["fp32"].rounds,
        "frames_1s": inputs.classifier.shape[3],
        "frames_chunk": inputs.chunk.shape[3],
        "context_frames": inputs.context_frames,
        "chunk_s": options.chunk_s,
    }
    return artifacts, description


def this_target() -> str:
    """The target that this machine's CPU is, ``x86`` or ``arm``; any other by its own name."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "i686", "x86"):
        return "x86"
    return "arm" if machine.startswith(("arm", "aarch64")) else machine


def cpu_name() -> str:
    """Name of this machine's CPU, or of its board, for a report."""
    with contextlib.suppress(OSError):  # not Linux
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^(?:model name|Model)\s*:\s*(\S.*?)\s*$", text, re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()
