"""Any chunking and any operations in any order give the offline answer, and only known errors."""

import pickle
import tracemalloc
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from stream_kit import MODES, NO_SOXR, Offline, ended, listen, same

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, StreamError
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.stream import STEPS_KEPT, StreamStats

CHUNKS = st.lists(st.one_of(st.integers(0, 200), st.integers(0, 9000)), max_size=25)
MORE_MODES = {
    **MODES,
    "whole clip, long hop": {"hop_s": 2.1},
    "window of one hop": {"window_s": 0.3, "hop_s": 0.3},
    "forget, hop of one frame": {"forget_s": 0.3, "hop_s": 0.001},
}


@pytest.fixture(scope="module", params=["tiny", "causal"])
def classifier(request):
    return Classifier(request.getfixturevalue(request.param).data)


@pytest.mark.parametrize("mode", MORE_MODES)
@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 30_001), chunks=CHUNKS)
def test_any_chunking_gives_the_same_bits(classifier, clip, mode, length, chunks):
    x = clip[:length]
    whole = listen(classifier.stream(**MORE_MODES[mode]), x, [])
    assert same(listen(classifier.stream(**MORE_MODES[mode]), x, chunks), whole)
    assert all(0 <= r.t0 < r.t1 <= length / 8000 for r in whole)
    if mode == "whole clip":
        assert same(whole, [classifier.classify(x)])
    if mode.startswith("whole"):
        assert np.abs(whole[-1].logits - classifier.classify(x).logits).max() <= 1e-5


@pytest.mark.parametrize("kind", ["centred", "kaldi", "stride 3", "int8"])
def test_other_models_stream_as_exactly(build_model, build_quantised, clip, kind):
    spec = build_model().info.mel.replace(center=True)
    kaldi = spec.replace(center=False, framing="window", remove_dc=True, pre_emphasis=0.97)
    data = {
        "centred": lambda: build_model(spec.replace(pre_emphasis=0.97)).data,
        "kaldi": lambda: build_model(kaldi).data,
        "stride 3": lambda: build_model(stride=3, channels=5, seed=2).data,
        "int8": build_quantised,
    }[kind]()
    classifier = Classifier(data)
    for length in (1, 128, 129, 700, 30_001):
        for options in MODES.values():
            whole = listen(classifier.stream(**options), clip[:length], [])
            chunked = listen(classifier.stream(**options), clip[:length], [1, 127, 50, 80, 4000])
            assert same(chunked, whole)


