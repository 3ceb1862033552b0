"""Lost audio: never spliced, the clock stays true, and each pooling mode does what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.stream import Result

RATE = 8000
MODES: dict[str, dict[str, Any]] = {
    "whole clip": {},
    "whole clip, hop": {"hop_s": 0.2},
    "window": {"window_s": 1.0, "hop_s": 0.26},
    "forget": {"forget_s": 0.7},
}
PIECES = st.lists(
    st.tuples(st.integers(0, 9000), st.integers(0, 30_000)), min_size=1, max_size=5
)  # (samples heard, samples lost after them)


@pytest.fixture(scope="module", params=["tiny", "causal"])
def classifier(request: pytest.FixtureRequest) -> Classifier:
    return Classifier(request.getfixturevalue(request.param).data)


def frames_of(classifier: Classifier, x: np.ndarray) -> np.ndarray:
    """Trunk frames (C, n) of one whole segment, from its mel in one model call."""
    info = classifier.info
    around = (info.context.left, info.context.right)
    mel = np.pad(log_mel(x, info.mel), (around, (0, 0)), constant_values=info.context.value)
    frames_Cn: np.ndarray = classifier._model.frames(np.ascontiguousarray(mel.T[None, None]))[0]
    return frames_Cn.astype(np.float64)


def logits_of(classifier: Classifier, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of trunk frames (C, n) with weights (n,), by the definition of the statistics."""
    mean = np.average(x, axis=1, weights=weights)
    var = np.average((x - mean[:, None]) ** 2, axis=1, weights=weights)
    pooled = np.concatenate([mean, np.sqrt(var + classifier.info.pooling.eps)])
    return classifier._model.logits(pooled[None].astype(np.float32))[0]


def close(one: Result, two: np.ndarray) -> bool:
    return bool(np.abs(one.logits - two).max() <= 1e-4)


def slots_of(classifier: Classifier, segments: list[tuple[int, int]]) -> list[np.ndarray]:
    """Slots of the frames of segments (start, frames), by the definition in Python floats."""
    slots: list[np.ndarray] = []
    for start, frames in segments:
        passed = round((start - segments[0][0]) / (RATE * classifier.info.frame_s) + 1e-9)
        first = max(passed, int(slots[-1][-1]) + 1 if slots else 0)
        slots.append(first + np.arange(frames))
    return slots


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=20, deadline=None)
@given(heard=st.integers(1, 20_000), lost=st.integers(0, 50_000), chunk=st.integers(100, 9000))
def test_without_pooling_a_gap_makes_two_streams(
    classifier: Classifier, clip: np.ndarray, mode: str, heard: int, lost: int, chunk: int
) -> None:
    stream, one, two = (classifier.stream(**MODES[mode]) for _ in range(3))
    found = stream.push(clip[:heard]) + stream.gap(lost, keep_pooling=False)
    for start in range(heard, len(clip), chunk):
        found += stream.push(clip[start : start + chunk])
    found += [r for r in [stream.flush()] if r]
    before = [*one.push(clip[:heard]), one.flush()]
    after = [*two.push(clip[heard:]), two.flush()]
    assert len(found) == len(before) + len(after)
    for k, (a, b) in enumerate(zip(found, before + after, strict=True)):
        assert b is not None
        shift = 0 if k < len(before) else (heard + lost) / RATE
        assert np.array_equal(a.logits, b.logits)
        assert (a.t0, a.t1) == pytest.approx((b.t0 + shift, b.t1 + shift), abs=1e-9)
        assert a.gap == (lost if k == len(before) else 0)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(pieces=PIECES, chunk=st.integers(50, 9000))
