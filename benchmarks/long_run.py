"""A day of audio through one process: is memory flat, are counts right, do statistics drift?

Seeded noise and tones of changing level are made on the fly, in chunks of 100 to 1,000 ms, int16
and float32 in turns, and each chunk goes into three streams of one model: whole clip, sliding
window, exponential forgetting. Their pooled statistics are held against NumPy's longdouble over the
same trunk frames (64 bits of mantissa on x86), of which only the window's are kept.

Run: python benchmarks/long_run.py [--model FILE.onnx] [--hours 24] [--strict] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

# Before NumPy is imported: its BLAS reads them once.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
from bars import Bar, judge  # noqa: E402

from frami_edge_runtime import Classifier  # noqa: E402

WINDOW_S, FORGET_S = 2.0, 10.0
CHUNK_MS = (100, 1000)
CHECKS = 96
WARM_SHARE = 0.02  # of the run, before memory is first read: caches and pages fill
MOST_ERROR = 1e-6  # absolute, relative above 1
MOST_GROWTH_MB = 2.0
Array = Any


class WholeReference:
    """Sums over all frames, of differences from the first: nothing cancels."""

    def __init__(self) -> None:
        self._first: Array = None
        self._sums: Array = None
        self._n = 0

    def add(self, x_Cn: Array) -> None:
        """Take trunk frames in extended precision."""
        if self._first is None:
            self._first = x_Cn[:, :1].copy()
            self._sums = np.zeros((2, len(x_Cn)), np.longdouble)
        centred_Cn = x_Cn - self._first
        self._sums[0] += centred_Cn.sum(axis=1)
        self._sums[1] += (centred_Cn * centred_Cn).sum(axis=1)
        self._n += x_Cn.shape[1]

    def pooled(self, eps: float) -> Array:
        """(2C,) mean and standard deviation."""
        mean, square = self._sums / self._n
        return np.concatenate([self._first[:, 0] + mean, np.sqrt(square - mean * mean + eps)])


class WindowReference:
    """The frames of the window themselves, in two passes."""

    def __init__(self, frames: int) -> None:
        self._kept: deque[Array] = deque(maxlen=frames)

    def add(self, x_Cn: Array) -> None:
        """Take trunk frames in extended precision."""
        self._kept.extend(x_Cn.T)

    def pooled(self, eps: float) -> Array:
        """(2C,) mean and standard deviation."""
        x_nC = np.stack(self._kept)
        return np.concatenate([x_nC.mean(axis=0), np.sqrt(x_nC.var(axis=0) + eps)])


class ForgetReference:
    """One frame after the other, all weights in extended precision."""

    def __init__(self, half_life: float) -> None:
        self._kept = np.exp2(-1 / np.longdouble(half_life))
        self._weight: Array = np.longdouble(0)
        self._sums: Array = np.longdouble(0)

    def add(self, x_Cn: Array) -> None:
        """Take trunk frames in extended precision."""
        for x_C in x_Cn.T:
            self._sums = self._sums * self._kept + np.stack([x_C, x_C * x_C])
            self._weight = self._weight * self._kept + 1

    def pooled(self, eps: float) -> Array:
        """(2C,) mean and standard deviation."""
        mean, square = self._sums / self._weight
        return np.concatenate([mean, np.sqrt(square - mean * mean + eps)])


class Watched:
    """One stream, its reference, and the worst that was seen."""

    def __init__(self, stream: Any, reference: Any, eps: float) -> None:
        self.stream, self.reference, self._eps = stream, reference, eps
        self.results = 0
        self.last_t1 = 0.0
        self.worst = 0.0
        self._pool = stream._lane.pool
        push = self._pool.push

        def watched(frames_Cn: Array, *more: Any) -> None:
            reference.add(frames_Cn.astype(np.longdouble))
            push(frames_Cn, *more)

        self._pool.push = watched

    def push(self, chunk: Array) -> None:
        """Feed the stream; count what it answers."""
        results = self.stream.push(chunk)
        self.results += len(results)
        for result in results:
            if not (np.isfinite(result.logits).all() and result.t1 > self.last_t1):
                raise SystemExit(f"A result at {result.t1} s is wrong: {result}")
            self.last_t1 = result.t1

    def check(self) -> None:
        """Compare the statistics of now."""
        if self._pool.count:
            exact = self.reference.pooled(self._eps)
            error = np.abs(self._pool.pooled() - exact) / np.maximum(1, np.abs(exact))
            self.worst = max(self.worst, float(error.max()))


def audio(rng: np.random.Generator, first: int, n: int, rate: int) -> Array:
    """(n,) float32 noise and a gliding tone, with levels that wander over minutes."""
    t = (first + np.arange(n)) / rate
    level = 0.02 + 0.1 * (1 + np.sin(t[0] / 37))
    tone = 0.2 * (1 + np.sin(t[0] / 11)) * np.sin(2 * np.pi * (300 + 200 * np.sin(t[0] / 5)) * t)
    return (level * rng.standard_normal(n, np.float32) + tone).astype(np.float32)


def run(model: str | Path | bytes, hours: float, *, seed: int = 0) -> dict[str, Any]:
    """Feed so many hours; every figure that the bars ask for."""
    classifier = Classifier(model, backend="cpu")
    info = classifier.info
    rate, eps = info.mel.sample_rate, info.pooling.eps
    streams = {
        "whole clip": classifier.stream(hop_s=0.5),
        "window": classifier.stream(window_s=WINDOW_S),
        "forgetting": classifier.stream(forget_s=FORGET_S),
    }
    frames = round(streams["window"].window_s / info.frame_s)  # type: ignore[operator]
    references = (
        WholeReference(),
        WindowReference(frames),
        ForgetReference(FORGET_S / info.frame_s),
    )
    watched = {
        name: Watched(stream, reference, eps)
        for (name, stream), reference in zip(streams.items(), references, strict=True)
    }
    rng = np.random.default_rng(seed)
    total, done, chunks, checks = round(hours * 3600 * rate), 0, 0, 0
    memory: list[float] = []
    begun, cpu_begun = time.perf_counter(), time.process_time()
    while done < total:
        n = min(total - done, int(rng.integers(CHUNK_MS[0], CHUNK_MS[1] + 1)) * rate // 1000)
        x = audio(rng, done, n, rate)
        chunk = (x * 32767).clip(-32768, 32767).astype(np.int16) if chunks % 2 else x
        for one in watched.values():
            one.push(chunk)
        done, chunks = done + n, chunks + 1
        if done >= total * (checks + 1) / CHECKS:
            checks += 1
            for one in watched.values():
                one.check()
            if done >= total * WARM_SHARE:
                memory.append(resident_mb())
            report_progress(done / rate, time.perf_counter() - begun, memory)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
    mel_frames = info.mel.frames(total)
    available = (info.context.left + mel_frames - info.receptive_field) // info.stride + 1
    rows: dict[str, Any] = {}
    for name, one in watched.items():
        stats, hop = one.stream.stats, round(one.stream.hop_s / info.frame_s)
        rows[name] = {
            "worst_error": one.worst,
            "samples": stats.samples_in,
            "results": one.results,
            "frames": stats.frames,
            "counts_right": [stats.samples_in, stats.mel_frames, one.results, stats.results]
            == [total, mel_frames, available // hop, available // hop],
            "ends_s": one.stream.flush().t1,
        }
    return {
        "hours": total / rate / 3600,
        "chunks": chunks,
        "checks": checks,
        "streams": rows,
        "samples_expected": total,
        "reference_eps": float(np.finfo(np.longdouble).eps),
        "wall_s": wall,
        "cpu_s": cpu,
        "times_real_time": total / rate / wall,
        "first_mb": memory[0],
        "last_mb": memory[-1],
        "most_mb": max(memory),
        "growth_mb": memory[-1] - memory[0],
    }


def resident_mb() -> float:
    """Memory of this process now; where the system does not say, its highest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report_progress(audio_s: float, wall_s: float, memory: list[float]) -> None:
    if not sys.stderr.isatty():
        return
    mb = f"{memory[-1]:.1f} MB" if memory else "warming up"
    print(
        f"\r{audio_s / 3600:7.2f} h of audio in {wall_s:6.0f} s, {mb}   ", end="", file=sys.stderr
    )


