"""Stream equals offline for every chunking, in every pooling mode; state, reset, time stamps."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.backends import LONGEST_RUN
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, StreamError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.stream import Result, Stream

MODES: dict[str, dict[str, Any]] = {
    "whole clip": {},
    "whole clip, hop": {"hop_s": 0.2},
    "whole clip, long hop": {"hop_s": 2.1},
    "window": {"window_s": 1.0},
    "window, hop": {"window_s": 0.5, "hop_s": 0.1},
    "window of one hop": {"window_s": 0.3, "hop_s": 0.3},
    "forget": {"forget_s": 0.7},
    "forget, hop of one frame": {"forget_s": 0.3, "hop_s": 0.001},
}
CHUNKS = st.lists(st.one_of(st.integers(0, 200), st.integers(0, 9000)), max_size=25)


@pytest.fixture(scope="module", params=["tiny", "causal"])
def classifier(request: pytest.FixtureRequest) -> Classifier:
    return Classifier(request.getfixturevalue(request.param).data)


def listen(stream: Stream, x: np.ndarray, chunks: list[int]) -> list[Result]:
    results, start = [], 0
    for n in chunks:
        results += stream.push(x[start : start + n])
        start += n
    results += stream.push(x[start:])
    last = stream.flush()
    return results if last is None else [*results, last]


def same(one: list[Result], two: list[Result]) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(a.logits, b.logits)
        and np.array_equal(a.scores, b.scores)
        and (a.t0, a.t1, a.label) == (b.t0, b.t1, b.label)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 30_001), chunks=CHUNKS)
def test_any_chunking_gives_the_same_bits(
    classifier: Classifier, clip: np.ndarray, mode: str, length: int, chunks: list[int]
) -> None:
    x = clip[:length]
    whole = listen(classifier.stream(**MODES[mode]), x, [])
    assert same(listen(classifier.stream(**MODES[mode]), x, chunks), whole)
    if mode.startswith("whole"):
        assert np.abs(whole[-1].logits - classifier.classify(x).logits).max() <= 1e-5
    if mode == "whole clip":
        assert same(whole, [classifier.classify(x)])


def test_hops_do_not_change_the_last_answer_by_a_bit(
    classifier: Classifier, clip: np.ndarray
) -> None:
    expected = classifier.classify(clip).scores
    for hop_s in (0.02, 0.1, 0.5, 3.0):
        last = listen(classifier.stream(hop_s=hop_s), clip, [])[-1]
        assert np.abs(last.scores - expected).max() <= 1e-6


def frames_of(classifier: Classifier, x: np.ndarray, *, start: bool, end: bool) -> np.ndarray:
    """Trunk frames (C, n) of a stretch of a stream, with context at the stream's own ends only."""
    info, model = classifier.info, classifier._model
    around = (info.context.left if start else 0, info.context.right if end else 0)
    mel = np.pad(log_mel(x, info.mel), (around, (0, 0)), constant_values=info.context.value)
    frames_Cn: np.ndarray = model.frames(np.ascontiguousarray(mel.T[None, None]))[0]
    return frames_Cn


def test_a_window_has_context_at_the_ends_of_the_stream_only(
    classifier: Classifier, clip: np.ndarray
) -> None:
    info = classifier.info
    results = listen(classifier.stream(window_s=1.0, hop_s=0.5), clip, [])
    assert len(results) == 8
    for result in results:
        first, end = (round(t * info.mel.sample_rate) for t in (result.t0, result.t1))
        frames = frames_of(
            classifier, clip[first:end], start=first == 0, end=end == len(clip)
        ).astype(np.float64)
        pooled = np.concatenate([frames.mean(1), np.sqrt(frames.var(1) + info.pooling.eps)])
        logits = classifier._model.logits(pooled[None].astype(np.float32))[0]
        assert np.abs(result.logits - logits).max() <= 1e-4
    # The third result is the first whose window begins beyond the context.
    assert [r.t0 > 0 for r in results] == [False, False] + [True] * 6
    assert [r.t1 - r.t0 for r in results[2:-1]] == pytest.approx([1.0 + 0.092] * 5)


