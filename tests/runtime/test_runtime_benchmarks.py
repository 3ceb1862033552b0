"""The runtime's benchmarks compare equal answers and judge their bars on the right side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import bars
import bench_logmel
import bench_stream
import numpy as np
import pytest


def test_a_bar_passes_on_its_own_side_only(capsys: pytest.CaptureFixture[str]) -> None:
    least = bars.Bar("ratio", 3.0, 3.0, "x")
    most = bars.Bar("error", 2e-6, 1e-6, at_most=True)
    assert least.passed
    assert not most.passed
    assert not bars.Bar("unmeasured", math.nan, 1.0, at_most=True).passed
    assert bars.judge([least], strict=True) == 0
    assert bars.judge([least, most], strict=False) == 0
    assert bars.judge([least, most], strict=True) == 3
    assert "MISS  error: 2e-06 (bar <= 1e-06)" in capsys.readouterr().out


def test_every_peer_of_the_log_mel_has_its_bar() -> None:
    medians = {"ours": {"10 ms": 10.0, "100 ms": 20.0, "60 s": 9e3}}
    medians["torchaudio"] = {"10 ms": 50.0, "100 ms": 61.0, "60 s": 1e4}
    judged = {bar.figure: bar.passed for bar in bench_logmel.bars_of(medians)}
    assert judged == {"torchaudio at 100 ms": True, "torchaudio at 60 s": False}


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
