"""Lost audio: never spliced, the clock stays true, and each pooling mode follows its definition.

The last results are checked in `test_stream`, for any operations; here all others.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_kit import MODES, Offline, ended

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.stream import Result

RATE = 8000
PIECES = st.lists(
    st.tuples(st.integers(0, 9000), st.integers(0, 30_000)), min_size=1, max_size=5
)  # (samples pushed, samples lost after them)


@pytest.fixture(scope="module", params=["tiny", "causal"])
def classifier(request: pytest.FixtureRequest) -> Classifier:
    return Classifier(request.getfixturevalue(request.param).data)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(pushed=st.integers(1, 20_000), lost=st.integers(0, 50_000), chunk=st.integers(100, 9000))
def test_without_pooling_a_gap_makes_two_streams(
    classifier: Classifier, clip: np.ndarray, mode: str, pushed: int, lost: int, chunk: int
) -> None:
    stream, one, two = (classifier.stream(**MODES[mode]) for _ in range(3))
    found = stream.push(clip[:pushed]) + stream.gap(lost, keep_pooling=False)
    for start in range(pushed, len(clip), chunk):
        found += stream.push(clip[start : start + chunk])
    found += ended(stream)
    before = one.push(clip[:pushed]) + ended(one)
    after = two.push(clip[pushed:]) + ended(two)
    for k, (a, b) in enumerate(zip(found, before + after, strict=True)):
        shift = 0 if k < len(before) else (pushed + lost) / RATE
        assert np.array_equal(a.logits, b.logits)
        assert (a.t0, a.t1) == pytest.approx((b.t0 + shift, b.t1 + shift), abs=1e-9)
        assert a.gap == (lost if k == len(before) else 0)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=20, deadline=None)
@given(pieces=PIECES, chunk=st.integers(50, 9000))
def test_kept_pooling_covers_the_frames_of_all_segments(
    classifier: Classifier, clip: np.ndarray, mode: str, pieces: list[tuple[int, int]], chunk: int
) -> None:
    options, offline = MODES[mode], Offline(classifier)
    stream, clock, position, total_lost = classifier.stream(**options), 0, 0, 0
    results: list[Result] = []
    segments, frames, ends = [], [], []
    for pushed, lost in pieces:
        x = np.take(clip, range(position, position + pushed), mode="wrap")
        for start in range(0, pushed, chunk):
            results += stream.push(x[start : start + chunk])
        results += stream.gap(lost)
        if pushed:
            frames.append(offline.frames(x))
            segments.append((clock, frames[-1].shape[1]))
            ends.append((clock + pushed) / RATE)
        position += pushed
        clock += pushed + lost
        total_lost += lost
    results += ended(stream)
    if not frames:
        assert results == []
        return
    assert sum(r.gap for r in results) == total_lost
    slots = offline.slots(segments, RATE)
    hop = round(options.get("hop_s", 0) / classifier.info.frame_s)
    due = [int(s) + 1 for s in slots if hop and (s + 1) % hop == 0]
    for result, n in zip(results, [*due, int(slots[-1]) + 1], strict=True):
        weights = offline.weights(slots, n, options)
        expected = offline.logits(np.concatenate(frames, axis=1), weights)
        assert np.abs(result.logits - expected).max() <= 1e-4
        assert 0 <= result.t0 < result.t1 <= ends[-1]
    assert results[-1].t1 == ends[-1]


def test_time_stamps_follow_the_sample_clock(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream(window_s=0.4, hop_s=0.2)
    stream.push(clip[:8000])
    stream.gap(80_000)
    assert stream.push(clip[:1]) == []
    after = stream.push(clip[1:8000])
    assert [r.gap for r in after] == [80_000] + [0] * (len(after) - 1)
    assert after[0].t0 == 11.0
    assert all(11.0 < r.t1 <= 12.0 for r in after)
    # Results fall due by the clock: every 0.2 s from the start of the stream, as without a gap.
    even = classifier.stream(window_s=0.4, hop_s=0.2).push(np.tile(clip, 4)[:96_000])
    assert [r.t1 for r in after] == pytest.approx([r.t1 for r in even if r.t1 > after[0].t1 - 0.1])
    assert ended(stream)[0].t1 == 12.0
    assert stream.push(clip[:8000])[0].t0 == 0.0