def test_time_stamps(classifier: Classifier, clip: np.ndarray) -> None:
    info = classifier.info
    stream = classifier.stream(window_s=0.4, hop_s=0.2)
    before = info.context.left
    field_s = (info.mel.n_fft + (info.receptive_field - 1 - before) * info.mel.hop_length) / 8000
    *results, last = listen(stream, clip, [999] * 40)
    ends = [field_s - info.frame_s + 0.2 * (i + 1) for i in range(len(results))]
    assert [r.t1 for r in results] == pytest.approx(ends)
    assert [r.t0 for r in results] == pytest.approx(
        [max(0.0, 0.2 * (i - 1) - before * 0.01) for i in range(len(results))]
    )
    assert last.t1 == len(clip) / 8000


@pytest.mark.parametrize("center", [False, True])
@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 9000), chunk=st.integers(1, 3000))
def test_time_stamps_stay_inside_the_audio(
    build_model: Any, clip: np.ndarray, center: bool, length: int, chunk: int
) -> None:
    spec = build_model().info.mel.replace(center=center)
    classifier = Classifier(build_model(spec).data)
    modes: list[dict[str, Any]] = [{"window_s": 0.1, "hop_s": 0.04}, {"forget_s": 0.2}, {}]
    for options in modes:
        stream, heard, results = classifier.stream(**options), 0, []
        while heard < length:
            new = stream.push(clip[heard : min(heard + chunk, length)])
            heard = min(heard + chunk, length)
            assert all(0 <= r.t0 < r.t1 <= heard / 8000 for r in new)
            results += new
        last = stream.flush()
        assert last is not None
        assert 0 <= last.t0 < last.t1 == length / 8000


def test_a_result_is_never_later_than_its_audio(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream(forget_s=1.0, hop_s=0.02)
    for end in range(50, 8000, 50):
        for result in stream.push(clip[end - 50 : end]):
            assert (end - 50) / 8000 < result.t1 <= end / 8000


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 30_001), chunks=CHUNKS)
def test_saved_state_continues_exactly(
    classifier: Classifier, clip: np.ndarray, mode: str, cut: int, chunks: list[int]
) -> None:
    stream, other = (classifier.stream(**MODES[mode]) for _ in range(2))
    results = stream.push(clip[:cut])
    other.push(clip[::-1][:7000])
    other.load_state(pickle.loads(pickle.dumps(stream.state())))
    results += listen(other, clip[cut:], chunks)
    assert same(results, listen(classifier.stream(**MODES[mode]), clip, []))


def test_streams_share_nothing_and_reset_forgets(classifier: Classifier, clip: np.ndarray) -> None:
    one, two = classifier.stream(window_s=1.0), classifier.stream(window_s=1.0)
    found: list[list[Result]] = [[], []]
    for start in range(0, len(clip), 700):
        found[0] += one.push(clip[start : start + 700])
        found[1] += two.push(-clip[::-1][start : start + 700])
    assert same(found[0], listen(classifier.stream(window_s=1.0), clip, [])[:-1])
    assert same(found[1], listen(classifier.stream(window_s=1.0), -clip[::-1], [])[:-1])
    one.reset()
    assert same(listen(one, clip, [5]), listen(one, clip, [6]))
    assert one.flush() is None
    assert one.push(np.zeros(0, np.int16)) == []
    assert one.flush() is None