class Streams(RuleBasedStateMachine):
    """One stream, and a record of what its answers must cover."""

    classifier: ClassVar[Classifier]
    rate: ClassVar[int]
    options: ClassVar[dict[str, Any]]
    noise = np.random.default_rng(5).uniform(-0.5, 0.5, 40_000)

    def __init__(self):
        super().__init__()
        self.offline = Offline(self.classifier)
        self.stream = self.classifier.stream(self.rate, **self.options)
        self.clear()
        self.save()

    def clear(self):
        """Back to 0 s."""
        self.clock = self.end = self.lost = 0
        self.segments = []  # of the stretch: start, chunks
        self.open = False

    def seen(self, results):
        for result in results:
            assert result.gap == self.lost
            assert 0 <= result.t0 < result.t1 <= self.end / self.rate
            self.lost = 0

    @rule(
        n=st.integers(0, 9000),
        at=st.integers(0, 30_000),
        kind=st.sampled_from(["float32", "float64", "int16", ">f4"]),
    )
    def push(self, n, at, kind):
        x = self.noise[at : at + n]
        x = (x * 32767).astype(np.int16) if kind == "int16" else x.astype(kind)
        if n:
            if not self.open:
                self.segments.append((self.clock, []))
            self.open = True
            scale = 32768 if kind == "int16" else 1
            self.segments[-1][1].append(np.asarray(x, np.float32) / np.float32(scale))
            self.clock += n
            self.end = self.clock
        self.seen(self.stream.push(x))

    @rule(x=st.sampled_from([np.full(9, np.nan), np.zeros((5, 2), np.int16), [1, 2], "x", None]))
    def push_bad(self, x):
        with pytest.raises(AudioError) as caught:
            self.stream.push(x)
        assert caught.value.fix

    @rule(lost=st.integers(0, 20_000), keep=st.booleans())
    def gap(self, lost, keep):
        results = self.stream.gap(lost, keep_pooling=keep)
        if keep:
            self.seen(results)
        else:
            self.check_last(results)
            self.segments = []
        self.clock += lost
        self.lost += lost
        self.open = False

    @rule(lost=st.sampled_from([-1, 1.0, None]))
    def gap_bad(self, lost):
        with pytest.raises(StreamError, match="lost_samples"):
            self.stream.gap(lost)

    @rule()
    def flush(self):
        try:
            last = self.stream.flush()
        except AudioError:
            assert sum(len(c) for _, chunks in self.segments for c in chunks) < self.rate / 8000
        else:
            self.check_last([] if last is None else [last])
        self.clear()

    @rule()
    def reset(self):
        self.stream.reset()
        self.clear()

    @rule()
    def save(self):
        segments = [(start, list(chunks)) for start, chunks in self.segments]
        record = (self.clock, self.end, self.lost, self.open, segments)
        self.saved = pickle.dumps((self.stream.state(), record))

    @rule(fresh=st.booleans())
    def load(self, fresh):
        if fresh:
            self.stream = self.classifier.stream(self.rate, **self.options)
        state, record = pickle.loads(self.saved)
        self.stream.load_state(state)
        self.clock, self.end, self.lost, self.open, self.segments = record

    @rule(data=st.data())
    def load_bad(self, data):
        """A state with one leaf of another kind: refused, and nothing has changed."""
        state = self.stream.state()
        inner = state
        while isinstance(inner, dict):
            folder, key = inner, data.draw(st.sampled_from(sorted(inner)))
            inner = folder[key]
        folder[key] = data.draw(st.sampled_from([None, -1, 1 << 70, "x", [], np.zeros(3, bool)]))
        with pytest.raises(StreamError):
            self.stream.load_state(state)

    def check_last(self, results):
        """The last result against the frames of all segments, by definition."""
        pieces = [(start, self.at_the_models_rate(chunks)) for start, chunks in self.segments]
        pieces = [(start, x) for start, x in pieces if len(x)]
        assert len(results) == bool(pieces)
        if not pieces:
            return
        self.seen(results)
        assert results[0].t1 == self.end / self.rate
        frames = [self.offline.frames(x) for _, x in pieces]
        starts = [(start, f.shape[1]) for (start, _), f in zip(pieces, frames, strict=True)]
        slots = self.offline.slots(starts, self.rate)
        weights = self.offline.weights(slots, int(slots[-1]) + 1, self.options)
        expected = self.offline.logits(np.concatenate(frames, axis=1), weights)
        assert np.abs(results[0].logits - expected).max() <= 1e-5

    def at_the_models_rate(self, chunks):
        x = np.concatenate(chunks)
        if self.rate == 8000:
            return x
        resampler = Resampler(self.rate, 8000)
        return np.concatenate([resampler.push(x), resampler.flush()])


@pytest.mark.parametrize("rate", [8000, 44_100])
@pytest.mark.parametrize("mode", ["whole clip", "window", "forget"])
def test_any_operations_in_any_order(classifier, mode, rate):
    if rate != 8000:
        pytest.importorskip("soxr", reason=NO_SOXR)
    machine = type("Machine", (Streams,), {})
    machine.classifier, machine.rate, machine.options = classifier, rate, MODES[mode]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_time_stamps_follow_the_sample_clock(classifier, clip):
    stream = classifier.stream(window_s=0.4, hop_s=0.2)
    stream.push(clip[:8000])
    stream.gap(80_000)
    assert stream.push(clip[:1]) == []
    after = stream.push(clip[1:8000])
    assert [r.gap for r in after] == [80_000] + [0] * (len(after) - 1)
    assert after[0].t0 == 11.0
    assert all(11.0 < r.t1 <= 12.0 for r in after)
    # Results fall due by the clock: every 0.2 s from the start of the stream, as without a gap.
    even = classifier.stream(window_s=0.4, hop_s=0.2).push(np.tile(clip, 4)[:96_000])
    assert [r.t1 for r in after] == pytest.approx([r.t1 for r in even if r.t1 > after[0].t1 - 0.1])
    assert ended(stream)[0].t1 == 12.0
    assert stream.push(clip[:8000])[0].t0 == 0.0


