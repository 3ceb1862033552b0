"""Events: where they start and end, and what holds for any scores."""

from __future__ import annotations

import dataclasses
import math
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.events import Event, EventDetector, EventSpec
from frami_edge_runtime.stream import Result

LABELS = ("dog", "rain", "siren")
HOP = 0.25


def result(t0: float, t1: float, *scores: float, gap: int = 0) -> Result:
    row = np.array(scores, np.float32)
    best = int(row.argmax())
    return Result(
        LABELS[best], best, float(row[best]), row, np.log(row + 1e-6), LABELS, t0, t1, gap
    )


def windows(scores: list[list[float]], window: float = 1.0, start: float = 0.0) -> list[Result]:
    """Results every HOP seconds about a sliding window that fills up first."""
    ends = [start + HOP * (i + 1) for i in range(len(scores))]
    return [result(max(start, t1 - window), t1, *row) for t1, row in zip(ends, scores, strict=True)]


def one(*dog: float) -> list[Result]:
    """Windows as long as the hop: each stretch begins half a hop before its result does."""
    return windows([[s, 0.0, 0.0] for s in dog], HOP)


def run(spec: EventSpec, results: list[Result], end: float | None = None) -> list[Event]:
    detector = EventDetector(spec, LABELS)
    events = [event for r in results for event in detector.push(r)]
    return events + detector.finish(end)


def spans(events: list[Event], kind: str = "end") -> list[tuple[str, float, float]]:
    return [(e.label, round(e.t0, 6), round(e.t1, 6)) for e in events if e.kind == kind]


def test_an_event_lies_where_the_sound_was() -> None:
    # A sound from 2 s to 5 s, 1 s windows, score = share of the window that it fills.
    ends = np.arange(1, 33) * HOP
    share = [max(0.0, min(5.0, t) - max(2.0, t - 1)) for t in ends]
    events = run(EventSpec(on=0.5, off=0.5, update_s=None), windows([[s, 0, 0] for s in share]))
    assert [e.kind for e in events] == ["start", "end"]
    assert spans(events) == [("dog", 1.75, 5.0)]  # to within a hop, not a window late
    assert events[0].at == 2.5
    assert events[0].t1 == 2.0
    assert events[1].at == 5.75
    assert events[1].score == 1.0
    # The last result decides up to the end of the clip.
    assert spans(run(EventSpec(), windows([[0.9, 0, 0]] * 8), end=2.2)) == [("dog", 0.0, 2.2)]


def test_hysteresis_and_durations() -> None:
    spec = EventSpec(on=0.6, off=0.4, min_on_s=0.5, min_off_s=0.5, update_s=None)
    # one stretch is too short; 0.5 neither starts nor ends; one low stretch is a dip
    low, mid, high = 0.1, 0.5, 0.8
    events = run(spec, one(low, high, low, mid, high, high, mid, low, mid, low, low, low))
    assert spans(events) == [("dog", 0.875, 2.125)]
    assert [(e.kind, e.at) for e in events] == [("start", 1.5), ("end", 2.75)]


def test_close_events_are_merged_unless_the_new_one_is_too_short() -> None:
    high, low = 0.9, 0.0
    scores = one(high, high, low, low, low, high, high, low, low, low, low, low)
    assert len(spans(run(EventSpec(), scores))) == 2
    assert spans(run(EventSpec(merge_gap_s=1.0), scores)) == [("dog", 0.0, 1.625)]
    assert len(spans(run(EventSpec(merge_gap_s=0.75), scores))) == 2
    longer = EventSpec(merge_gap_s=1.0, min_on_s=0.3)
    short = one(high, high, high, low, low, low, high, low, low, low, low, low)
    assert spans(run(longer, short)) == [("dog", 0.0, 0.625)]
    assert run(longer, short)[-1].score == pytest.approx(0.9)


def test_cooldown_ignores_the_label_and_then_starts_anew() -> None:
    events = run(EventSpec(cooldown_s=1.0), one(0.9, 0, *[0.9] * 10))
    assert spans(events) == [("dog", 0.0, 0.125), ("dog", 1.125, 3.0)]


def test_updates_come_no_more_often_than_asked() -> None:
    events = run(EventSpec(update_s=0.5), one(*[0.6, 0.7, 0.9, 0.8, 0.7, 0.6, 0.9, 0.1]))
    assert [(e.kind, e.at) for e in events] == [
        ("start", 0.25), ("update", 0.75), ("update", 1.25), ("update", 1.75), ("end", 2.0),
    ]  # fmt: skip
    assert [round(e.score, 3) for e in events] == [0.6, 0.9, 0.9, 0.9, 0.9]
    assert [round(e.last_score, 3) for e in events] == [0.6, 0.9, 0.7, 0.9, 0.1]


