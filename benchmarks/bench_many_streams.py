"""How many microphones one core serves: a group of streams against the same streams one by one.

Each stream receives a chunk every 200 ms, at its own phase of the hop; the group batches the frames
that are due into one call of the model. Time is CPU time of this process on one thread, which a
busy machine disturbs little; rounds of the group and of single streams alternate. The shares of
model and log-mel are measured; the rest is our Python.

Without --model a student of random weights is exported for the occasion (needs torch).

Run: python benchmarks/bench_many_streams.py [--model A.onnx ...] [--streams 500] [--strict]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# Before NumPy is imported: its BLAS reads them once.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
from bars import Bar, judge
from bench_stream import models

from frami_edge_runtime.backends import Backend
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.logmel import LogMelStream, MelBlock
from frami_edge_runtime.stream import Stream, StreamGroup

OPTIONS: dict[str, Any] = {"window_s": 2.0, "hop_s": 0.4}


class Timed:
    """A backend that counts the processor time of its calls."""

    def __init__(self, model: Backend) -> None:
        """Wrap it."""
        self._model = model
        self.busy_s = 0.0

    def __getattr__(self, name: str) -> Any:
        """Everything else is the backend's."""
        return getattr(self._model, name)

    def frames(self, mel_BMT: Any) -> Any:
        """The trunk, timed."""
        return self._timed(self._model.frames, mel_BMT)

    def logits(self, pooled_BD: Any) -> Any:
        """The head, timed."""
        return self._timed(self._model.logits, pooled_BD)

    def _timed(self, call: Any, x: Any) -> Any:
        started = time.process_time()
        try:
            return call(x)
        finally:
            self.busy_s += time.process_time() - started


def measure(
    path: Path, streams: int, chunk_s: float, rounds: int, warm: int = 8
) -> dict[str, float]:
    """Means over rounds, in processor seconds for a second of every stream's audio."""
    model: Any = Timed(Classifier(path)._model)
    spec = model.info.mel
    chunk = round(chunk_s * spec.sample_rate)
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(chunk * 64) * 0.1).astype(np.float32)
    group = StreamGroup(model, streams, **OPTIONS)
    alone = [Stream(model, **OPTIONS) for _ in range(streams)]
    block = MelBlock(spec)
    mels = [LogMelStream(spec, block=block) for _ in range(streams)]
    for i in range(streams):  # every stream at another phase of its hop
        start = noise[: 2 * i * chunk // streams]
        group.push([start if k == i else None for k in range(streams)])
        alone[i].push(start)
    times: dict[str, list[float]] = {"group": [], "model": [], "mel": [], "alone": []}
    apart = 0.0
    for k in range(warm + rounds):
        begin = (k * 7919) % (len(noise) - chunk)
        chunks = [np.roll(noise, 37 * i)[begin : begin + chunk] for i in range(streams)]
        model.busy_s, started = 0.0, time.process_time()
        found = group.push(chunks)
        together, busy, started = time.process_time() - started, model.busy_s, time.process_time()
        expected = [stream.push(x) for stream, x in zip(alone, chunks, strict=True)]
        single, started = time.process_time() - started, time.process_time()
        for mel, x in zip(mels, chunks, strict=True):
            mel.push(x)
        row = (together, busy, time.process_time() - started, single)
        for name, seconds in zip(times, row, strict=True):
            if k >= warm:
                times[name].append(seconds / chunk_s)
        for ours, theirs in zip(found, expected, strict=True):
            for one, two in zip(ours, theirs, strict=True):
                apart = max(apart, float(np.abs(one.scores - two.scores).max()))
    return {
        **{name: statistics.mean(values) for name, values in times.items()},
        "apart": apart,
        "pushes_per_s": streams / chunk_s,
    }


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="files of export")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--chunk-ms", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--strict", action="store_true", help="exit 3 where real time is missed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    figures = {}
    with models(given.model) as paths:
        for path in paths:
            found = measure(path, given.streams, given.chunk_ms / 1e3, given.rounds)
            figures[path.name] = found
            ours = found["group"] - found["model"] - found["mel"]
            print(
                f"{path.name}: {given.streams} streams, {given.chunk_ms:g} ms chunks, one core: "
                f"{1 / found['group']:.2f} times real time ({found['group'] * 100:.0f} % of it: "
                f"model {found['model'] * 100:.0f}, log-mel {found['mel'] * 100:.0f}, rest "
                f"{ours * 100:.0f}: {ours / found['pushes_per_s'] * 1e6:.0f} us per chunk); "
                f"one by one {found['alone'] / found['group']:.2f} times the time; "
                f"scores apart {found['apart']:.1e}"
            )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    bars = []
    for name, found in figures.items():
        bars.append(
            Bar(f"{name}: {given.streams} streams", 1 / found["group"], 1.0, " x real time")
        )
        bars.append(Bar(f"{name}: scores apart", found["apart"], 1e-6, at_most=True))
    return judge(bars, strict=given.strict)


if __name__ == "__main__":
    sys.exit(main())
