"""Events: where they start and end, and what holds for any scores."""

import dataclasses
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.stream import Result

LABELS = ("dog", "rain", "siren")
HOP = 0.25


def result(t0, t1, *scores, gap=0):
    row = np.array(scores, np.float32)
    return Result("", 0, 0.0, row, row, LABELS, t0, t1, gap)


def windows(scores, window=1.0, start=0.0):
    """Results every HOP seconds about a sliding window that fills up first."""
    ends = [start + HOP * (i + 1) for i in range(len(scores))]
    return [result(max(start, t1 - window), t1, *row) for t1, row in zip(ends, scores, strict=True)]


def one(*dog):
    """Windows as long as the hop: each stretch begins half a hop before its result does."""
    return windows([[s, 0.0, 0.0] for s in dog], HOP)


def run(spec, results, forget_s=None):
    detector = EventDetector(spec, LABELS, forget_s=forget_s)
    return [event for r in results for event in detector.push(r)] + detector.finish()


def spans(events):
    return [(round(e.t0, 6), round(e.t1, 6)) for e in events if e.kind == "end"]


def test_an_event_has_the_times_of_the_sound():
    # A sound from 2 s to 5 s, 1 s windows, score = share of the window that it fills.
    ends = np.arange(1, 33) * HOP
    share = [max(0.0, min(5.0, t) - max(2.0, t - 1)) for t in ends]
    events = run(EventSpec(on=0.5, off=0.5, update_s=None), windows([[s, 0, 0] for s in share]))
    assert spans(events) == [(1.75, 5.0)]  # to within a hop, not a window late
    assert [(e.kind, e.t1, e.at) for e in events] == [("start", 2.0, 2.5), ("end", 5.0, 5.75)]


def test_the_last_result_of_a_clip_starts_no_event_on_its_own():
    spec = EventSpec(on=0.5, min_on_s=0.5)
    quiet, loud = [0.1, 0.0, 0.0], [0.9, 0.0, 0.0]
    assert run(spec, windows([quiet] * 7 + [loud])) == []  # as noise that breaks off
    assert spans(run(spec, windows([quiet] * 7 + [loud] * 2))) == [(1.25, 2.25)]
    assert spans(run(spec, windows([quiet] * 7 + [loud, quiet]))) == []
    assert spans(run(spec, [result(0.0, 0.6, *loud)])) == [(0.0, 0.6)]  # there is no other
    gap = [result(2.0, 3.0, *quiet, gap=2000)]
    assert run(spec, windows([quiet] * 3 + [loud]) + gap) == []


def test_a_threshold_of_1_is_never_reached():
    assert run(EventSpec(on=1.0), one(1.0, 1.0, 1.0)) == []
    assert run(EventSpec(on=1 - 1e-7), one(1.0, 1.0, 1.0))


def test_the_middle_of_an_exponential_window_has_half_of_the_weight_on_each_side():
    results = []
    for t in np.arange(1, 60) * HOP:
        past = np.arange(0, t, 0.01)
        weights = 2.0 ** -(t - past - 0.01)
        share = float(weights[(past >= 4) & (past < 8)].sum() / weights.sum())
        results.append(result(0, float(t), share, 0, 0))
    ((t0, t1),) = spans(run(EventSpec(on=0.5, off=0.5), results, forget_s=1.0))
    assert abs(t0 - 4) <= HOP
    assert abs(t1 - 8) <= HOP


HIGH, MID, LOW = 0.8, 0.5, 0.1
TWO = (HIGH, HIGH, LOW, LOW, LOW, HIGH, HIGH, LOW, LOW, LOW, LOW, LOW)


@pytest.mark.parametrize(
    ("spec", "scores", "expected"),
    [
        # One stretch is too short; MID neither starts nor ends; one low stretch is a dip.
        (
            EventSpec(on=0.6, off=0.4, min_on_s=0.5, min_off_s=0.5),
            (LOW, HIGH, LOW, MID, HIGH, HIGH, MID, LOW, MID, LOW, LOW, LOW),
            [(0.875, 2.125)],
        ),
        (EventSpec(), TWO, [(0.0, 0.375), (1.125, 1.625)]),
        (EventSpec(merge_gap_s=1.0), TWO, [(0.0, 1.625)]),
        (EventSpec(merge_gap_s=0.75), TWO, [(0.0, 0.375), (1.125, 1.625)]),
        # What follows within the gap is too short to continue the event.
        (
            EventSpec(merge_gap_s=1.0, min_on_s=0.3),
            (HIGH, HIGH, HIGH, LOW, LOW, LOW, HIGH, *[LOW] * 5),
            [(0.0, 0.625)],
        ),
        (EventSpec(cooldown_s=1.0), (HIGH, LOW, *[HIGH] * 10), [(0.0, 0.125), (1.125, 3.0)]),
        (EventSpec(on=0.6, smooth_s=0.5), (LOW, LOW, HIGH, LOW, LOW), []),  # a single spike
    ],
)
def test_settings_decide_where_events_start_and_end(spec, scores, expected):
    assert spans(run(spec, one(*scores))) == expected


