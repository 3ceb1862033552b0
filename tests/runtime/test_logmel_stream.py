"""A stream of log-mels equals its offline answer bit for bit, whatever the chunking."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime import logmel as _rfft
from frami_edge_runtime.errors import AudioError, MelSpecError, StreamError
from frami_edge_runtime.logmel import LogMelStream, MelBlock, log_mel
from frami_edge_runtime.melspec import MelSpec

RNG = np.random.default_rng(7)
NOISE = (RNG.standard_normal(20_000) * 0.2).astype(np.float32)
PCM = (NOISE * 20_000).astype(np.int16)
BASE = MelSpec(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=20)
SPECS = {
    "plain": BASE,
    "centred": BASE.replace(center=True),
    "hop = window = n_fft": BASE.replace(win_length=256, hop_length=256),
    "hop 1, tiny": MelSpec(
        sample_rate=8000, n_fft=16, win_length=16, hop_length=1, n_mels=4, center=True
    ),
    "odd lengths": BASE.replace(n_fft=255, win_length=199, hop_length=77, center=True),
    "long FFT": BASE.replace(n_fft=4096, win_length=4096, hop_length=512, n_mels=64),
    "clamped, per band": BASE.replace(log_floor="clamp", mean=tuple(range(20)), n_fft=250),
    "magnitude dB, per band": BASE.replace(
        power=1.0, log="db", log_floor="clamp", mean=tuple(range(20)), std=(2.0,) * 20
    ),
}
CHUNKS = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 6000)), max_size=30)


def feed(stream: LogMelStream, x: np.ndarray, chunks: list[int]) -> np.ndarray:
    parts, start = [], 0
    for n in chunks:
        parts.append(stream.push(x[start : start + n]))
        start += n
    parts += [stream.push(x[start:]), stream.flush()]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 20_000), chunks=CHUNKS, pcm=st.booleans())
def test_any_chunking_gives_the_same_bits(
    name: str, length: int, chunks: list[int], pcm: bool
) -> None:
    x = (PCM if pcm else NOISE)[:length]
    assert np.array_equal(feed(LogMelStream(SPECS[name]), x, chunks), log_mel(x, SPECS[name]))


@pytest.mark.parametrize("name", SPECS)
def test_single_samples_at_every_edge(name: str) -> None:
    spec = SPECS[name]
    for length in {1, 2, spec.min_samples - 1, spec.min_samples, spec.min_samples + 1, 700}:
        x = NOISE[: max(length, 1)]
        assert np.array_equal(feed(LogMelStream(spec), x, [1] * len(x)), log_mel(x, spec))


@pytest.mark.parametrize("name", SPECS)
def test_number_of_frames_is_what_the_spec_says(name: str) -> None:
    spec = SPECS[name]
    for length in (1, spec.min_samples - 1, spec.min_samples, 5000, 5001, 5080, 19_999):
        expected = spec.frames(max(length, spec.min_samples))
        assert log_mel(NOISE[: max(length, 1)], spec).shape == (expected, spec.n_mels)


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_a_plain_float64_computation(name: str) -> None:
    spec = SPECS[name]
    x = NOISE[:9000].astype(np.float64)
    if spec.center:
        x = np.pad(x, spec.n_fft // 2, mode="reflect")
    left = (spec.n_fft - spec.win_length) // 2
    window = np.zeros(spec.n_fft)
    n = np.arange(spec.win_length)
    window[left : left + spec.win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * n / spec.win_length)
    starts = range(0, len(x) - spec.n_fft + 1, spec.hop_length)
    frames = np.stack([x[s : s + spec.n_fft] * window for s in starts])
    mel = np.abs(np.fft.rfft(frames, axis=1)) ** spec.power @ spec.filterbank.astype(np.float64)
    expected = spec.compress(mel)
    ours = log_mel(NOISE[:9000], spec)
    assert ours.dtype == np.float32
    # dB has 4.3 units to a neper, so its absolute error is that much larger.
    assert np.abs(ours - expected).max() < 2e-5 * max(1.0, spec.log_scale)


def test_short_clips_are_repeated() -> None:
    for spec in (BASE, BASE.replace(center=True)):
        short = NOISE[:50]
        repeated = np.resize(short, spec.min_samples)
        assert np.array_equal(log_mel(short, spec), log_mel(repeated, spec))


def test_int16_is_the_same_audio_as_float() -> None:
    assert np.array_equal(log_mel(PCM, BASE), log_mel(PCM.astype(np.float32) / 32768, BASE))
    assert np.array_equal(log_mel(PCM, BASE), log_mel(PCM.astype(np.float64) / 32768, BASE))
    assert np.array_equal(log_mel(PCM, BASE), log_mel(PCM.astype(">i2"), BASE))


def test_strided_samples_are_read_as_they_are() -> None:
    assert np.array_equal(log_mel(NOISE[::-2], BASE), log_mel(NOISE[::-2].copy(), BASE))


def test_silence_gives_the_floor_and_nothing_lies_below() -> None:
    for spec in (SPECS["centred"], SPECS["magnitude dB, per band"]):
        silent = log_mel(np.zeros(4000, np.int16), spec)
        assert np.allclose(silent, spec.floor, atol=1e-5)
        assert (log_mel(NOISE * 1e-4, spec) >= spec.floor - 1e-4).all()


@pytest.mark.parametrize("name", SPECS)
def test_flush_and_reset_leave_nothing_behind(name: str) -> None:
    stream, expected = LogMelStream(SPECS[name]), log_mel(PCM, SPECS[name])
    feed(stream, NOISE[:12_345], [1000])
    assert np.array_equal(feed(stream, PCM, [17]), expected)
    stream.push(NOISE[:7777])
    stream.reset()
    assert np.array_equal(feed(stream, PCM, [17]), expected)
    assert stream.flush().shape == (0, SPECS[name].n_mels)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 12_000), first=CHUNKS)
def test_saved_state_continues_exactly(name: str, cut: int, first: list[int]) -> None:
    spec = SPECS[name]
    stream = LogMelStream(spec)
    x, parts, start = NOISE[:12_000], [], 0
    for n in [*first, cut]:
        parts.append(stream.push(x[start : start + n]))
        start += n
    other = LogMelStream(spec)
    other.push(PCM[:5000])
    other.load_state(pickle.loads(pickle.dumps(stream.state())))
    parts += [other.push(x[start:]), other.flush()]
    assert np.array_equal(np.concatenate(parts), log_mel(x, spec))


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    stream = LogMelStream(SPECS["centred"])
    stream.push(NOISE[:5000])
    good = stream.state()
    bad: list[object] = [
        None,
        {},
        {**good, "more": 1},
        {**good, "samples_in": "5000"},
        {**good, "samples_in": 4000},
        {**good, "samples_in": -1},
        {**good, "frames_out": good["frames_out"] + 1},
        {**good, "unread": good["unread"] + 1},
        {**good, "samples": good["samples"][1:]},
        {**good, "samples": good["samples"].astype(np.float64)},
        {**good, "samples": np.full_like(good["samples"], np.nan)},
        {**good, "samples": np.zeros(10**6, np.float32)},
        LogMelStream(BASE.replace(n_fft=512)).state() | {"samples_in": 5000},
    ]
    for state in bad:
        with pytest.raises(StreamError, match="cannot be loaded"):
            stream.load_state(state)  # type: ignore[arg-type]
    tail = np.concatenate([stream.push(NOISE[5000:9000]), stream.flush()])
    assert np.array_equal(tail, log_mel(NOISE[:9000], SPECS["centred"])[good["frames_out"] :])


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((100, 2), np.int16), "mono"),
        (np.zeros((1, 100), np.float32), "mono"),
        (np.float32(0.5), "mono"),
        (np.zeros(100, np.uint8), "8-bit"),
        (np.zeros(100, np.int32), "32-bit"),
        (np.zeros(100, np.int64), "16-bit"),
        (np.zeros(100, bool), "int16"),
        (np.zeros(100, np.float16), "float32"),
        (np.zeros(100, np.complex64), "float32"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
        (np.array([0.0, np.inf], np.float32), "NaN or infinite"),
        (np.array([0.0, 20_000.0], np.float32), "divide by 32768"),
        (np.array([-20_000.0]), "divide by 32768"),
        ([1, 2, 3], "int16"),
        ("noise", "int16"),
        (None, "int16"),
        ([[1.0], [1.0, 2.0]], "array of numbers"),
    ],
)
def test_what_is_no_audio_is_refused_and_changes_nothing(samples: object, words: str) -> None:
    stream = LogMelStream(BASE)
    parts = [stream.push(NOISE[:3000])]
    with pytest.raises(AudioError) as caught:
        stream.push(samples)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert caught.value.fix
    parts += [stream.push(NOISE[3000:6000]), stream.flush()]
    assert np.array_equal(np.concatenate(parts), log_mel(NOISE[:6000], BASE))


def test_empty_chunks_are_fine_and_empty_clips_are_not() -> None:
    stream = LogMelStream(BASE)
    assert stream.push(np.zeros(0, np.float32)).shape == (0, 20)
    assert stream.push([]).shape == (0, 20)
    with pytest.raises(AudioError, match="no samples"):
        log_mel(np.zeros(0, np.int16), BASE)


@pytest.mark.parametrize("center", [False, True])
def test_a_push_allocates_only_what_it_returns(center: bool) -> None:
    stream = LogMelStream(MelSpec(center=center))
    chunk = (RNG.standard_normal(1600) * 0.1).astype(np.float32)
    for _ in range(40):
        stream.push(chunk)
    two_major = int(np.__version__.split(".")[0]) >= 2
    if not two_major:
        pytest.skip("NumPy 1's FFT has no output argument")
    tracemalloc.start()
    try:
        for _ in range(40):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            out = stream.push(chunk)
            peak = tracemalloc.get_traced_memory()[1] - before
            # Views and NumPy's cast buffers; a block of frames would take 160 kB and more.
            assert peak < out.nbytes + 80_000
            del out
    finally:
        tracemalloc.stop()


def test_streams_that_take_turns_may_share_their_working_memory() -> None:
    block = MelBlock(BASE)
    streams = [LogMelStream(BASE, block=block) for _ in range(3)]
    clips = [NOISE[:9000], PCM[5000:], NOISE[::-1]]
    parts: list[list[np.ndarray]] = [[], [], []]
    for start in range(0, 20_000, 777):
        for stream, clip, found in zip(streams, clips, parts, strict=True):
            found.append(stream.push(clip[start : start + 777]))
    for stream, clip, found in zip(streams, clips, parts, strict=True):
        assert np.array_equal(np.concatenate([*found, stream.flush()]), log_mel(clip, BASE))


def test_irregular_chunks_keep_no_more_than_a_few_views() -> None:
    stream = LogMelStream(BASE)
    for n in range(0, 4000, 37):
        stream.push(np.zeros(n, np.float32))
    assert len(stream._block._views) <= 32


@pytest.mark.parametrize("n_fft", [255, 256, 400, 512, 2048])
def test_every_way_to_the_fft_gives_the_same_spectra(n_fft: int) -> None:
    frames = RNG.standard_normal((7, n_fft)).astype(np.float32)
    exact = np.fft.rfft(frames.astype(np.float64), axis=1) / n_fft
    ways = [_rfft.rfft_over_n(n_fft), _rfft._old, *([_rfft._public] if _rfft._MODERN else [])]
    found = []
    for way in ways:
        spectra = np.ones((7, n_fft // 2 + 2), np.complex64)
        way(frames, spectra[:, :-1])
        assert np.abs(spectra[:, :-1] - exact).max() <= 1e-6 * np.abs(exact).max()
        assert (spectra[:, -1] == 1).all()
        found.append(spectra)
    assert np.array_equal(found[0], found[-1])


def test_a_numpy_without_the_private_ufunc_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = log_mel(NOISE, BASE)

    def missing(name: str) -> None:
        raise ImportError(name)

    with monkeypatch.context() as patched:
        patched.setattr(_rfft.importlib, "import_module", missing)
        _rfft.rfft_over_n.cache_clear()
        assert _rfft.rfft_over_n(256) in (_rfft._public, _rfft._old)
        assert np.array_equal(log_mel(NOISE, BASE), expected)
    _rfft.rfft_over_n.cache_clear()


def test_memory_is_bounded_for_long_clips() -> None:
    stream = LogMelStream(BASE)
    size = len(pickle.dumps(stream.state()))
    for _ in range(50):
        stream.push(NOISE)
    assert len(pickle.dumps(stream.state())) < size + 4 * 2 * BASE.n_fft


def test_normalisation_over_the_clip_is_refused_with_the_reason() -> None:
    with pytest.raises(MelSpecError, match="cannot stream"):
        MelSpec(mean="per_clip")  # type: ignore[arg-type]