def test_results_of_another_model_or_an_earlier_time_are_refused() -> None:
    detector = EventDetector(EventSpec(), LABELS)
    detector.push(result(1, 2, 0.9, 0, 0))
    with pytest.raises(StreamError, match="came after"):
        detector.push(result(0, 1, 0.9, 0, 0))
    with pytest.raises(StreamError, match="other labels"):
        detector.push(dataclasses.replace(result(1, 2, 0.9, 0, 0), labels=("a", "b", "c")))


def test_smoothing_decides_and_raw_scores_stay() -> None:
    spec = EventSpec(on=0.6, smooth_s=0.5, update_s=None)
    assert run(spec, one(0, 0, 0.99, 0, 0)) == []  # a single spike
    events = run(spec, one(0, 0, 0.99, 0.99, 0.99, 0.99, 0))
    assert events[0].score == pytest.approx(0.99)
    assert events[0].at > 0.75


def test_labels_are_watched_ignored_and_overridden() -> None:
    scores = windows([[0.55, 0.45, 0.0]] * 8)
    spec = EventSpec(on=0.4, ignore=("dog",), update_s=None)
    assert {e.label for e in run(spec, scores)} == {"rain"}
    spec = EventSpec(on=0.4, watch=("dog", "siren"))
    assert {e.label for e in run(spec, scores)} == {"dog"}
    spec = EventSpec(on=0.4, overrides={"dog": {"on": 0.8}, "rain": {"min_on_s": 0.6}})
    events = run(spec, scores)
    assert {e.label for e in events} == {"rain"}
    assert events[0].t1 - events[0].t0 >= 0.6


def test_a_gap_ends_what_it_outlasts() -> None:
    before = windows([[0.9, 0, 0]] * 8)
    after = windows([[0.9, 0, 0]] * 8, start=5.0)
    after[0] = dataclasses.replace(after[0], gap=24_000)
    events = run(EventSpec(update_s=None), before + after)
    assert spans(events) == [("dog", 0.0, 2.0), ("dog", 5.0, 7.0)]
    assert [e.gap for e in events] == [False, True, True, True]
    (end,) = run(EventSpec(update_s=None, min_off_s=4.0), before + after)[1:]
    assert (end.t0, end.t1, end.gap) == (0.0, 7.0, True)


def test_a_gap_is_marked_and_breaks_a_run() -> None:
    results = windows([[0.9, 0, 0]] * 8)
    results[5] = dataclasses.replace(results[5], gap=10)
    assert [e.gap for e in run(EventSpec(), results)] == [False, False, True]
    results = [*one(0, 0.9, 0.9), result(2.0, 2.25, 0.9, 0, 0, gap=1)]
    assert run(EventSpec(min_on_s=0.7), [*results, result(2.25, 2.5, 0, 0, 0)]) == []


def test_exponential_windows_have_their_middle_at_half_the_weight() -> None:
    detector = EventDetector(EventSpec(on=0.5, off=0.5, update_s=None), LABELS, forget_s=1.0)
    events: list[Event] = []
    for i in range(1, 60):
        t = i * HOP
        weights = 2.0 ** -(t - np.arange(0, t, 0.01) - 0.01)
        sound = (np.arange(0, t, 0.01) >= 4) & (np.arange(0, t, 0.01) < 8)
        events += detector.push(result(0, t, float((weights * sound).sum() / weights.sum()), 0, 0))
    events += detector.finish()
    ((_, t0, t1),) = spans(events)
    assert abs(t0 - 4) <= HOP
    assert abs(t1 - 8) <= HOP


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"on": 1.2}, "on must be a number in 0..1"),
        ({"on": True}, "on must be"),
        ({"on": 0.3, "off": 0.4}, "would end as they start"),
        ({"off": 0.0}, "no event would ever end"),
        ({"on": 1.0, "smooth_s": 1.0}, "never reaches"),
        ({"min_off_s": math.inf}, "min_off_s must be"),
        ({"merge_gap_s": 0.5, "min_off_s": 0.5}, "merge_gap_s can never act"),
        ({"cooldown_s": 1.0, "merge_gap_s": 2.0}, "cooldown_s can never act"),
        ({"min_level_db": 3.0}, "min_level_db must be"),
        ({"watch": ()}, "No label is left"),
        ({"watch": "dog"}, "no sequence of labels"),
        ({"ignore": LABELS}, "No label is left"),
        ({"watch": ("dgo",)}, "no label 'dgo'. It has 'dog'"),
        ({"overrides": {"cat": {"on": 0.2}}}, "no label 'cat'"),
        ({"overrides": {"dog": {"smooth_s": 0.2}}}, "override for 'dog' cannot be used"),
        ({"overrides": {"dog": {"on": 2}}}, "For 'dog': on must be"),
        ({"overrides": {"dog": {"on": 0.9}}, "ignore": ("dog",)}, "cannot be used"),
    ],
)
def test_impossible_settings_are_refused_with_the_reason(settings: Any, why: str) -> None:
    with pytest.raises(StreamError) as error:
        EventDetector(EventSpec(**settings), LABELS)
    assert why in str(error.value)
    assert error.value.fix


