"""Any operations in any order, good and bad: documented errors only, and still the right answer."""

from __future__ import annotations

import pickle
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, StreamError
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.stream import Result

MODES: dict[str, dict[str, Any]] = {
    "whole clip": {},
    "window": {"window_s": 0.6, "hop_s": 0.2},
    "forget": {"forget_s": 0.5, "hop_s": 0.1},
}
BAD_SAMPLES: list[Any] = [
    np.full(10, np.nan),
    np.array([0.1, np.inf], np.float32),
    np.full(10, 1000.0),
    np.zeros((5, 2), np.int16),
    np.zeros((1, 100), np.float32),
    np.zeros(5, np.int32),
    np.zeros(5, np.uint8),
    np.zeros(5, bool),
    np.zeros(5, complex),
    np.array(0.5),
    np.array(["a"]),
    np.array([None]),
    [1, 2, 3],
    [[0.1], [0.1, 0.2]],
    "audio",
    b"audio",
    None,
    3,
    {},
]
BAD_LOSSES: list[Any] = [-1, 1.0, None, "3", True, 1 << 50, np.nan, []]
NOISE = np.random.default_rng(5).uniform(-0.5, 0.5, 40_000)
KINDS = ("float32", "float64", "int16", "list", ">f4", "reversed")


class Streams(RuleBasedStateMachine):
    """One stream, and a record of what its answer must cover."""

    classifier: ClassVar[Classifier]
    offline: ClassVar[Any]
    rate: ClassVar[int]
    options: ClassVar[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.stream = self.classifier.stream(self.rate, **self.options)
        self.saved = self.snapshot()
        self.clear()

    def clear(self) -> None:
        """Back to 0 s."""
        self.clock = self.end = 0
        self.segments: list[tuple[int, list[np.ndarray]]] = []  # of the stretch: start, chunks
        self.open = False
        self.lost = 0

    def snapshot(self) -> tuple[Any, ...]:
        """The stream's state beside the record of it."""
        record = getattr(self, "clock", 0), getattr(self, "end", 0), getattr(self, "open", False)
        segments = [(start, list(chunks)) for start, chunks in getattr(self, "segments", [])]
        return pickle.dumps(self.stream.state()), record, segments, getattr(self, "lost", 0)

    def seen(self, results: list[Result]) -> None:
        """Check what must hold for every result; losses are told once."""
        for result in results:
            assert result.gap == self.lost
            assert 0 <= result.t0 < result.t1 <= self.end / self.rate
            assert np.isfinite(result.scores).all()
            self.lost = 0

    @rule(n=st.integers(0, 9000), at=st.integers(0, 30_000), kind=st.sampled_from(KINDS))
    def push(self, n: int, at: int, kind: str) -> None:
        x: Any = NOISE[at : at + n].astype(np.float32)
        if kind == "int16":
            x = (x * 32767).astype(np.int16)
        elif kind == "list":
            x = x[:200].tolist()
        elif kind == "reversed":
            x = x[::-1]
        else:
            x = x.astype(kind)
        heard = np.asarray(x, np.float32) / (32768 if kind == "int16" else 1)
        if len(heard):
            if not self.open:
                self.segments.append((self.clock, []))
            self.open = True
            self.segments[-1][1].append(heard)
            self.clock += len(heard)
            self.end = self.clock
        self.seen(self.stream.push(x))

    @rule(x=st.sampled_from(BAD_SAMPLES))
    def push_bad(self, x: Any) -> None:
        with pytest.raises(AudioError) as caught:
            self.stream.push(x)
        assert caught.value.fix

    @rule(lost=st.integers(0, 20_000))
    def gap(self, lost: int) -> None:
        results = self.stream.gap(lost)
        self.seen(results)
        self.clock += lost
        self.lost += lost
        self.open = False

    @rule(lost=st.integers(0, 20_000))
    def gap_and_forget(self, lost: int) -> None:
        self.check_last(self.stream.gap(lost, keep_pooling=False))
        self.clock += lost
        self.lost += lost
        self.segments, self.open = [], False

    @rule(lost=st.sampled_from(BAD_LOSSES), keep=st.booleans())
    def gap_bad(self, lost: Any, keep: bool) -> None:
        with pytest.raises(StreamError):
            self.stream.gap(lost, keep_pooling=keep)

    @rule()
    def flush(self) -> None:
        try:
            last = self.stream.flush()
        except AudioError:
            assert sum(len(c) for _, chunks in self.segments for c in chunks) < self.rate / 8000
        else:
            self.check_last([] if last is None else [last])
        self.clear()

    @rule()
    def reset(self) -> None:
        self.stream.reset()
        self.clear()

    @rule()
    def save(self) -> None:
        self.saved = self.snapshot()

    @rule(fresh=st.booleans())
    def load(self, fresh: bool) -> None:
        if fresh:
            self.stream = self.classifier.stream(self.rate, **self.options)
        state, record, segments, self.lost = self.saved
        self.stream.load_state(pickle.loads(state))
        self.clock, self.end, self.open = record
        self.segments = [(start, list(chunks)) for start, chunks in segments]

    @rule(data=st.data())
    def load_bad(self, data: st.DataObject) -> None:
        """A state with one leaf of another kind: refused, and nothing has changed."""
        state: Any = self.stream.state()
        inner: Any = state
        while isinstance(inner, dict):
            folder, key = inner, data.draw(st.sampled_from(sorted(inner)))
            inner = folder[key]
        folder[key] = data.draw(st.sampled_from([None, -1, 1 << 70, "x", [], np.zeros(3, bool)]))
        with pytest.raises(StreamError):
            self.stream.load_state(state)

    @precondition(lambda self: self.segments)
    @rule()
    def look(self) -> None:
        assert self.stream.stats.samples_in >= 0
        assert self.stream.stats.lag_s >= 0

    def check_last(self, results: list[Result]) -> None:
        """The last result against the frames of all segments, by definition."""
        heard = [(start, self.at_the_models_rate(chunks)) for start, chunks in self.segments]
        heard = [(start, x) for start, x in heard if len(x)]
        assert len(results) == bool(heard)
        if not heard:
            return
        self.seen(results)
        assert results[0].t1 == self.end / self.rate
        frame_s = self.offline.info.frame_s
        frames = [self.offline.frames(x) for _, x in heard]
        slots: list[int] = []
        for (start, _), frames_Cn in zip(heard, frames, strict=True):
            passed = int((start - heard[0][0]) / self.rate / frame_s + 0.5 + 1e-9)
            first = max(passed, slots[-1] + 1 if slots else 0)
            slots += range(first, first + frames_Cn.shape[1])
        n = slots[-1] + 1
        hop = round(self.options.get("hop_s", 0) / frame_s)
        weights_n = self.offline.weights(n, hop, self.options)[slots]
        expected = self.offline.logits(np.concatenate(frames, axis=1), weights_n)
        assert np.abs(results[0].logits - expected).max() <= 1e-5

    def at_the_models_rate(self, chunks: list[np.ndarray]) -> np.ndarray:
        """(N,) samples of one segment."""
        x = np.concatenate(chunks)
        if self.rate == 8000:
            return x
        resampler = Resampler(self.rate, 8000)
        return np.concatenate([resampler.push(x), resampler.flush()])


@pytest.mark.parametrize("rate", [8000, 44_100])
@pytest.mark.parametrize("mode", MODES)
def test_any_operations_in_any_order(
    classifier: Classifier, tiny: Any, stream_equality: ModuleType, mode: str, rate: int
) -> None:
    pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")

    class Machine(Streams):
        """With this model, mode and rate."""

    Machine.classifier, Machine.offline = classifier, stream_equality.Offline(tiny.data)
    Machine.rate, Machine.options = rate, MODES[mode]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