def bars_of(found: dict[str, Any]) -> list[Bar]:
    rows = found["streams"]
    worst = {name: row["worst_error"] for name, row in rows.items()}
    wrong = sum(not row["counts_right"] for row in rows.values())
    return [
        *(Bar(f"{n}: pooled error", e, MOST_ERROR, at_most=True) for n, e in worst.items()),
        Bar("growth of memory", found["growth_mb"], MOST_GROWTH_MB, " MB", at_most=True),
        Bar("streams with wrong counts", wrong, 0, at_most=True),
        Bar("three streams at once", found["times_real_time"], 1.0, " x real time"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="file of export; random weights where absent")
    parser.add_argument("--hours", type=float, default=24.0, help="of audio")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strict", action="store_true", help="exit with 3 where a bar is missed")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder))
        found = run(model, options.hours, seed=options.seed)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(
        f"{found['hours']:.3g} h in {found['chunks']:,} chunks, three streams at once: "
        f"{found['wall_s']:.0f} s (CPU {found['cpu_s']:.0f} s), "
        f"{found['times_real_time']:.0f} x real time"
    )
    print(f"resident: {found['first_mb']:.1f} MB, at the end {found['last_mb']:.1f} MB")
    for name, row in found["streams"].items():
        print(
            f"{name}: {row['samples']:,} samples, {row['frames']:,} frames, {row['results']:,} "
            f"results; largest error in {found['checks']} checks {row['worst_error']:.2g}"
        )
    bars = bars_of(found)
    if options.json:
        report = {**found, "bars": [bar.to_dict() for bar in bars]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return judge(bars, strict=options.strict)


def random_model(folder: Path) -> Path:
    # In another process: what torch and the exporter take is not the runtime's memory.
    import subprocess

    code = "import sys; from pathlib import Path; from bench_stream import random_student\n"
    code += "random_student(Path(sys.argv[1]))"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=here)
    return folder / "random.fp32.onnx"


if __name__ == "__main__":
    raise SystemExit(main())
