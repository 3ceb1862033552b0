"""Many streams in one group answer as each would alone, in phase or out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, ModelFileError, StreamError
from frami_edge_runtime.stream import CPU_LANES, Result, StreamGroup

MODES: dict[str, dict[str, Any]] = {
    "whole clip": {},
    "whole clip, hop": {"hop_s": 0.1},
    "window": {"window_s": 0.6, "hop_s": 0.2},
    "forget": {"forget_s": 0.5, "hop_s": 0.1},
}
N = 5
STEPS = st.lists(
    st.one_of(
        st.lists(st.none() | st.integers(0, 4000), min_size=N, max_size=N),  # push
        st.tuples(st.integers(0, N - 1), st.sampled_from(["flush", "reset", "gap", "drop"])),
    ),
    max_size=12,
)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def classifier(request: pytest.FixtureRequest, build_quantised: Any) -> Classifier:
    return Classifier(
        build_quantised() if request.param == "int8" else request.getfixturevalue("tiny").data
    )


def alike(one: list[Result], two: list[Result]) -> bool:
    return len(one) == len(two) and all(
        np.abs(a.scores - b.scores).max() <= 1e-6 and (a.t0, a.t1, a.gap) == (b.t0, b.t1, b.gap)
        for a, b in zip(one, two, strict=True)
    )


def some(result: Result | None) -> list[Result]:
    return [] if result is None else [result]


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(steps=STEPS)
def test_a_group_answers_as_streams_of_their_own(
    classifier: Classifier, clip: np.ndarray, mode: str, steps: list[Any]
) -> None:
    group = classifier.streams(N, **MODES[mode])
    alone = [classifier.stream(**MODES[mode]) for _ in range(N)]
    at = np.arange(N) * 3000
    for step in steps:
        if isinstance(step, list):
            chunks = [
                None if n is None else np.take(clip, range(at[i], at[i] + n), mode="wrap")
                for i, n in enumerate(step)
            ]
            at += [n or 0 for n in step]
            expected = [[] if c is None else s.push(c) for s, c in zip(alone, chunks, strict=True)]
            found = group.push(chunks)
            assert all(alike(a, b) for a, b in zip(found, expected, strict=True))
            continue
        i, what = step
        if what == "flush":
            assert alike(some(group.flush(i)), some(alone[i].flush()))
        elif what == "reset":
            group.reset(i)
            alone[i].reset()
        else:
            keep = what == "gap"
            one, two = (group.gap(i, 700, keep_pooling=keep), alone[i].gap(700, keep_pooling=keep))
            assert alike(one, two)
    for last, stream in zip(group.flush_all(), alone, strict=True):
        assert alike(some(last), some(stream.flush()))


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_more_streams_than_go_in_one_call(
    classifier: Classifier, clip: np.ndarray, rate: int
) -> None:
    pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")
    n = CPU_LANES + 7
    group = classifier.streams(n, rate, window_s=0.4, hop_s=0.1)
    assert len(group) == n
    found: list[list[Result]] = [[] for _ in range(n)]
    for start in range(0, 16_000, 1600):
        chunks = [np.roll(clip, 100 * i)[start : start + 1600 - i] for i in range(n)]
        for i, results in enumerate(group.push(chunks)):
            found[i] += results
    for i in (0, 1, CPU_LANES - 1, CPU_LANES, n - 1):
        stream, expected = classifier.stream(rate, window_s=0.4, hop_s=0.1), []
        for start in range(0, 16_000, 1600):
            expected += stream.push(np.roll(clip, 100 * i)[start : start + 1600 - i])
        assert alike(found[i], expected)


def test_runs_due_together_are_one_call(tiny: Any, clip: np.ndarray) -> None:
    classifier = Classifier(tiny.data)
    model, batches = classifier._model, []

    class Counts:
        """The model, noting the batches of its trunk."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def frames(self, mel_BMT: np.ndarray) -> np.ndarray:
            batches.append(len(mel_BMT))
            return model.frames(mel_BMT)

    group = StreamGroup(Counts(), 9, hop_s=0.2)
    for start in range(0, 8000, 400):
        group.push([clip[start : start + 400]] * 9)
    assert set(batches) == {9}
    assert group.stats.frames == 9 * group.stats_of(0).frames > 0


def test_states_move_between_groups_and_streams(classifier: Classifier, clip: np.ndarray) -> None:
    group, stream = classifier.streams(2, forget_s=0.5), classifier.stream(forget_s=0.5)
    group.push([clip[:7000], clip[5000:11_000]])
    stream.load_state(group.state(1))
    group.load_state(0, stream.state())
    expected = stream.push(clip[11_000:20_000])
    one, two = group.push([clip[11_000:20_000]] * 2)
    assert len(expected) > 5
    assert alike(one, expected)
    assert alike(two, expected)


def test_bad_chunks_change_no_stream(classifier: Classifier, clip: np.ndarray) -> None:
    group = classifier.streams(2)
    group.push([clip[:5000], None])
    for bad in ([clip], [clip] * 3, [], 7, None):
        with pytest.raises(StreamError):
            group.push(bad)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="Stream 1: Samples hold"):
        group.push([clip, np.full(9, np.nan)])
    group.push([clip[5000:], None])
    last, nothing = group.flush_all()
    assert nothing is None
    assert last is not None
    assert np.abs(last.scores - classifier.classify(clip).scores).max() <= 1e-6


@pytest.mark.parametrize("i", [2, -1, 1.0, "0", None, True])
def test_there_is_no_such_stream(classifier: Classifier, i: Any) -> None:
    group = classifier.streams(2)
    calls: list[Callable[[], Any]] = [
        lambda: group.flush(i),
        lambda: group.gap(i, 0),
        lambda: group.state(i),
        lambda: group.load_state(i, {}),
        lambda: group.stats_of(i),
    ]
    for call in calls:
        with pytest.raises(StreamError, match="no stream"):
            call()


@pytest.mark.parametrize("n", [0, -1, 65_537, 1.0, "2", None, True])
def test_absurd_groups_are_refused(classifier: Classifier, n: Any) -> None:
    with pytest.raises(StreamError, match="A group has"):
        classifier.streams(n)


def test_a_model_that_fails_leaves_streams_reset(tiny: Any, clip: np.ndarray) -> None:
    classifier = Classifier(tiny.data)
    model, broken = classifier._model, [False]

    class Fails:
        """The model, until it breaks."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def logits(self, pooled_BD: np.ndarray) -> np.ndarray:
            return model.logits(pooled_BD) * (np.nan if broken[0] else 1)

    group = StreamGroup(Fails(), 2, hop_s=0.2)
    group.push([clip[:3000], clip[:100]])
    broken[0] = True
    with pytest.raises(ModelFileError, match="not finite"):
        group.push([clip[3000:6000], None])
    broken[0] = False
    expected = classifier.stream(hop_s=0.2).push(clip)
    assert all(alike(found, expected) for found in group.push([clip, clip]))
