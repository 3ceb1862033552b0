"""Random chunkings against the offline answers by definition; see benchmarks/stream_equality.py."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")


@pytest.fixture(scope="module", params=["fp32", "int8"])
def model(request: pytest.FixtureRequest, tiny: Any, build_quantised: Any) -> bytes:
    data: bytes = tiny.data if request.param == "fp32" else build_quantised()
    return data


def test_synthetic_clips(stream_equality: ModuleType, model: bytes) -> None:
    clips = stream_equality.synthetic_clips(20)
    for mode, tally in stream_equality.compare(model, clips, 90, seed=0).items():
        assert tally.wrong == [], mode
        assert max(tally.scores, tally.classify) <= stream_equality.BAR, mode
        assert tally.chunkings == 30
        assert tally.resampled > 5
        assert tally.results > 50


@pytest.mark.data
def test_real_clips(stream_equality: ModuleType, model: bytes) -> None:
    folder = os.environ.get("FRAMI_EDGE_DATA")
    if not folder:
        pytest.skip("FRAMI_EDGE_DATA is not set: real clips are needed")
    clips = stream_equality.real_clips(Path(folder), 60, seed=0)
    assert len(clips) == 60, f"no .wav files under {folder}"
    for mode, tally in stream_equality.compare(model, clips, 60, seed=1).items():
        assert tally.wrong == [], mode
        assert max(tally.scores, tally.classify) <= stream_equality.BAR, mode


def test_the_comparison_notices_another_answer(
    stream_equality: ModuleType, tiny: Any, build_model: Any
) -> None:
    """A model with another head, and a stream whose window is one hop longer, must both show."""
    clip = stream_equality.synthetic_clips(1)[0]
    classifier = stream_equality.Classifier(tiny.data)
    stranger = stream_equality.Offline(build_model(seed=1).data)
    one = stream_equality.check(classifier, stranger, clip, None, "whole clip", seed=0)
    assert one.scores > 1e-2

    class Longer:
        """A classifier that takes windows for longer than they are."""

        def stream(self, rate: int | None, *, window_s: float, hop_s: float) -> Any:
            return classifier.stream(rate, window_s=window_s + 1.5 * hop_s, hop_s=hop_s)

    offline = stream_equality.Offline(tiny.data)
    two = stream_equality.check(Longer(), offline, clip, None, "window", seed=3)
    assert two.scores > stream_equality.BAR
