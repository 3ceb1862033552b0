"""The ring between a microphone and its reader: nothing is lost in silence, whatever the timing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.capture import SampleRing
from frami_edge_runtime.errors import AudioError

RATE = 8000


def ramp(start: int, count: int) -> np.ndarray:
    """Samples that say their own position on the clock."""
    return (np.arange(start, start + count) % 30_000).astype(np.int16)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 25)),
        st.tuples(st.just("lose"), st.integers(0, 9)),
        st.tuples(st.just("read"), st.integers(1, 25)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps=steps)
def test_the_clock_stays_true_whatever_is_lost(steps: list[tuple[str, int]]) -> None:
    ring = SampleRing(10, 1.0)  # 10 samples
    clock = heard = 0
    written = lost_all = 0

    def check(block: tuple[np.ndarray, int] | None) -> None:
        nonlocal heard, lost_all
        assert block is not None
        samples, lost = block
        heard += lost
        lost_all += lost
        np.testing.assert_array_equal(samples, ramp(heard, len(samples)))
        heard += len(samples)

    for action, n in steps:
        if action == "write":
            ring.write(ramp(clock, n))
            clock += n
            written += n
        elif action == "lose":
            ring.lose(n)
            clock += n
        else:
            check(ring.read(n, timeout=0))
    stats = ring.stats
    assert stats.samples_in == written
    ring.write(ramp(clock, 1))  # what was lost last is told with the sample after it
    clock += 1
    ring.close()
    while (block := ring.read()) is not None:
        check(block)
    assert heard == clock
    assert ring.stats.dropped == lost_all
    assert ring.stats.max_lag_s <= 1.0


def test_reads_stop_where_samples_were_lost() -> None:
    ring = SampleRing(RATE, 1.0)
    ring.write(ramp(0, 5))
    ring.lose(3)
    ring.lose(4)
    ring.write(ramp(12, 5))
    assert [(len(x), lost) for x, lost in (ring.read(), ring.read())] == [(5, 0), (5, 7)]  # type: ignore[misc]
    assert (ring.stats.dropped, ring.stats.overruns) == (7, 2)


def test_a_chunk_longer_than_the_ring_leaves_its_end() -> None:
    ring = SampleRing(10, 1.0)
    ring.write(ramp(0, 4))
    assert ring.write(ramp(4, 16)) == 10
    samples, lost = ring.read()  # type: ignore[misc]
    assert lost == 10
    np.testing.assert_array_equal(samples, ramp(10, 10))


def test_raise_leaves_the_ring_as_it_was() -> None:
    ring = SampleRing(10, 1.0, "raise")
    ring.write(ramp(0, 8))
    with pytest.raises(AudioError, match="is full"):
        ring.write(ramp(8, 3))
    assert len(ring.read()[0]) == 8  # type: ignore[index]
    assert ring.stats.dropped == 0


def test_block_waits_and_loses_nothing() -> None:
    ring = SampleRing(10, 1.0, "block")
    writer = threading.Thread(target=lambda: (ring.write(ramp(0, 1000)), ring.close()))
    writer.start()
    parts = []
    while (block := ring.read(7, timeout=5)) is not None:
        assert block[1] == 0
        parts.append(block[0])
    writer.join(5)
    np.testing.assert_array_equal(np.concatenate(parts), ramp(0, 1000))


def test_closing_frees_a_writer_that_waits() -> None:
    ring = SampleRing(10, 1.0, "block")
    writer = threading.Thread(target=ring.write, args=(ramp(0, 1000),))
    writer.start()
    ring.close()
    writer.join(5)
    assert not writer.is_alive()


def test_threads_racing_lose_count_of_nothing() -> None:
    ring = SampleRing(100, 1.0)

    def write() -> None:
        for i in range(0, 30_000, 30):
            ring.write(ramp(i, 30))
        ring.close()

    writer = threading.Thread(target=write)
    writer.start()
    heard = 0
    while (block := ring.read(17, timeout=5)) is not None:
        heard += block[1]
        np.testing.assert_array_equal(block[0], ramp(heard, len(block[0])))
        heard += len(block[0])
    writer.join(5)
    assert heard == 30_000


def test_an_error_comes_after_the_last_sample() -> None:
    ring = SampleRing(10, 1.0)
    ring.write(ramp(0, 3))
    ring.fail(AudioError("Unplugged."))
    assert len(ring.read()[0]) == 3  # type: ignore[index]
    with pytest.raises(AudioError, match="Unplugged"):
        ring.read()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e9])
def test_absurd_rings_are_refused(seconds: float) -> None:
    with pytest.raises(AudioError, match="cannot be allocated"):
        SampleRing(RATE, seconds)
    with pytest.raises(AudioError, match="no policy"):
        SampleRing(RATE, 1.0, "hope")  # type: ignore[arg-type]


def test_more_than_a_tenth_lost_in_five_minutes_is_said_once() -> None:
    ring, said = SampleRing(10, 10.0), []
    for second in range(900):
        ring.write(ramp(0, 8))
        ring.lose(2)
        ring.read()
        if text := ring.warning():
            said.append((second, text))
    assert [second // 300 for second, _ in said] == [0, 1, 2]
    assert said[0][1].startswith("20 % of the audio of the last 5 minutes")


def test_a_twentieth_lost_is_not_worth_a_warning() -> None:
    ring = SampleRing(10, 10.0)
    for _ in range(400):
        ring.write(ramp(0, 19))
        ring.lose(1)
        ring.read()
        assert ring.warning() is None