def test_updates_come_no_more_often_than_asked():
    events = run(EventSpec(update_s=0.5), one(*[0.6, 0.7, 0.9, 0.8, 0.7, 0.6, 0.9, 0.1]))
    assert [e.at for e in events] == [0.25, 0.75, 1.25, 1.75, 2.0]
    assert {e.kind for e in events[1:-1]} == {"update"}


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"ignore": ("dog",)}, {"rain"}),
        ({"watch": ("dog", "siren")}, {"dog"}),
        ({"overrides": {"dog": {"on": 0.8}, "rain": {"min_on_s": 0.6}}}, {"rain"}),
        ({"min_level_db": -50.0}, set()),
    ],
)
def test_labels_are_watched_ignored_and_overridden(settings, labels):
    detector = EventDetector(EventSpec(on=0.4, **settings), LABELS)
    results = windows([[0.55, 0.45, 0.0]] * 8)
    assert {e.label for r in results for e in detector.push(r, level_db=-60.0)} == labels


def test_a_gap_ends_what_it_outlasts_and_breaks_a_run():
    before, after = windows([[0.9, 0, 0]] * 8), windows([[0.9, 0, 0]] * 8, start=5.0)
    after[0] = dataclasses.replace(after[0], gap=24_000)
    events = run(EventSpec(update_s=None), before + after)
    assert spans(events) == [(0.0, 2.0), (5.0, 7.0)]
    assert [e.gap for e in events] == [False, True, True, True]
    (end,) = run(EventSpec(update_s=None, min_off_s=4.0), before + after)[1:]
    assert (end.t0, end.t1, end.gap) == (0.0, 7.0, True)


def test_an_event_knows_its_model_and_the_time_of_day():
    detector, events = EventDetector(EventSpec(update_s=None), LABELS), []
    for r in one(0.9, 0.9, 0.1, 0.9):
        named = dataclasses.replace(r, model="0123456789ab")
        events += detector.push(named, wall_t1=1.8e9 + r.t1)
    events += detector.finish()
    assert len(events) == 4
    for e in events:
        assert (e.model, e.wall_t0, e.wall_t1) == ("0123456789ab", 1.8e9 + e.t0, 1.8e9 + e.t1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": 1.2}, "on must be a number in 0..1"),
        ({"on": 0.3, "off": 0.4}, "not above on"),
        ({"min_off_s": math.inf}, "min_off_s must be"),
        ({"watch": ("dgo",)}, "no label 'dgo'. It has labels such as 'dog'"),
        ({"overrides": {"dog": {"smooth_s": 0.2}}}, "override for 'dog'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(StreamError) as error:
        EventDetector(EventSpec(**settings), LABELS)
    assert message in str(error.value)
    assert error.value.fix


def test_results_of_another_stream_are_refused():
    detector = EventDetector(EventSpec(), LABELS)
    detector.push(result(1, 2, 0.9, 0, 0))
    with pytest.raises(StreamError, match="does not continue"):
        detector.push(result(0, 1, 0.9, 0, 0))


seconds = st.sampled_from([0.0, 0.2, 0.25, 0.5, 1.0])
specs = st.builds(
    EventSpec, on=st.sampled_from([0.3, 0.5, 0.8]), off=st.sampled_from([None, 0.2, 0.3]),
    min_on_s=seconds, min_off_s=seconds, merge_gap_s=seconds, cooldown_s=seconds,
    smooth_s=st.sampled_from([0.0, 0.3]), update_s=st.sampled_from([None, 0.0, 0.6]),
    ignore=st.sampled_from([(), ("rain",)]),
)  # fmt: skip


@st.composite
def streams(draw):
    row = st.lists(st.sampled_from([0.0, 0.25, 0.4, 0.6, 0.9]), min_size=3, max_size=3)
    window = draw(st.sampled_from([0.25, 1.0]))
    results = []
    start = 0.0
    for _ in range(draw(st.integers(1, 3))):
        part = windows(draw(st.lists(row, min_size=1, max_size=16)), window, start)
        if results:
            part[0] = dataclasses.replace(part[0], gap=100)
        results += part
        start = part[-1].t1 + draw(st.sampled_from([0.1, 0.6, 3.0]))
    return results


@settings(max_examples=100, deadline=None)
@given(spec=specs, results=streams(), cut=st.integers(0, 40))
def test_promises_hold_for_any_scores(spec, results, cut):
    detector, events = EventDetector(spec, LABELS), []
    for i, r in enumerate(results):
        if i == cut:
            detector = pickle.loads(pickle.dumps(detector))  # a restart changes nothing
        events += detector.push(r)
    events += detector.finish()
    assert events == run(spec, results)
    assert not {e.label for e in events} & set(spec.ignore)
    for index, label in enumerate(LABELS):
        mine = [e for e in events if e.label == label]
        for before, e in pairwise([None, *mine, None]):  # starts and ends alternate
            assert (before is None or before.kind == "end") == (e is None or e.kind == "start")
        for e in mine:
            assert 0 <= e.t0 <= e.t1 <= results[-1].t1
            known = [float(r.scores[index]) for r in results if r.t1 <= e.at]
            assert e.score in known
            assert e.last_score == known[-1]
            if e.kind == "start":
                assert e.t1 - e.t0 >= spec.min_on_s - 1e-6
        for before, after in pairwise(e for e in mine if e.kind == "end"):
            pause = max(spec.min_off_s, spec.merge_gap_s, spec.cooldown_s)
            assert after.t0 - before.t1 >= pause - 1e-6
