"""Whether a model's stream gives what the same model gives for the whole clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from frami_edge.comparing.clips import Batch
from frami_edge.comparing.sides import Side

TOLERANCE: Final = 1e-6
"""Of a logit, stream against `Classifier.classify`: one code path, so the aim is 0."""
_CLIPS = 4
_LONGEST_CHUNK_S = 0.25


@dataclass(frozen=True)
class StreamCheck:
    """Of one file."""

    file: str
    clips: int
    chunks: int
    """Pushes of random sizes."""
    stream_vs_classify: float
    """Largest |difference| of a logit."""
    stream_vs_whole_run: float
    """The same against one run of the graph over the whole clip: float32 rounds differently."""


def check_stream(side: Side, batch: Batch, seed: int) -> StreamCheck | None:
    """Push some clips of a batch in random chunks; None for a model that does not stream.

    Args:
        side: The model.
        batch: With audio; the last clips are taken, the longest of `length_batch`.
        seed: Of the chunk sizes.
    """
    classifier = side.classifier
    if classifier is None or batch.audio is None:
        return None
    rng = np.random.default_rng(seed)
    rate = side.spec.sample_rate
    few = Batch(batch.name, batch.names[-_CLIPS:], audio=batch.audio[-_CLIPS:])
    whole_NK = side.answer(few)
    chunks, against_classify, against_whole = 0, 0.0, 0.0
    for samples, row_K in zip(few.audio_for(rate), whole_NK, strict=True):
        stream = classifier.stream()
        at = 0
        while at < len(samples):
            size = int(rng.integers(1, max(2, int(_LONGEST_CHUNK_S * rate))))
            stream.push(samples[at : at + size])
            at, chunks = at + size, chunks + 1
        last = stream.flush()
        assert last is not None
        classified_K = classifier.classify(samples).logits
        against_classify = max(against_classify, _apart(last.logits, classified_K))
        against_whole = max(against_whole, _apart(last.logits, row_K))
    return StreamCheck(side.path.name, len(few), chunks, against_classify, against_whole)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())