def test_results_cover_their_window_with_context_at_the_ends_only(classifier, clip):
    offline, options = Offline(classifier), {"window_s": 1.0, "hop_s": 0.5}
    info = classifier.info
    *results, last = listen(classifier.stream(**options), clip, [999] * 30)
    hop, context = 25, info.context
    after_s = (context.right * info.mel.hop_length + info.mel.n_fft) / 8000
    frames = offline.frames(clip)
    for k, result in enumerate(results):
        start, end = max(0, hop * (k - 1)), hop * (k + 1)
        expected = offline.logits(frames[:, start:end], np.ones(end - start))
        assert np.abs(result.logits - expected).max() <= 1e-4
        assert result.t0 == pytest.approx(max(0.0, start * info.frame_s - context.left * 0.01))
        assert result.t1 == pytest.approx((end - 1) * info.frame_s + after_s)
    assert len(results) == 7
    assert last.t1 == len(clip) / 8000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_s": 1.0, "forget_s": 1.0}, "exclude each other"),
        ({"window_s": 0.2, "hop_s": 0.5}, "skipped"),
        ({"window_s": 0}, "window_s"),
        ({"hop_s": float("nan")}, "hop_s"),
        ({"window_s": 500_000.0, "hop_s": 0.02}, "hops"),
    ],
)
def test_absurd_durations_are_refused(classifier, options, words):
    with pytest.raises(StreamError, match=words):
        classifier.stream(**options)


def test_durations_are_rounded_and_reported(classifier):
    stream = classifier.stream(window_s=1.0, hop_s=0.3)
    assert (stream.hop_s, stream.window_s) == pytest.approx((0.3, 0.9))
    assert (classifier.stream().hop_s, classifier.stream().window_s) == (None, None)
    assert classifier.stream(window_s=1.0).hop_s == pytest.approx(0.26)
    assert classifier.stream(forget_s=60.0).hop_s == pytest.approx(0.5)
    assert classifier.stream(hop_s=1e-6).hop_s == pytest.approx(classifier.info.frame_s)


def test_everything_is_counted(classifier, clip):
    stream, info = classifier.stream(window_s=1.0, hop_s=0.2), classifier.info
    assert stream.stats == StreamStats()
    results = []
    for start in range(0, 20_000, 1000):
        results += stream.push(clip[start : start + 1000])
    results += stream.gap(4000)
    results += stream.push(clip[20_000:])
    with pytest.raises(AudioError):
        stream.push(np.full(5, np.nan))
    assert stream.flush() is not None
    stats = stream.stats
    mels = [info.mel.frames(n) for n in (20_000, len(clip) - 20_000)]
    assert (stats.samples_in, stats.audio_s) == (len(clip), len(clip) / 8000)
    assert (stats.dropped, stats.gaps, stats.steps) == (4000, 1, 23)
    assert (stats.mel_frames, stats.results) == (sum(mels), len(results) + 1)
    assert stats.frames == sum(info.trunk_frames(n) for n in mels)
    assert 0 < stats.p50_step_ms <= stats.p99_step_ms <= stats.max_step_ms <= stats.busy_s * 1e3
    assert stats.real_time_factor == stats.busy_s / stats.audio_s
    stream.reset()
    assert stream.stats == stats


def test_lag_is_the_audio_that_no_frame_covers(classifier, clip):
    stream, info = classifier.stream(hop_s=0.02), classifier.info
    stream.push(clip[:200])
    assert stream.stats.lag_s == 200 / 8000
    results = stream.push(clip[200:8000])
    assert stream.stats.lag_s == pytest.approx(1.0 - results[-1].t1)
    # At most one more trunk frame and the carry of the mel are missing.
    assert stream.stats.lag_s < info.frame_s + info.mel.n_fft / 8000
    stream.gap(80_000)
    assert stream.stats.lag_s == 0.0


@pytest.mark.parametrize("classifier", ["tiny"], indirect=True)
def test_an_endless_stream_keeps_its_memory(classifier, clip):
    stream = classifier.stream(window_s=1.0, hop_s=0.1)

    def run(seconds):
        for i in range(seconds):
            stream.push(clip[: 8000 - 37 * (i % 100)])
            if i % 7 == 0:
                stream.gap(i)
            assert stream.stats.steps

    run(40)
    tracemalloc.start()
    try:
        run(20)
        before = tracemalloc.get_traced_memory()[0]
        run(STEPS_KEPT // 5)
        # The mel keeps some views of its block, 50 kB at most; 500 B per push would show.
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    assert len(pickle.dumps(stream.state())) < 30_000
