"""The gate: no onset is lost, answers behind the pre-roll are exact, a quiet room costs little."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_kit import same

from frami_edge_runtime import Classifier, StreamError
from frami_edge_runtime.gate import PRE_ROLL_S

RATE = 8000
ONSETS = (9.3, 21.0, 34.77)  # seconds
SOUND_S = 0.4
STREAM = {"window_s": 1.0, "hop_s": 0.25}


def room():
    """A quiet room with three sounds."""
    rng = np.random.default_rng(0)
    x = 3e-4 * rng.standard_normal(45 * RATE)
    for onset in ONSETS:
        start, t = round(onset * RATE), np.arange(round(SOUND_S * RATE)) / RATE
        x[start : start + len(t)] += 0.05 * np.sin(2 * np.pi * 700 * t) * (1 + 0.5 * np.sin(60 * t))
    return x.astype(np.float32)


def run(classifier, chunks, **more):
    stream = classifier.stream(**{**STREAM, **more})
    results = [result for chunk in chunks for result in stream.push(chunk)]
    last = stream.flush()
    return results if last is None else [*results, last]


def same_near(onset, plain, gated):
    """Whether there are results from the pre-roll of an onset on, and they are the same."""
    one, two = (
        [r for r in results if onset - PRE_ROLL_S <= r.t1 <= onset + 1.4]
        for results in (plain, gated)
    )
    return len(one) >= 6 and same(one, two)


@given(
    cuts=st.lists(st.integers(1, 45 * RATE - 1), max_size=12),
    end=st.integers(8 * RATE, 45 * RATE),
    as_int16=st.booleans(),
    window=st.sampled_from([(1.0, 0.25), (0.6, 0.2), (2.0, 0.5)]),
)
@settings(max_examples=15, deadline=None)
def test_answers_from_the_pre_roll_on_are_exact_in_any_chunking(
    classifier, cuts, end, as_int16, window
):
    x = room()[:end]
    if as_int16:
        x = np.round(x * 32768).astype(np.int16)
    options = dict(zip(("window_s", "hop_s"), window, strict=True))
    plain = run(classifier, [x], **options)
    gated = run(classifier, np.split(x, sorted(cuts)), gate_db=-50, **options)
    exact = {(r.t0, r.t1): r.logits for r in plain}
    held_s, before = 0.0, gated[0]
    for ours in gated:
        near = any(o - PRE_ROLL_S <= ours.t1 and ours.t0 < o + SOUND_S for o in ONSETS)
        if not np.array_equal(ours.logits, exact[ours.t0, ours.t1]):
            # Only among quiet windows, and what is repeated is the answer to a quiet window.
            np.testing.assert_array_equal(ours.logits, before.logits)
            assert not near
            held_s += ours.t1 - before.t1
        if near or ours is gated[-1]:
            np.testing.assert_array_equal(ours.logits, exact[ours.t0, ours.t1])
        assert ours.t1 - before.t1 < 2 * window[0] + 1
        before = ours
    # Around a sound there are as many results as without a gate.
    sounds = [o for o in ONSETS if o + 1.5 < end / RATE]
    for onset in sounds:
        count = [sum(onset <= r.t1 <= onset + 1 for r in results) for results in (gated, plain)]
        assert count[0] == count[1]
    assert held_s > end / RATE - (1 + len(ONSETS)) * (2 * window[0] + 2)


def test_a_soft_hiss_over_rumble_opens_the_gate(classifier):
    rng = np.random.default_rng(1)
    t = np.arange(20 * RATE) / RATE
    x = 3e-3 * np.sin(2 * np.pi * 40 * t) + 1e-5 * rng.standard_normal(len(t))
    x[15 * RATE : 16 * RATE] += 5e-4 * rng.standard_normal(RATE)  # 15 dB below the rumble
    plain, gated = run(classifier, [x]), run(classifier, [x], gate_db=-40)
    assert same_near(15.0, plain, gated)


def test_gaps_resets_and_other_rates(build_model):
    pytest.importorskip("soxr")
    classifier = Classifier(build_model(context=None).data)
    x = np.repeat(room(), 2)
    stream, plain = (classifier.stream(16_000, **STREAM, **more) for more in ({"gate_db": -50}, {}))
    for each in (stream, plain):
        each.push(x[:160_000])
        each.gap(16_000)
        each.push(x[160_000:])
    first, second = stream.flush(), plain.flush()
    assert (first.t0, first.t1) == (second.t0, second.t1)
    np.testing.assert_array_equal(first.logits, second.logits)


@pytest.mark.parametrize(
    "front_end", [{"center": True}, {"pre_emphasis": 0.97, "center": True, "hop_length": 77}]
)
def test_other_front_ends(build_model, front_end):
    tiny = build_model(stride=1)
    classifier = Classifier(build_model(tiny.info.mel.replace(**front_end), stride=1).data)
    plain, gated = run(classifier, [room()]), run(classifier, [room()], gate_db=-50)
    assert all(same_near(onset, plain, gated) for onset in ONSETS)
    np.testing.assert_array_equal(gated[-1].logits, plain[-1].logits)


def test_a_quiet_room_needs_no_model_and_no_log_mel(classifier):
    quiet = (3e-4 * np.random.default_rng(2).standard_normal(120 * RATE)).astype(np.float32)
    stream = classifier.stream(**STREAM, gate_db=-50)
    stream.push(quiet[: 5 * RATE])
    opened = stream.stats
    cpu_s = {}
    for gated in (stream, classifier.stream(**STREAM)):
        begin = time.process_time()
        for i in range(5 * RATE, len(quiet), RATE // 10):
            gated.push(quiet[i : i + RATE // 10])
        cpu_s[gated] = time.process_time() - begin
    assert (stream.stats.frames, stream.stats.mel_frames) == (opened.frames, opened.mel_frames)
    assert opened.frames < 2 / classifier.info.frame_s
    assert 100 < stream.stats.results < 130  # its last answer holds: one for each window
    assert cpu_s[stream] < 0.5 * sum(cpu_s.values())


def test_a_sound_costs_the_windows_that_contain_it(classifier):
    stream = classifier.stream(**STREAM, gate_db=-50)
    x = room()
    for i in range(0, len(x), RATE // 10):
        stream.push(x[i : i + RATE // 10])
    # The first window; then for each sound: a window before and behind it, the pre-roll, and what
    # is lost to rounding to hops and blocks.
    most_s = 1.7 + len(ONSETS) * (1 + SOUND_S + 1 + PRE_ROLL_S + 0.7)
    assert stream.stats.frames * classifier.info.frame_s < most_s
    assert stream.stats.mel_frames * classifier.info.mel.hop_s < most_s + 0.1 * len(ONSETS)


def test_what_a_gate_cannot_do_is_refused(classifier):
    for options in ({}, {"forget_s": 1.0}, {"window_s": 8.0, "hop_s": 4.0}):
        with pytest.raises(StreamError, match="A gate needs window_s"):
            classifier.stream(gate_db=-50, **options)
    with pytest.raises(StreamError, match="gate_db must be a level"):
        classifier.stream(window_s=1.0, gate_db=3)
    with pytest.raises(StreamError, match="cannot be saved"):
        classifier.stream(window_s=1.0, gate_db=-50).state()
