"""A stream of log-mels equals its offline answer bit for bit, and torchaudio within rounding."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime import logmel
from frami_edge_runtime.errors import AudioError, StreamError
from frami_edge_runtime.logmel import ROWS, LogMelStream, log_mel
from frami_edge_runtime.melspec import MelSpec

RNG = np.random.default_rng(7)
NOISE = (RNG.standard_normal(20_000) * 0.2).astype(np.float32)
PCM = (NOISE * 20_000).astype(np.int16)
BASE = MelSpec(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=20)
SPECS = {
    "plain": BASE,
    "centred": BASE.replace(center=True),
    "hop 1, tiny": MelSpec(
        sample_rate=8000, n_fft=16, win_length=16, hop_length=1, n_mels=4, center=True
    ),
    "odd lengths": BASE.replace(n_fft=255, win_length=199, hop_length=77, center=True),
    "long FFT": BASE.replace(n_fft=4096, win_length=4096, hop_length=512, n_mels=64),
    "magnitude dB, per band": BASE.replace(
        power=1.0, log="db", log_floor="clamp", mean=tuple(range(20)), std=(2.0,) * 20
    ),
    "pre-emphasis": BASE.replace(pre_emphasis=0.97, window="hann_symmetric"),
    "pre-emphasis, centred": BASE.replace(pre_emphasis=0.9, center=True, mel_scale="kaldi"),
    "pre-emphasis, odd, hop 1": BASE.replace(
        n_fft=33, win_length=33, hop_length=1, n_mels=4, center=True, pre_emphasis=0.97
    ),
    "Kaldi": BASE.replace(
        mel_scale="kaldi", window="povey", framing="window", remove_dc=True, pre_emphasis=0.97
    ),
    "frames as long as the window": BASE.replace(framing="window", power=1.0, win_length=199),
    "no direct current": BASE.replace(framing="window", remove_dc=True, hop_length=200),
}
CHUNKS = st.lists(st.one_of(st.just(1), st.integers(0, 300), st.integers(0, 6000)), max_size=30)
BROKEN = (ImportError, OSError, RuntimeError)


def feed(stream, x, chunks):
    parts, start = [], 0
    for n in chunks:
        parts.append(stream.push(x[start : start + n]))
        start += n
    parts += [stream.push(x[start:]), stream.flush()]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=10, deadline=None)
@given(length=st.integers(1, 20_000), chunks=CHUNKS, pcm=st.booleans())
def test_any_chunking_gives_the_same_bits(name, length, chunks, pcm):
    x, spec = (PCM if pcm else NOISE)[:length], SPECS[name]
    whole = log_mel(x, spec)
    assert whole.shape == (spec.frames(max(length, spec.min_samples)), spec.n_mels)
    assert np.array_equal(feed(LogMelStream(spec), x, chunks), whole)


def test_a_frame_does_not_depend_on_its_company(monkeypatch):
    """NumPy's FFT rounds a row differently alone and in a vector of rows on some machines."""
    plain = logmel.rfft
    whole = log_mel(NOISE, BASE)

    def in_vectors(frames, **rest):
        spectra = plain(frames, **rest)
        spectra[: len(frames) // ROWS * ROWS] *= np.float32(1 + 2e-7)
        return spectra

    monkeypatch.setattr(logmel, "rfft", in_vectors)
    shifted = log_mel(NOISE, BASE)
    assert not np.array_equal(shifted, whole)
    for chunks in ([80] * 100, [1, 333, 5, 800, 81], [256, 80, 80, 4000], [7] * 900):
        assert np.array_equal(feed(LogMelStream(BASE), NOISE, chunks), shifted)


def test_numpy_1_without_an_output_argument(monkeypatch):
    expected = log_mel(NOISE, BASE)
    monkeypatch.setattr(logmel, "_FFT_HAS_OUT", False)
    assert np.abs(log_mel(NOISE, BASE) - expected).max() <= 1e-5


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_a_plain_float64_computation(name):
    spec = SPECS[name]
    sound = NOISE[:9000] + np.float32(0.1)
    x, a = sound.astype(np.float64), spec.pre_emphasis
    in_frames = spec.framing == "window"
    if a and not in_frames:
        x = x[1:] - a * x[:-1]
    if spec.center:
        x = np.pad(x, spec.n_fft // 2, mode="reflect")
    size = spec.win_length if in_frames else spec.n_fft
    left, n = (size - spec.win_length) // 2, np.arange(spec.win_length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / (len(n) - (spec.window != "hann")))
    window = window**0.85 if spec.window == "povey" else window
    starts = range(left, len(x) - size + left + 1, spec.hop_length)
    frames = np.stack([x[s : s + spec.win_length] for s in starts])
    if spec.remove_dc:
        frames -= frames.mean(axis=1, keepdims=True)
    if a and in_frames:
        frames -= a * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectra = np.fft.rfft(frames * window, spec.n_fft, axis=1)
    mel = np.abs(spectra) ** spec.power @ spec.filterbank.astype(np.float64)
    ours = log_mel(sound, spec)
    assert ours.dtype == np.float32
    assert ours.shape == mel.shape
    # dB has 4.3 units to a neper, so its absolute error is that much larger.
    assert np.abs(ours - spec.compress(mel)).max() < 2e-5 * max(1.0, spec.log_scale)


def test_the_same_audio_in_other_forms_gives_the_same_bits():
    expected = log_mel(PCM, BASE)
    for x in (PCM.astype(np.float32) / 32768, PCM.astype(np.float64) / 32768, PCM.astype(">i2")):
        assert np.array_equal(log_mel(x, BASE), expected)
    assert np.array_equal(log_mel(NOISE[::-2], BASE), log_mel(NOISE[::-2].copy(), BASE))
    for spec in (BASE, SPECS["centred"], SPECS["pre-emphasis, centred"], SPECS["Kaldi"]):
        repeated = np.resize(NOISE[:50], spec.min_samples)
        assert np.array_equal(log_mel(NOISE[:50], spec), log_mel(repeated, spec))
    with pytest.raises(AudioError, match="no samples"):
        log_mel(np.zeros(0, np.int16), BASE)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=6, deadline=None)
@given(cut=st.integers(0, 12_000), first=CHUNKS)
def test_saved_state_continues_exactly(name, cut, first):
    spec = SPECS[name]
    stream, x, parts, start = LogMelStream(spec), NOISE[:12_000], [], 0
    for n in [*first, cut]:
        parts.append(stream.push(x[start : start + n]))
        start += n
    other = LogMelStream(spec)
    other.push(PCM[:5000])
    state = pickle.loads(pickle.dumps(stream.state()))
    with pytest.raises(StreamError, match="samples does not fit"):
        other.load_state({**state, "samples_in": state["samples_in"] + 1})
    other.load_state(state)
    parts += [other.push(x[start:]), other.flush()]
    assert np.array_equal(np.concatenate(parts), log_mel(x, spec))


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=15, deadline=None)
@given(place=st.floats(0, 1), before=CHUNKS, chunks=CHUNKS)
def test_continues_exactly_at_a_later_frame(name, place, before, chunks):
    spec = SPECS[name]
    first = -(-(spec.min_samples + spec.pad) // spec.hop_length)
    last = (len(NOISE) - 1) // spec.hop_length  # with enough samples for the reflection at the end
    frame = first + round(place * (last - first))
    stream = LogMelStream(spec)
    for n in before:
        stream.push(PCM[:n])
    stream.seek(frame)
    x = NOISE[frame * spec.hop_length - spec.pad :]
    assert np.array_equal(feed(stream, x, chunks), log_mel(NOISE, spec)[frame:])


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mel_scale": "slaney", "norm": "slaney", "center": True},
        {"power": 1.0, "log": "log2", "center": True},
        {"log": "db", "log_floor": "clamp", "log_eps": 1e-5},
        {"n_mels": 128, "mean": tuple(np.linspace(-7, -3, 128)), "std": 2.5, "log": "log10"},
    ],
)
def test_equals_torchaudio(changes):
    torch = pytest.importorskip("torch", exc_type=BROKEN)
    torchaudio = pytest.importorskip("torchaudio", exc_type=BROKEN)
    spec = MelSpec(n_mels=40, f_min=20.0, f_max=7600.0).replace(**changes)
    transform = torchaudio.transforms.MelSpectrogram(
        spec.sample_rate, spec.n_fft, spec.win_length, spec.hop_length, spec.f_min, spec.f_high,
        n_mels=spec.n_mels, power=spec.power, center=spec.center, mel_scale=spec.mel_scale,
        norm=None if spec.norm == "none" else spec.norm,
    ).double()  # fmt: skip
    difference = transform.mel_scale.fb.numpy() - spec.filterbank
    assert np.abs(difference).max() <= 2e-5 * spec.filterbank.max()
    for own_filters, bar in ((False, 1e-4), (True, 1e-5)):
        if own_filters:  # torchaudio's are wrong by 4e-6
            transform.spectrogram.window = torch.from_numpy(spec.taper)
            transform.mel_scale.fb = torch.from_numpy(spec.filterbank).double()
        theirs = spec.compress(transform(torch.from_numpy(NOISE).double()).numpy().T)
        assert np.abs(log_mel(NOISE, spec) - theirs).max() <= bar * max(1.0, spec.log_scale)
