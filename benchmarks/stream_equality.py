"""Does a stream give the offline answer? Random chunkings of clips, in every pooling mode.

The offline answer is computed here by its definition, not by the code of the stream: the log-mel of
the whole clip, all trunk frames in one call of ONNX Runtime, then for each result the weighted mean
and standard deviation of exactly the frames that count, in float64 over the whole clip. Only the
resampler is shared: it is given the whole clip at once. Without window and forgetting,
`Classifier.classify` must give the very same bits.

Exit code 3 if a score differs by more than 1e-6, or a time stamp or the number of results is wrong.

Run: python benchmarks/stream_equality.py --model A.onnx --model B.onnx [--data DIR] [--count 1000]
(DIR, else $FRAMI_EDGE_DATA, is searched for .wav files; without both, synthetic clips.)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.modelfile import ModelInfo, read_head, read_model_info
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.stream import Result

BAR = 1e-6
RATES = (None, None, None, None, 8000, 16_000, 22_050, 44_100, 48_000)
"""Sampling rates in Hz that are drawn evenly; None: the model's."""
LONGEST_S = 4.0
Array = Any


@dataclass
class Tally:
    """Worst cases of one model in one mode."""

    chunkings: int = 0
    resampled: int = 0
    results: int = 0
    scores: float = 0.0
    logits: float = 0.0
    classify: float = 0.0
    """Difference of the last logits from `Classifier.classify`, where that is the same answer."""
    wrong: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the bar is met."""
        return max(self.scores, self.classify) <= BAR and not self.wrong


class Offline:
    """One model's answers by definition.

    Args:
        data: The model file.
    """

    def __init__(self, data: bytes) -> None:
        """Open trunk and head."""
        self._trunk = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.info: ModelInfo = read_model_info(self._trunk)
        head = read_head(self._trunk)
        self._head = onnxruntime.InferenceSession(head, providers=["CPUExecutionProvider"])

    def frames(self, x: Array) -> Array:
        """(C, n) float64 trunk frames of samples (N,) at the model's rate, a whole clip."""
        info = self.info
        around = (info.context.left, info.context.right)
        mel_TM = np.pad(log_mel(x, info.mel), (around, (0, 0)), constant_values=info.context.value)
        mel_BMT = np.ascontiguousarray(mel_TM.T[None, None])
        return self._trunk.run(None, {"mel": mel_BMT})[0][0].astype(np.float64)

    def logits(self, frames_Cn: Array, weights_n: Array) -> Array:
        """(K,) of the weighted statistics of the frames."""
        mean_C = np.average(frames_Cn, axis=1, weights=weights_n)
        var_C = np.average((frames_Cn - mean_C[:, None]) ** 2, axis=1, weights=weights_n)
        pooled = np.concatenate([mean_C, np.sqrt(var_C + self.info.pooling.eps)])
        return self._head.run(None, {"pooled": pooled[None].astype(np.float32)})[0][0]

    def end_s(self, n: int) -> float:
        """Where the audio of the first n frames ends."""
        mel = self.info.mel
        last = (n - 1) * self.info.stride + self.info.context.right
        return (last * mel.hop_length + mel.n_fft - mel.center * (mel.n_fft // 2)) / mel.sample_rate

    def weights(self, n: int, hop: int, options: dict[str, float]) -> Array:
        """(n,) of the first n frames for a result after them."""
        weights_n: Array = np.ones(n)
        frame_s = self.info.frame_s
        if "window_s" in options:
            length = hop * max(1, math.floor(options["window_s"] / (hop * frame_s) + 0.5))
            weights_n[: max(0, hop * -(-n // hop) - length)] = 0.0
        if "forget_s" in options:
            weights_n = 0.5 ** (np.arange(n)[::-1] * frame_s / options["forget_s"])
        return weights_n


def softmax(logits_K: Array) -> Array:
    """Scores of logits."""
    exponents = np.exp(logits_K.astype(np.float64) - logits_K.max())
    return (exponents / exponents.sum()).astype(np.float32)


def draw_options(rng: np.random.Generator, mode: str) -> dict[str, float]:
    """Options of `Classifier.stream` for a mode."""
    if mode == "whole clip":
        return {} if rng.random() < 0.5 else {"hop_s": float(rng.uniform(0.02, 1.0))}
    span = float(rng.uniform(0.1, 3.0))
    key = "window_s" if mode == "window" else "forget_s"
    return {key: span, "hop_s": span * float(10 ** rng.uniform(-1.5, 0))}


def draw_chunks(rng: np.random.Generator, length: int) -> list[int]:
    """Sizes that add up to the length: from single samples to the whole clip, with empty ones."""
    largest = 10 ** rng.uniform(2, math.log10(max(200, length)))
    sizes: list[int] = []
    while (left := length - sum(sizes)) > 0:
        size = int(10 ** rng.uniform(0, math.log10(largest))) if rng.random() < 0.97 else 0
        sizes.append(min(left, size) if len(sizes) < 400 else left)
    return sizes


def check(
    classifier: Classifier, offline: Offline, x: Array, rate: int | None, mode: str, seed: int
) -> Tally:
    """One clip in one random chunking against its offline answers."""
    rng = np.random.default_rng(seed)
    options, info, tally = draw_options(rng, mode), offline.info, Tally(chunkings=1)
    stream = classifier.stream(rate, **options)
    found: list[Result] = []
    start = 0
    for size in draw_chunks(rng, len(x)):
        found += stream.push(x[start : start + size])
        start += size
    last = stream.flush()
    assert last is not None
    mono, rate = x, rate or info.mel.sample_rate
    if rate != info.mel.sample_rate:
        resampler = Resampler(rate, info.mel.sample_rate)
        mono = np.concatenate([resampler.push(x), resampler.flush()])
        tally.resampled = 1
    frames_Cn = offline.frames(mono)
    hop = max(1, math.floor(options.get("hop_s", 0.0) / info.frame_s + 0.5))
    due = [
        n for n in range(hop, frames_Cn.shape[1] + 1, hop)
        if "hop_s" in options and round(offline.end_s(n) * info.mel.sample_rate) <= len(mono)
    ]  # fmt: skip
    # soxr holds back a little of the end, so that flush may replace the latest results.
    spare = 0 if not tally.resampled else math.ceil(0.25 / (hop * info.frame_s))
    if not len(due) - spare <= len(found) <= len(due):
        tally.wrong.append(f"{len(found)} results, not {len(due)} ({options}, {len(x)} samples)")
    for result, n in zip([*found, last], [*due[: len(found)], frames_Cn.shape[1]], strict=True):
        logits_K = offline.logits(frames_Cn[:, :n], offline.weights(n, hop, options))
        tally.results += 1
        tally.logits = max(tally.logits, float(np.abs(result.logits - logits_K).max()))
        tally.scores = max(tally.scores, float(np.abs(result.scores - softmax(logits_K)).max()))
        end_s = len(x) / rate if result is last else offline.end_s(n)
        if abs(result.t1 - end_s) > 1e-9:
            tally.wrong.append(f"t1 {result.t1}, not {end_s} ({options})")
    if not options:
        whole = classifier.classify(x, rate)
        tally.classify = float(np.abs(whole.logits - last.logits).max())
    return tally


def synthetic_clips(count: int, seed: int = 0) -> list[Array]:
    """Noise of wandering loudness, at any rate."""
    rng = np.random.default_rng(seed)
    loudness = [np.exp(np.cumsum(rng.normal(0, 0.01, 40_000))) for _ in range(count)]
    return [np.clip(rng.standard_normal(40_000) * 0.05 * x, -1, 1).astype(np.float32)
            for x in loudness]  # fmt: skip


def real_clips(folder: Path, count: int, seed: int) -> list[Array]:
    """(N,) int16 or float32 samples of ``count`` .wav files, evenly from each data set found."""
    import soundfile

    rng = np.random.default_rng(seed)
    groups: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*.wav")):
        groups.setdefault(path.parent, []).append(path)
    clips = []
    for i in range(count if groups else 0):
        paths = list(groups.values())[i % len(groups)]
        kind = "int16" if rng.random() < 0.5 else "float32"
        clips.append(soundfile.read(paths[rng.integers(len(paths))], dtype=kind)[0])
    return [clip if clip.ndim == 1 else clip[:, 0] for clip in clips if len(clip)]


def compare(
    model: str | Path | bytes, clips: list[Array], count: int, seed: int
) -> dict[str, Tally]:
    """The worst case of ``count`` random chunkings for each pooling mode, in turns."""
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    classifier, offline = Classifier(data), Offline(data)
    worst = {mode: Tally() for mode in ("whole clip", "window", "forget")}
    rng = np.random.default_rng(seed)
    for i in range(count):
        mode = list(worst)[i % len(worst)]
        rate = RATES[rng.integers(len(RATES))]
        x = clips[i % len(clips)]
        longest = int(LONGEST_S * (rate or offline.info.mel.sample_rate))
        length = int(min(len(x), longest) * rng.random() ** 0.5) + 1
        start = rng.integers(len(x) - length + 1) if length < len(x) else 0
        one = check(classifier, offline, x[start : start + length], rate, mode, seed=i)
        total = worst[mode]
        for name in ("chunkings", "resampled", "results", "wrong"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        for name in ("scores", "logits", "classify"):
            setattr(total, name, max(getattr(total, name), getattr(one, name)))
    return worst


def main() -> int:
    """Compare, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="an .onnx file; repeatable")
    parser.add_argument("--data", type=Path, default=os.environ.get("FRAMI_EDGE_DATA"))
    parser.add_argument("--count", type=int, default=1000, help="chunkings a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    clips = real_clips(Path(given.data), given.count, given.seed) if given.data else []
    print(f"{len(clips)} real clips" if clips else "No real clips: synthetic ones.")
    clips = clips or synthetic_clips(50, given.seed)
    figures, passed = [], True
    for model in given.model:
        started = time.perf_counter()
        for mode, tally in compare(model, clips, given.count, given.seed).items():
            figures.append({"model": Path(model).name, "mode": mode, **vars(tally)})
            passed &= tally.passed
            print(
                f"{Path(model).name}  {mode:10}  {tally.chunkings} chunkings "
                f"({tally.resampled} resampled), {tally.results} results: "
                f"scores {tally.scores:.1e}, logits {tally.logits:.1e}, "
                f"classify {tally.classify:.1e}"
            )
            for text in tally.wrong[:5]:
                print(f"  WRONG: {text}")
        print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"bar: scores and classify within {BAR:g}: {'met' if passed else 'MISSED'}")
    return 0 if passed else 3


if __name__ == "__main__":
    sys.exit(main())