seconds = st.sampled_from([0.0, 0.2, 0.25, 0.5, 1.0])


@st.composite
def specs(draw: st.DrawFn) -> EventSpec:
    min_off, merge, cooldown = draw(seconds), draw(seconds), draw(seconds)
    merge = merge if merge > min_off else 0.0
    cooldown = cooldown if cooldown > max(merge, min_off) else 0.0
    on = draw(st.sampled_from([0.3, 0.5, 0.8]))
    off = draw(st.sampled_from([None, 0.2, on]))
    return EventSpec(
        on, off, draw(seconds), min_off, merge, cooldown,
        smooth_s=draw(st.sampled_from([0.0, 0.3])),
        update_s=draw(st.sampled_from([None, 0.0, 0.6])),
        ignore=draw(st.sampled_from([(), ("rain",)])),
    )  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> list[Result]:
    score = st.sampled_from([0.0, 0.25, 0.4, 0.6, 0.9])
    row = st.tuples(score, score, score).map(list)
    window = draw(st.sampled_from([0.25, 1.0]))
    results: list[Result] = []
    start = 0.0
    for _ in range(draw(st.integers(1, 3))):
        part = windows(draw(st.lists(row, min_size=1, max_size=16)), window, start)
        if results:
            part[0] = dataclasses.replace(part[0], gap=100)
        results += part
        start = part[-1].t1 + draw(st.sampled_from([0.1, 0.6, 3.0]))
    return results


@settings(max_examples=200, deadline=None)
@given(spec=specs(), results=streams(), cut=st.integers(0, 40))
def test_promises_hold_for_any_scores(spec: EventSpec, results: list[Result], cut: int) -> None:
    detector, events = EventDetector(spec, LABELS), []
    for i, r in enumerate(results):
        if i == cut:
            detector = pickle.loads(pickle.dumps(detector))  # a restart changes nothing
        new = detector.push(r)
        assert all(r.gap > 0 or e.at == r.t1 for e in new)
        events += new
    events += detector.finish()
    assert events == run(spec, results)
    for label, rule in zip(LABELS, spec.rules(LABELS), strict=True):
        mine = [e for e in events if e.label == label]
        if rule is None:
            assert mine == []
            continue
        index = LABELS.index(label)
        expected = "start"
        for e in mine:
            assert (e.kind == "start") == (expected == "start")
            expected = "start" if e.kind == "end" else "update or end"
            assert 0 <= e.t0 <= e.t1 <= results[-1].t1
            assert e.score in {float(r.scores[index]) for r in results if r.t1 <= e.at}
            newest = [r for r in results if r.t1 <= e.at][-1]
            assert e.last_score == float(newest.scores[index])
            if e.kind == "start":
                assert e.t1 - e.t0 >= rule.min_on_s - 1e-6
        assert expected == "start"  # all are ended
        ends = [e for e in mine if e.kind == "end"]
        for before, after in pairwise(ends):
            pause = max(rule.min_off_s, rule.merge_gap_s, rule.cooldown_s)
            assert after.t0 - before.t1 >= pause - 1e-6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_chunking_gives_the_same_events(
    classifier: Classifier, clip: np.ndarray, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(clip), rng.integers(1, 40)))
    spec = EventSpec(on=0.25, off=0.2, min_on_s=0.1)

    def events_of(chunks: list[np.ndarray]) -> list[Event]:
        stream = classifier.stream(window_s=0.4, hop_s=0.1)
        detector = EventDetector(spec, classifier.labels)
        events = [e for c in chunks for r in stream.push(c) for e in detector.push(r)]
        last = stream.flush()
        assert last is not None
        return events + detector.push(last) + detector.finish(last.t1)

    whole = events_of([clip])
    assert len(whole) >= 4
    assert events_of(np.split(clip, cuts)) == whole
