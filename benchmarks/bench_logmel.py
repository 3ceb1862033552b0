"""Our streaming log-mel against torchaudio, librosa and kaldi-native-fbank, in one run.

Same job for all: 16 kHz, 25 ms window, 10 ms hop, n_fft 512, 64 bands, ln. Peers without a stream
get the smallest carry buffer that gives every frame once. Peers that cannot be imported are named
and left out. One thread; methods take turns, so that a busy machine slows all of them alike; the
ratios are of medians.

Run: python benchmarks/bench_logmel.py [--rounds 7] [--strict] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before NumPy is imported: its BLAS reads them once.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
from bars import Bar, judge

from frami_edge_runtime.logmel import LogMelStream, log_mel
from frami_edge_runtime.melspec import MelSpec

RATE, N_FFT, WIN, HOP, BANDS, EPS = 16_000, 512, 400, 160, 64, 1e-6
SPEC = MelSpec(
    sample_rate=RATE, n_fft=N_FFT, win_length=WIN, hop_length=HOP, n_mels=BANDS, log_eps=EPS
)
CHUNKS_MS = (10, 100, 1000)
CLIP_S = 60
BARS = (
    ("torchaudio", "100 ms", 3.0),
    ("kaldi-native-fbank", "100 ms", 3.0),
    ("kaldi-native-fbank", "10 ms", 1.0),
    ("torchaudio", f"{CLIP_S} s", 1.2),
)
"""Peer, chunk, and how many times our time it must take."""
Audio = Any
Push = Callable[[Audio], Any]


class Carry:
    """The unread tail in front of each chunk: what a peer without a stream needs."""

    def __init__(self, compute: Push) -> None:
        """Start after silence."""
        self._compute = compute
        self._tail = np.zeros(N_FFT - HOP, np.float32)

    def __call__(self, chunk: Audio) -> Any:
        """One chunk, with the tail of the last one in front."""
        x = np.concatenate([self._tail, chunk])
        self._tail = x[len(x) - (N_FFT - HOP) :]
        return self._compute(x)


def ours() -> tuple[Push, Push]:
    return LogMelStream(SPEC).push, lambda x: log_mel(x, SPEC)


def peer_torchaudio() -> tuple[Push, Push]:
    import torch
    import torchaudio

    torch.set_num_threads(1)
    transform = torchaudio.transforms.MelSpectrogram(
        RATE, N_FFT, WIN, HOP, n_mels=BANDS, center=False
    )

    def compute(x: Audio) -> Any:
        with torch.inference_mode():
            return torch.log(transform(torch.from_numpy(x)) + EPS).numpy()

    return Carry(compute), compute


def peer_librosa() -> tuple[Push, Push]:
    librosa: Any = importlib.import_module("librosa")

    def compute(x: Audio) -> Any:
        mel = librosa.feature.melspectrogram(
            y=x, sr=RATE, n_fft=N_FFT, win_length=WIN, hop_length=HOP, n_mels=BANDS, center=False
        )
        return np.log(mel + EPS)

    compute(np.zeros(RATE, np.float32))
    return Carry(compute), compute


def peer_kaldi() -> tuple[Push, Push]:
    knf: Any = importlib.import_module("kaldi_native_fbank")

    options = knf.FbankOptions()
    options.frame_opts.samp_freq = RATE
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hann"
    options.mel_opts.num_bins = BANDS

    def read(fbank: Any, first: int) -> list[Any]:
        return [fbank.get_frame(i) for i in range(first, fbank.num_frames_ready)]

    stream = knf.OnlineFbank(options)

    def push(x: Audio) -> Any:
        first = stream.num_frames_ready
        stream.accept_waveform(RATE, x)
        frames = read(stream, first)
        stream.pop(len(frames))
        return frames

    def whole(x: Audio) -> Any:
        fbank = knf.OnlineFbank(options)
        fbank.accept_waveform(RATE, x)
        fbank.input_finished()
        return np.stack(read(fbank, 0))

    return push, whole


PEERS = {"torchaudio": peer_torchaudio, "librosa": peer_librosa, "kaldi-native-fbank": peer_kaldi}


def timed(call: Push, x: Audio) -> float:
    started = time.perf_counter()
    call(x)
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, dict[str, float]]:
    methods = {"ours": ours()}
    for name, make in PEERS.items():
        try:
            methods[name] = make()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: left out, {type(error).__name__}: {error}", file=sys.stderr)
    rng = np.random.default_rng(0)
    clip = (rng.standard_normal(RATE * CLIP_S) * 0.1).astype(np.float32)
    medians: dict[str, dict[str, float]] = {name: {} for name in methods}
    for ms in CHUNKS_MS:
        n = RATE * ms // 1000
        chunks = [clip[i : i + n] for i in range(0, len(clip) - n + 1, n)][: max(20, 30_000 // ms)]
        found: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(rounds):
            for name, (push, _) in methods.items():
                push(chunks[0])
                found[name] += [timed(push, chunk) for chunk in chunks[: 3000 // ms + 20]]
        for name, seconds in found.items():
            medians[name][f"{ms} ms"] = float(np.median(seconds)) * 1e6
    whole: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, (_, call) in methods.items():
            whole[name].append(timed(call, clip))
    for name, seconds in whole.items():
        medians[name][f"{CLIP_S} s"] = float(np.median(seconds)) * 1e6
    return medians


def show(medians: dict[str, dict[str, float]]) -> None:
    columns = list(medians["ours"])
    print(f"NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print("median per chunk in us (and how many times ours)")
    print("".join(["method".ljust(20), *(c.rjust(22) for c in columns)]))
    for name, row in medians.items():
        cells = [f"{row[c]:,.1f} ({row[c] / medians['ours'][c]:.2f}x)".rjust(22) for c in columns]
        print("".join([name.ljust(20), *cells]))
    real_time = CLIP_S / (medians["ours"][f"{CLIP_S} s"] * 1e-6)
    print(f"ours, offline: {real_time:,.0f} times real time on one core")


def bars_of(medians: dict[str, dict[str, float]]) -> list[Bar]:
    return [
        Bar(f"{peer} at {chunk}", medians[peer][chunk] / medians["ours"][chunk], limit, "x")
        for peer, chunk, limit in BARS
        if peer in medians
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each method")
    parser.add_argument("--strict", action="store_true", help="exit with 3 where a bar is missed")
    parser.add_argument("--json", type=Path, help="also write medians (us) and bars here")
    options = parser.parse_args()
    medians = measure(max(1, options.rounds))
    show(medians)
    bars = bars_of(medians)
    if options.json:
        found = {"median_us": medians, "bars": [bar.to_dict() for bar in bars]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return judge(bars, strict=options.strict)


if __name__ == "__main__":
    raise SystemExit(main())
