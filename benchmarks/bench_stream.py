"""The whole stream on one core: mel, trunk, 1 s sliding window and head, 100 ms at a time.

Beside it, in turns, the same model file on the last 1 s at every hop, as classifiers without a
stream are run: by `Classifier.classify`, and by the leanest code for mel and model (the ratio that
has a bar). p50 and p99 are wall time per hop, the rest is CPU time of this process.

Without --model a student of 135 k parameters with random weights is exported for the occasion
(needs torch): its speed does not depend on its training.

Run: python benchmarks/bench_stream.py [--model FILE.onnx ...] [--live] [--strict]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before NumPy is imported: its BLAS reads them once.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
from bars import Bar, judge

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.logmel import LogMelStream
from frami_edge_runtime.melspec import MelSpec

HOP_S = 0.1
WINDOW_S = 1.0
AGAIN = "last 1 s, mel and model"
TURN = 50  # hops of one method before the next has its turn
MOST_SHARE = 0.3  # per cent of one core
MOST_P99_MS = 2.0
LEAST_RATIO = 2.0
Audio = Any
Hop = Callable[[Audio], Any]


@contextmanager
def models(paths: list[Path]) -> Iterator[list[Path]]:
    """The files to measure; a random student's where none is given."""
    if paths:
        yield paths
        return
    with tempfile.TemporaryDirectory() as folder:
        yield random_student(Path(folder))


def random_student(folder: Path) -> list[Path]:
    try:
        import torch

        from frami_edge.config import StudentArch
        from frami_edge.models import StudentNet
        from frami_edge_export.exporter import export_student
        from frami_edge_export.graph import StudentFacts
        from frami_edge_export.options import ExportOptions
    except (ImportError, OSError) as error:
        raise SystemExit(f"Without --model this needs frami-edge and torch: {error}") from None
    torch.manual_seed(0)
    mel = MelSpec(mean=-6.0, std=3.0)
    mels = np.random.default_rng(0).normal(0, 1, (96, 1, mel.n_mels, 101)).astype(np.float32)
    arch = StudentArch(channels=(32, 64, 128, 192, 256), out_channels=160)
    student = StudentNet(arch, mel.n_mels, 10)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass, and its statistics fit the weights
    with torch.no_grad():
        student(torch.from_numpy(mels))
    parameters = sum(p.numel() for p in student.parameters())
    print(f"A student with {parameters:,} random parameters is exported ...", file=sys.stderr)
    # Its gates are about answers, and these mean nothing.
    export_student(
        student.eval(),
        StudentFacts(mel=mel, labels=tuple(f"class {k}" for k in range(10))),
        folder,
        name="random",
        int8=True,
        calibration=mels,
        source="noise",
        options=ExportOptions(bench_budget_s=0.05, bench_rounds=3),
    )
    return [folder / "random.fp32.onnx", folder / "random.int8.cpu.onnx"]


class Timed:
    """One way of answering every hop, and what it cost."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def __call__(self, chunk: Audio) -> None:
        """Answer one hop."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.hop(chunk)
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def row(self) -> dict[str, float]:
        """The figures of all hops."""
        wall_ms = np.asarray(self.wall_s) * 1e3
        return {
            "p50_ms": float(np.median(wall_ms)),
            "p99_ms": float(np.quantile(wall_ms, 0.99)),
            "cpu_p99_ms": float(np.quantile(self.cpu_s, 0.99)) * 1e3,
            "core_percent": 100 * sum(self.cpu_s) / (len(wall_ms) * HOP_S),
        }


def classified(classifier: Classifier) -> Hop:
    """`Classifier.classify` of the last 1 s."""
    held = np.zeros(round(WINDOW_S * classifier.info.mel.sample_rate), np.float32)
    return lambda chunk: classifier.classify(slide(held, chunk))


def recomputed(classifier: Classifier) -> Hop:
    """The leanest way to do the last 1 s again: one mel, one run, NumPy's mean and variance."""
    info = classifier.info
    mel, answer = LogMelStream(info.mel), model_of(classifier)
    held = np.zeros(round(WINDOW_S * info.mel.sample_rate), np.float32)

    def hop(chunk: Audio) -> Any:
        mel.reset()
        return answer(np.ascontiguousarray(mel.push(slide(held, chunk)).T)[None, None])

    return hop