def test_kept_pooling_covers_the_frames_of_all_segments(
    classifier: Classifier, clip: np.ndarray, mode: str, pieces: list[tuple[int, int]], chunk: int
) -> None:
    stream, clock, position, total_lost = classifier.stream(**MODES[mode]), 0, 0, 0
    found: list[Result] = []
    segments, frames, ends = [], [], []
    for heard, lost in pieces:
        x = np.take(clip, range(position, position + heard), mode="wrap")
        for start in range(0, heard, chunk):
            found += stream.push(x[start : start + chunk])
        found += stream.gap(lost)
        if heard:
            frames.append(frames_of(classifier, x))
            segments.append((clock, frames[-1].shape[1]))
            ends.append((clock + heard) / RATE)
        position += heard
        clock += heard + lost
        total_lost += lost
    last = stream.flush()
    if not frames:
        assert last is None
        assert found == []
        return
    assert last is not None
    assert last.t1 == ends[-1]
    results = [*found, last]
    assert sum(r.gap for r in results) == total_lost
    x_Cn = np.concatenate(frames, axis=1)
    slots = np.concatenate(slots_of(classifier, segments))
    hop_s, frame_s = stream.hop_s, classifier.info.frame_s
    hop = round(hop_s / frame_s) if hop_s else 0
    due = [int(s) + 1 for s in slots if hop and (s + 1) % hop == 0]
    assert len(found) == len(due)
    for result, n in zip(results, [*due, int(slots[-1]) + 1], strict=True):
        weights = np.where(slots < n, 1.0, 0.0)
        if stream.window_s:
            length = round(stream.window_s / frame_s)
            weights *= slots >= hop * -(-n // hop) - length
        if mode == "forget":
            weights *= 2.0 ** (-(n - 1 - slots) * frame_s / 0.7)
        assert close(result, logits_of(classifier, x_Cn, weights))
        assert 0 <= result.t0 < result.t1 <= ends[-1]


def test_time_stamps_follow_the_sample_clock(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream(window_s=0.4, hop_s=0.2)
    stream.push(clip[:8000])
    stream.gap(80_000)
    assert stream.push(clip[:1]) == []
    after = stream.push(clip[1:8000])
    assert after[0].gap == 80_000
    assert [r.gap for r in after[1:]] == [0] * (len(after) - 1)
    assert after[0].t0 == 11.0
    assert all(11.0 < r.t1 <= 12.0 for r in after)
    # Results fall due by the clock: every 0.2 s from the start of the stream, as without a gap.
    even = classifier.stream(window_s=0.4, hop_s=0.2).push(np.tile(clip, 4)[:96_000])
    assert [r.t1 for r in after] == pytest.approx([r.t1 for r in even if r.t1 > after[0].t1 - 0.1])
    last = stream.flush()
    assert last is not None
    assert last.t1 == 12.0
    assert stream.push(clip[:8000])[0].t0 == 0.0


def test_a_known_break_without_loss_is_not_spliced(
    classifier: Classifier, clip: np.ndarray
) -> None:
    stream = classifier.stream()
    stream.push(clip[:7777])
    assert stream.gap(0) == []
    stream.push(clip[7777:])
    found = stream.flush()
    frames = [frames_of(classifier, x) for x in (clip[:7777], clip[7777:])]
    both = np.concatenate(frames, axis=1)
    assert found is not None
    assert found.gap == 0
    assert close(found, logits_of(classifier, both, np.ones(both.shape[1])))
    assert not close(found, classifier.classify(clip).logits)


def test_gaps_before_between_and_after_the_audio(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream()
    for keep in (True, False):
        assert stream.gap(500, keep_pooling=keep) == []
    stream.push(clip)
    assert stream.gap(5) == []
    assert stream.gap(7) == []
    last = stream.flush()
    assert last is not None
    assert (last.t0, last.t1, last.gap) == (0.125, (1000 + len(clip)) / RATE, 1012)
    assert np.array_equal(last.logits, classifier.classify(clip).logits)
    stream.push(clip)
    assert len(stream.gap(5, keep_pooling=False)) == 1
    assert stream.flush() is None


def test_a_window_older_than_the_gap_is_forgotten(classifier: Classifier, clip: np.ndarray) -> None:
    stream, fresh = (classifier.stream(window_s=0.4, hop_s=0.2) for _ in range(2))
    stream.push(clip[:8000])
    stream.gap(RATE * 86_400)
    after = stream.push(clip[8000:])
    assert np.array_equal(after[-1].logits, fresh.push(clip[8000:])[-1].logits)


def test_every_gap_is_counted(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream(forget_s=1.0)
    stream.push(clip[:4000])
    stream.gap(300)
    stream.push(clip[:4000])
    stream.gap(0, keep_pooling=False)
    stats = stream.stats
    assert (stats.samples_in, stats.dropped, stats.gaps) == (8000, 300, 2)
    assert stats.steps == 4


@pytest.mark.parametrize("bad", [-1, 1.5, "7", None, True, 1 << 60, np.nan])
def test_absurd_losses_are_refused_and_change_nothing(
    classifier: Classifier, clip: np.ndarray, bad: Any
) -> None:
    stream = classifier.stream()
    stream.push(clip[:5000])
    with pytest.raises(StreamError) as caught:
        stream.gap(bad)
    assert "lost_samples" in str(caught.value)
    stream.push(clip[5000:])
    last = stream.flush()
    assert last is not None
    assert np.array_equal(last.logits, classifier.classify(clip).logits)


def test_a_segment_of_less_than_one_sample_says_nothing(
    classifier: Classifier, clip: np.ndarray
) -> None:
    pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")
    stream = classifier.stream(96_000)
    stream.push(clip[:1])
    assert stream.gap(95_999, keep_pooling=False) == []
    stream.push(clip)
    assert stream.gap(3) == []
    stream.push(clip[:1])
    last = stream.flush()
    assert last is not None
    assert last.t0 == 1.0
    assert np.array_equal(last.logits, classifier.classify(clip, 96_000).logits)
