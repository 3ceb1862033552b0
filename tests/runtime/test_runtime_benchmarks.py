"""The runtime's benchmark of streams compares equal answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_stream
import numpy as np


def test_the_stream_and_its_peers_answer_alike(tiny: Any, model_path: Path) -> None:
    found = bench_stream.measure(model_path, seconds=5, live=False)
    assert found["ratio"]["stream"] == 1
    assert all(row["core_percent"] > 0 for row in found["rows"].values())
    classifier = bench_stream.Classifier(tiny.data)
    recomputed = bench_stream.recomputed(classifier)
    chunk = (np.random.default_rng(0).standard_normal(800) * 0.1).astype(np.float32)
    logits = [recomputed(chunk) for _ in range(10)][-1]  # a second that repeats
    assert logits.shape == (1, 5)
    assert np.isfinite(logits).all()