def test_states_that_do_not_fit_are_refused_and_change_nothing(
    classifier: Classifier, build_model: Any, clip: np.ndarray
) -> None:
    stream = classifier.stream(window_s=0.5, hop_s=0.1)
    before = stream.push(clip[:9000])
    good = stream.state()
    stranger = Classifier(build_model(seed=1).data).stream(window_s=0.5, hop_s=0.1)
    stranger.push(clip[:9000])
    early = classifier.stream(window_s=0.5, hop_s=0.1)
    early.push(clip[:3000])
    mel = good["trunk"]["mel"]
    bad: list[Any] = [
        None,
        [],
        {},
        stranger.state(),
        classifier.stream(window_s=0.5, hop_s=0.2).state(),
        classifier.stream(forget_s=0.5, hop_s=0.1).state(),
        {**good, "pool": early.state()["pool"]},
        {**good, "mel": early.state()["mel"]},
        {**good, "trunk": early.state()["trunk"]},
        {**good, "trunk": {**good["trunk"], "mel": mel[:, :-1]}},
        {**good, "trunk": {**good["trunk"], "mel": np.zeros((16, 10_000), np.float32)}},
        {**good, "samples_in": 1},
        {**good, "extra": 1},
    ]
    for state in bad:
        with pytest.raises(StreamError):
            stream.load_state(state)
    rest = listen(stream, clip[9000:], [])
    assert same(before + rest, listen(classifier.stream(window_s=0.5, hop_s=0.1), clip, []))


def test_bad_chunks_change_nothing(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream(hop_s=0.2)
    results = stream.push(clip[:5000])
    for bad in (np.full(10, np.nan), np.zeros((5, 2), np.int16), np.zeros(5, np.int32)):
        with pytest.raises(AudioError):
            stream.push(bad)
    results += listen(stream, clip[5000:], [])
    assert same(results, listen(classifier.stream(hop_s=0.2), clip, []))


def test_durations_are_rounded_and_said(classifier: Classifier) -> None:
    frame_s = classifier.info.frame_s
    assert frame_s == 0.02
    stream = classifier.stream(window_s=1.0, hop_s=0.3)
    assert stream.hop_s == pytest.approx(0.3)
    assert stream.window_s == pytest.approx(0.9)
    assert classifier.stream().hop_s is None
    assert classifier.stream().window_s is None
    assert classifier.stream(window_s=1.0).hop_s == pytest.approx(0.26)
    assert classifier.stream(forget_s=60.0).hop_s == pytest.approx(0.5)
    assert classifier.stream(hop_s=1e-6).hop_s == pytest.approx(frame_s)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_s": 1.0, "forget_s": 1.0}, "exclude each other"),
        ({"window_s": 0.2, "hop_s": 0.5}, "unheard"),
        ({"window_s": 0}, "window_s"),
        ({"forget_s": -1.0}, "forget_s"),
        ({"hop_s": float("nan")}, "hop_s"),
        ({"hop_s": float("inf")}, "hop_s"),
        ({"hop_s": "1"}, "hop_s"),
        ({"window_s": 500_000.0, "hop_s": 0.02}, "hops"),
    ],
)
def test_absurd_durations_are_refused(
    classifier: Classifier, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(StreamError) as caught:
        classifier.stream(**options)
    assert words in str(caught.value)
    assert caught.value.fix


def test_counters(classifier: Classifier, clip: np.ndarray) -> None:
    stream, info = classifier.stream(hop_s=0.5), classifier.info
    results = listen(stream, clip, [1000] * 10)
    assert stream.stats.samples_in == len(clip)
    assert stream.stats.results == len(results)
    assert stream.stats.mel_frames == info.mel.frames(len(clip))
    assert stream.stats.frames == info.trunk_frames(info.mel.frames(len(clip)))
    assert 0 < stream.stats.busy_s < 60


def test_memory_stays_flat(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream(forget_s=5.0)
    stream.push(clip)
    size = len(pickle.dumps(stream.state()))
    for _ in range(20):
        stream.push(clip)
    assert abs(len(pickle.dumps(stream.state())) - size) < 64 * LONGEST_RUN * 16


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("stride", [1, 3])
def test_other_models_stream_as_exactly(
    build_model: Any, clip: np.ndarray, center: bool, stride: int
) -> None:
    spec = build_model().info.mel.replace(center=center)
    classifier = Classifier(build_model(spec, stride=stride, channels=5, seed=2).data)
    for length in (1, 128, 129, 700, 30_001):
        expected = [classifier.classify(clip[:length])]
        assert same(listen(classifier.stream(), clip[:length], [1, 127, 50, 80, 4000]), expected)
