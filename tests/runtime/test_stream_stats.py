"""What a stream counts, and that counting costs no memory."""

from __future__ import annotations

import dataclasses
import sys
import tracemalloc

import numpy as np
import pytest

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.stream import STEPS_KEPT, Meter


def test_everything_is_counted(classifier: Classifier, clip: np.ndarray) -> None:
    stream, info = classifier.stream(window_s=1.0, hop_s=0.2), classifier.info
    assert dataclasses.asdict(stream.stats) == dict.fromkeys(dataclasses.asdict(stream.stats), 0)
    assert stream.stats.real_time_factor == 0.0
    results = []
    for start in range(0, 20_000, 1000):
        results += stream.push(clip[start : start + 1000])
    results += stream.gap(4000)
    results += stream.push(clip[20_000:])
    with pytest.raises(AudioError):
        stream.push(np.full(5, np.nan))
    last = stream.flush()
    assert last is not None
    stats = stream.stats
    lengths = 20_000, len(clip) - 20_000
    mels = [info.mel.frames(n) for n in lengths]
    assert stats.samples_in == len(clip)
    assert stats.audio_s == len(clip) / 8000
    assert (stats.dropped, stats.gaps) == (4000, 1)
    assert stats.mel_frames == sum(mels)
    assert stats.frames == sum(info.trunk_frames(n) for n in mels)
    assert stats.results == len(results) + 1
    assert stats.steps == 23
    assert 0 < stats.p50_step_ms <= stats.p99_step_ms <= stats.max_step_ms
    assert stats.max_step_ms <= stats.busy_s * 1e3 < 60_000
    assert stats.real_time_factor == stats.busy_s / stats.audio_s
    stream.reset()
    assert stream.stats == stats


def test_lag_is_the_audio_that_no_frame_covers(classifier: Classifier, clip: np.ndarray) -> None:
    stream, mel = classifier.stream(hop_s=0.02), classifier.info.mel
    assert stream.push(clip[:500]) == []
    assert stream.stats.lag_s == 500 / 8000
    results = stream.push(clip[500:8000])
    assert stream.stats.lag_s == pytest.approx(1.0 - results[-1].t1)
    stream.gap(80_000)
    assert stream.stats.lag_s == 0.0
    results = stream.push(clip[:8000])
    assert stream.stats.lag_s == pytest.approx(12.0 - results[-1].t1)
    # At most one more trunk frame and the carry of the mel are missing.
    assert stream.stats.lag_s < classifier.info.frame_s + mel.n_fft / 8000
    stream.flush()
    assert stream.stats.lag_s == 0.0


def test_percentiles_are_of_the_latest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, now = Meter(8000), 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    for i in range(3 * STEPS_KEPT):
        now += 10.0 if i < STEPS_KEPT else 0.001 * (1 + i % 100)
        meter.step(now - (10.0 if i < STEPS_KEPT else 0.001 * (1 + i % 100)))
    stats = meter.stats(0.5)
    assert stats.steps == 3 * STEPS_KEPT
    assert stats.p50_step_ms == pytest.approx(50, abs=2)
    assert stats.p99_step_ms == pytest.approx(99, abs=2)
    assert stats.max_step_ms == pytest.approx(10_000)
    assert stats.lag_s == 0.5


def test_a_group_adds_up(classifier: Classifier, clip: np.ndarray) -> None:
    group = classifier.streams(3, hop_s=0.2)
    group.push([clip[:9000], None, clip[:3000]])
    group.gap(2, 40)
    one, all_of_them = group.stats_of(0), group.stats
    assert (one.samples_in, one.dropped) == (9000, 0)
    assert (all_of_them.samples_in, all_of_them.dropped, all_of_them.gaps) == (12_000, 40, 1)
    assert all_of_them.results == sum(group.stats_of(i).results for i in range(3))
    assert all_of_them.lag_s == one.lag_s
    assert all_of_them.steps == 2
    assert all_of_them.busy_s > 0


def test_an_endless_stream_keeps_its_memory(classifier: Classifier, clip: np.ndarray) -> None:
    stream = classifier.stream(window_s=1.0, hop_s=0.1)

    def listen(seconds: int) -> None:
        for i in range(seconds):
            stream.push(clip[:8000])
            if i % 7 == 0:
                stream.gap(i)
            assert stream.stats.steps

    listen(40)
    tracemalloc.start()
    try:
        listen(20)
        before = tracemalloc.get_traced_memory()[0]
        listen(200)
        # The mel keeps some views of its block, 50 kB at most; 500 B a push would show.
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    assert sys.getsizeof(stream.state()) < 10_000
