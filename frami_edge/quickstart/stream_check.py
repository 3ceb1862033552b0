"""Push a clip through the exported model in pieces, and compare with the whole clip at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from frami_edge_runtime import Classifier


@dataclass
class StreamCheck:
    """How the stream did.

    Attributes:
        label: What it heard.
        max_abs_difference: Largest difference between the logits of stream and whole clip.
        real_time_factor: Seconds computed for each second of audio.
        seconds: Of audio.
    """

    label: str
    max_abs_difference: float
    real_time_factor: float
    seconds: float


def check_stream(model: Path, samples: npt.NDArray[np.float32], sample_rate: int) -> StreamCheck:
    """Stream ``samples`` in chunks of 100 ms, then in ragged ones from one sample to 400 ms."""
    classifier = Classifier(model)
    whole = classifier.classify(samples, sample_rate)
    worst = 0.0
    rng = np.random.default_rng(0)
    hop = sample_rate // 10
    regular = [hop] * (len(samples) // hop + 1)
    ragged = [1] * 50 + rng.integers(1, 4 * hop, size=len(samples)).tolist()
    spent = np.inf
    for sizes in (regular, ragged):
        stream = classifier.stream(sample_rate)
        begun, start = time.perf_counter(), 0
        for size in sizes:
            if start >= len(samples):
                break
            stream.push(samples[start : start + size])
            start += size
        last = stream.flush()
        if sizes is regular:
            spent = time.perf_counter() - begun
        assert last is not None
        worst = max(worst, float(np.abs(last.logits - whole.logits).max()))
    seconds = len(samples) / sample_rate
    return StreamCheck(whole.label, worst, spent / seconds, seconds)
