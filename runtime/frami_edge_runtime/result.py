"""What a stream answers, and what it counts. K classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Result:
    """What the model says about one stretch of audio."""

    label: str
    """Of the best class."""
    index: int
    """Of the best class."""
    score: float
    """Of the best class, in 0..1."""
    scores: npt.NDArray[np.float32]
    """(K,) softmax of the logits."""
    logits: npt.NDArray[np.float32]
    """(K,) as the model gives them."""
    labels: tuple[str, ...]
    """(K,) class names."""
    t0: float
    """Seconds from the start of the clip to the first sample that counts."""
    t1: float
    """Seconds from the start of the clip to the end of the last sample that counts."""
    gap: int = 0
    """Samples lost since the result before, at the rate of the stream; see `Stream.gap`."""


@dataclass(frozen=True)
class StreamStats:
    """Counters since the stream was made; `Stream.reset` does not clear them."""

    samples_in: int = 0
    """Heard, at the rate of the stream."""
    dropped: int = 0
    """Samples that `Stream.gap` was told were lost."""
    gaps: int = 0
    """Calls of `Stream.gap`."""
    mel_frames: int = 0
    frames: int = 0
    """Trunk frames."""
    results: int = 0
    steps: int = 0
    """Calls of push, flush and gap that had something to do."""
    audio_s: float = 0.0
    """Seconds of audio heard."""
    lag_s: float = 0.0
    """Seconds of audio heard that no trunk frame has covered yet."""
    busy_s: float = 0.0
    """Seconds spent in push, flush and gap."""
    p50_step_ms: float = 0.0
    """Median of the latest steps (1,024 at most)."""
    p99_step_ms: float = 0.0
    """99th percentile of the same."""
    max_step_ms: float = 0.0
    """Of all steps."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio; below 1 keeps up. 0 before any audio."""
        return self.busy_s / self.audio_s if self.audio_s else 0.0


def result_from(
    logits_K: npt.NDArray[np.float32],
    labels: tuple[str, ...],
    t0: float,
    t1: float,
    gap: int = 0,
) -> Result:
    """The `Result` of finite logits (K,): softmax in float64, rounded once to float32."""
    exponents = np.exp(logits_K.astype(np.float64) - float(logits_K.max()))
    scores_K = (exponents / exponents.sum()).astype(np.float32)
    index = int(logits_K.argmax())
    return Result(
        label=labels[index],
        index=index,
        score=float(scores_K[index]),
        scores=scores_K,
        logits=logits_K,
        labels=labels,
        t0=t0,
        t1=t1,
        gap=gap,
    )
