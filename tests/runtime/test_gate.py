"""The gate: no onset is lost, answers behind the pre-roll are exact, a quiet room costs little."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime import Classifier, StreamError
from frami_edge_runtime.gate import PRE_ROLL_S

RATE = 8000
ONSETS = (9.3, 21.0, 34.77)  # seconds
STREAM = {"window_s": 1.0, "hop_s": 0.25}


def room() -> np.ndarray:
    """A quiet room with three sounds of 0.4 s."""
    rng = np.random.default_rng(0)
    x = 3e-4 * rng.standard_normal(45 * RATE)
    for onset in ONSETS:
        start, t = round(onset * RATE), np.arange(round(0.4 * RATE)) / RATE
        x[start : start + len(t)] += 0.05 * np.sin(2 * np.pi * 700 * t) * (1 + 0.5 * np.sin(60 * t))
    return x.astype(np.float32)


def run(classifier: Classifier, chunks: list[np.ndarray], **more: Any) -> list[Any]:
    stream = classifier.stream(**STREAM, **more)
    results = [result for chunk in chunks for result in stream.push(chunk)]
    last = stream.flush()
    return results if last is None else [*results, last]


@given(cuts=st.lists(st.integers(1, 45 * RATE - 1), max_size=12), as_int16=st.booleans())
@settings(max_examples=25, deadline=None)
def test_answers_from_the_pre_roll_on_are_exact_in_any_chunking(
    classifier: Classifier, cuts: list[int], as_int16: bool
) -> None:
    x = room()
    if as_int16:
        x = np.round(x * 32768).astype(np.int16)
    plain = run(classifier, [x])
    gated = run(classifier, np.split(x, sorted(cuts)), gate_db=-50)
    # The last seconds are quiet: what is pending at the end is part of the last result.
    times = [(r.t0, r.t1) for r in plain]
    assert [(r.t0, r.t1) for r in gated] == [*times[: len(gated) - 1], times[-1]]
    assert len(plain) - len(gated) < 12
    for onset in ONSETS:
        after = [i for i, r in enumerate(plain) if onset - PRE_ROLL_S <= r.t1 <= onset + 1.5]
        assert len(after) >= 6
        for i in after:
            np.testing.assert_array_equal(gated[i].logits, plain[i].logits)
    pairs = zip(gated[:-1], plain, strict=False)
    held = sum(not np.array_equal(a.logits, b.logits) for a, b in pairs)
    assert held > len(plain) // 3  # it did skip
    np.testing.assert_array_equal(gated[-1].logits, plain[-1].logits)


def test_a_soft_hiss_over_rumble_opens_the_gate(classifier: Classifier) -> None:
    rng = np.random.default_rng(1)
    t = np.arange(20 * RATE) / RATE
    x = 3e-3 * np.sin(2 * np.pi * 40 * t) + 1e-5 * rng.standard_normal(len(t))
    x[15 * RATE : 16 * RATE] += 5e-4 * rng.standard_normal(RATE)  # 15 dB below the rumble
    plain, gated = run(classifier, [x]), run(classifier, [x], gate_db=-40)
    inside = [i for i, r in enumerate(plain) if 15 <= r.t1 <= 16.5]
    assert all(np.array_equal(gated[i].logits, plain[i].logits) for i in inside)


def test_gaps_resets_and_other_rates(build_model: Callable[..., Any]) -> None:
    pytest.importorskip("soxr")
    classifier = Classifier(build_model(context=None).data)
    x = np.repeat(room(), 2)
    stream, plain = (classifier.stream(16_000, **STREAM, **more) for more in ({"gate_db": -50}, {}))
    for each in (stream, plain):
        each.push(x[:160_000])
        each.gap(16_000)
        each.push(x[160_000:])
    first, second = stream.flush(), plain.flush()
    assert first is not None
    assert second is not None
    assert (first.t0, first.t1) == (second.t0, second.t1)
    np.testing.assert_array_equal(first.logits, second.logits)


def test_a_quiet_room_costs_little(classifier: Classifier) -> None:
    quiet = (3e-4 * np.random.default_rng(2).standard_normal(120 * RATE)).astype(np.float32)
    cpu_s = {}
    for gate_db in (None, -50.0):
        stream = classifier.stream(**STREAM, gate_db=gate_db)
        begin = time.process_time()
        for i in range(0, len(quiet), RATE // 10):
            stream.push(quiet[i : i + RATE // 10])
        cpu_s[gate_db] = time.process_time() - begin
        frames = stream.stats.frames
    assert frames < 0.05 * 120 / classifier.info.frame_s
    assert cpu_s[-50.0] < cpu_s[None]


def test_what_a_gate_cannot_do_is_refused(classifier: Classifier) -> None:
    for options in ({}, {"forget_s": 1.0}, {"window_s": 8.0, "hop_s": 4.0}):
        with pytest.raises(StreamError, match="A gate needs window_s"):
            classifier.stream(gate_db=-50, **options)
    with pytest.raises(StreamError, match="gate_db must be a level"):
        classifier.stream(window_s=1.0, gate_db=3)
    with pytest.raises(StreamError, match="cannot be saved"):
        classifier.stream(window_s=1.0, gate_db=-50).state()