def slide(held: Audio, new: Audio) -> Audio:
    """The held stretch, moved on by what is new."""
    n = new.shape[-1]
    if n:
        held[..., :-n] = held[..., n:]
        held[..., -n:] = new
    return held


def model_of(classifier: Classifier) -> Callable[[Audio], Any]:
    """Mel frames to logits, without a stream."""
    model, eps = classifier._model, classifier.info.pooling.eps

    def answer(mel_BMT: Audio) -> Any:
        h_CT = model.frames(mel_BMT)[0].astype(np.float64)
        pooled_D = np.concatenate([h_CT.mean(axis=1), np.sqrt(h_CT.var(axis=1) + eps)])
        return model.logits(pooled_D.astype(np.float32)[None])

    return answer


def measure(path: Path, seconds: float, live: bool) -> dict[str, Any]:
    classifier = Classifier(path, backend="cpu")
    rate = classifier.info.mel.sample_rate
    stream = classifier.stream(window_s=WINDOW_S, hop_s=HOP_S)
    methods = {
        "stream": Timed(stream.push),
        "classify(last 1 s)": Timed(classified(classifier)),
        AGAIN: Timed(recomputed(classifier)),
    }
    rng = np.random.default_rng(0)
    step = round(HOP_S * rate)
    clip = (rng.standard_normal(step * TURN) * 0.1).astype(np.float32)
    chunks = np.split(clip, TURN)
    for method in methods.values():  # warm
        for chunk in chunks[:20]:
            method.hop(chunk)
    for _ in range(max(1, round(seconds / HOP_S / TURN))):
        for method in methods.values():
            for chunk in chunks:
                method(chunk)
                if live:
                    time.sleep(max(0.0, HOP_S - method.wall_s[-1]))
    rows = {name: method.row() for name, method in methods.items()}
    found: dict[str, Any] = {"results_every_s": stream.hop_s, "rows": rows}
    ours = rows["stream"]["core_percent"]
    found["ratio"] = {name: row["core_percent"] / ours for name, row in rows.items()}
    return found


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {HOP_S * 1e3:.0f} ms hops, a result every {found['results_every_s']:.3g} s")
    print(f"{'':26}{'p50 ms':>9}{'p99 ms':>9}{'cpu p99':>9}{'% of core':>11}{'ratio':>8}")
    for method, row in found["rows"].items():
        cells = f"{row['p50_ms']:9.3f}{row['p99_ms']:9.3f}{row['cpu_p99_ms']:9.3f}"
        cells += f"{row['core_percent']:11.3f}"
        print(f"{method:26}{cells}{found['ratio'][method]:7.2f}x")


def bars_of(name: str, found: dict[str, Any]) -> list[Bar]:
    row = found["rows"]["stream"]
    return [
        Bar(f"{name}: share of the core", row["core_percent"], MOST_SHARE, " %", at_most=True),
        Bar(f"{name}: p99 of a hop", row["p99_ms"], MOST_P99_MS, " ms", at_most=True),
        Bar(f"{name}: {AGAIN}", found["ratio"][AGAIN], LEAST_RATIO, "x"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="files of export")
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio for each method")
    parser.add_argument("--live", action="store_true", help="wait for each chunk as on a device")
    parser.add_argument("--strict", action="store_true", help="exit with 3 where a bar is missed")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    options = parser.parse_args()
    print(f"NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}")
    all_found, bars = {}, []
    with models(options.model) as paths:
        for path in paths:
            found = measure(path, options.seconds, options.live)
            show(path.name, found)
            all_found[path.name] = found
            bars += bars_of(path.name, found)
    print()
    if options.json:
        report = {"models": all_found, "bars": [bar.to_dict() for bar in bars]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return judge(bars, strict=options.strict)


if __name__ == "__main__":
    raise SystemExit(main())
