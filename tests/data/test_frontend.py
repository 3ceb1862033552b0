import numpy as np
import pytest
import torch
import torchaudio
from torchaudio.compliance import kaldi

from frami_edge.frontend import LogMel, resample, tile_to_window
from frami_edge.yaml_config import read_mapping
from frami_edge_export.frontend import WAVEFORM, frontend_graph
from frami_edge_export.parity import cpu_session
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.logmel import LogMelStream, log_mel
from frami_edge_runtime.melspec import MelSpec

SPECS = {
    "default": MelSpec(),
    "librosa-like": MelSpec(
        n_fft=1024, win_length=1024, hop_length=256, mel_scale="slaney", norm="slaney", center=True
    ),
    "db": MelSpec(log="db", log_floor="clamp", log_eps=1e-8, f_min=50.0, f_max=7000.0, n_mels=40),
    "magnitude-log10": MelSpec(power=1.0, log="log10", mean=-2.0, std=1.5),
    "per-band": MelSpec(
        8000, 256, 200, 80, 20, log="log2", mean=tuple(range(-20, 0)), std=(1.0, 2.0) * 10
    ),
    "pre-emphasis": MelSpec(pre_emphasis=0.97, window="hann_symmetric", center=True),
    "kaldi": MelSpec(
        mel_scale="kaldi", window="povey", framing="window", remove_dc=True, pre_emphasis=0.97
    ),
    "tensorflow": MelSpec(mel_scale="kaldi", framing="window", power=1.0),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_front_end_is_the_runtimes(name):
    spec = SPECS[name]
    samples = np.random.default_rng(1).normal(0, 0.1, 12_345).astype(np.float32)
    got_MT = LogMel(spec)(torch.from_numpy(samples)).numpy()
    assert got_MT.shape == (spec.n_mels, spec.frames(len(samples)))
    np.testing.assert_allclose(got_MT, log_mel(samples, spec).T, atol=2e-3)


def _efficientat(x):
    bank, _ = kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    x = torch.nn.functional.conv1d(x[None, None], torch.tensor([[[-0.97, 1.0]]]))[0, 0]
    window = torch.hann_window(800, periodic=False)
    z = torch.stft(x, 1024, 320, 800, window, center=True, return_complex=True)
    energy = torch.nn.functional.pad(bank, (0, 1)) @ z.abs().square()
    return ((energy + 1e-5).log() + 4.5) / 5


def _panns(x):
    mel = torchaudio.transforms.MelSpectrogram(
        32_000, 1024, hop_length=320, f_min=50, f_max=14_000, n_mels=64, norm="slaney",
        mel_scale="slaney",
    )  # fmt: skip
    return torch.as_tensor(10 * torch.log10(mel(x).clamp_min(1e-10)))


def _ast(x):
    x = x[None] - x.mean()
    y = kaldi.fbank(x, sample_frequency=16_000, num_mel_bins=128, window_type="hanning")
    return (y.T + 4.2677393) / (2 * 4.5689974)


def _beats(x):
    y = kaldi.fbank(x[None] * 2**15, sample_frequency=16_000, num_mel_bins=128)
    return (y.T - 15.41663) / (2 * 6.55582)


def _ced(x):
    mel = torchaudio.transforms.MelSpectrogram(16_000, 512, hop_length=160, f_max=8000, n_mels=64)
    return torchaudio.transforms.AmplitudeToDB(top_db=120)(mel(x))


def _yamnet(x):
    frames = x.unfold(0, 400, 160) * torch.hann_window(400)
    mel = 1127 * torch.log1p(torch.linspace(0, 8000, 257).double()[1:] / 700)
    edges = torch.linspace(1127 * np.log1p(125 / 700), 1127 * np.log1p(7500 / 700), 66).double()
    low, middle, high = (edges[i : i + 64, None] for i in range(3))
    bank = torch.minimum((mel - low) / (middle - low), (high - mel) / (high - middle)).clamp_min(0)
    magnitude = torch.fft.rfft(frames, 512).abs()[:, 1:]
    return (bank @ magnitude.T.double() + 0.001).log()


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("mel/efficientat-32k-128", _efficientat),
        ("mel/panns-32k-64", _panns),
        ("mel/ast-16k-128", _ast),
        ("mel/beats-16k-128", _beats),
        ("mel/yamnet-16k-64", _yamnet),
        ("mel/ced-16k-64", _ced),
    ],
)
def test_a_preset_is_its_teachers_front_end_everywhere(preset, published):
    spec = MelSpec.from_dict(read_mapping(preset)[1])
    samples = np.random.default_rng(2).normal(0.02, 0.1, 40_123).astype(np.float32)
    want_MT = published(torch.from_numpy(samples)).numpy()
    stream = LogMelStream(spec)
    parts = [stream.push(samples[i : i + 777]) for i in range(0, len(samples), 777)]
    found = {
        "torch": LogMel(spec)(torch.from_numpy(samples)).numpy(),
        "stream": np.concatenate([*parts, stream.flush()]).T,
        "graph": cpu_session(frontend_graph(spec)).run(None, {WAVEFORM: samples[None]})[0][0, 0],
    }
    for name, got_MT in found.items():
        # PANNs' dB are 4.3 to a neper, and not normalised.
        atol = 1e-4 * max(1.0, spec.log_scale)
        np.testing.assert_allclose(got_MT, want_MT, atol=atol, rtol=0, err_msg=name)
    assert np.array_equal(found["stream"], log_mel(samples, spec).T)


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_the_samples(name):
    samples = torch.randn(4_000, generator=torch.Generator().manual_seed(0)).mul_(0.1)
    samples.requires_grad_()
    LogMel(SPECS[name])(samples).square().mean().backward()
    assert torch.isfinite(samples.grad).all()
    assert samples.grad.abs().max() > 0


def test_autocast_does_not_touch_the_mel():
    log_mel = LogMel(MelSpec())
    samples = torch.randn(8_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = log_mel(samples)
    torch.testing.assert_close(got, log_mel(samples), atol=0, rtol=0)


def test_samples_that_cannot_be_used_are_refused():
    log_mel = LogMel(MelSpec())
    with pytest.raises(AudioError, match="float samples"):
        log_mel(torch.zeros(1_000, dtype=torch.int16))
    with pytest.raises(AudioError, match="too short"):
        log_mel(torch.zeros(511))
    for rate in (10, 1_000_000):
        with pytest.raises(AudioError, match="sample rate"):
            resample(torch.zeros(100), rate, 16_000)
    with pytest.raises(AudioError, match="empty"):
        tile_to_window(torch.zeros(0), MelSpec())


def test_short_clips_are_repeated_up_to_one_window():
    spec = MelSpec()
    short = torch.arange(1.0, 201.0)
    tiled = tile_to_window(short, spec)
    assert tiled.shape == (512,)
    assert torch.equal(tiled, short.repeat(3)[:512])
    enough = torch.ones(512)
    assert tile_to_window(enough, spec) is enough
    assert tile_to_window(torch.ones(2, 5), spec).shape == (2, 512)
    for other in SPECS.values():
        tiled = tile_to_window(short[:100], other)
        assert len(tiled) == other.min_samples
        assert LogMel(other)(tiled).shape[-1] == other.frames(len(tiled)) >= 1


@pytest.mark.parametrize(
    ("rate", "wanted"), [(8_000, 16_000), (22_050, 16_000), (44_100, 16_000), (1_103, 1_000)]
)
def test_resampling_is_torchaudios(rate, wanted):
    samples = torch.randn(4_410, generator=torch.Generator().manual_seed(0))
    want = torchaudio.functional.resample(samples, rate, wanted)  # of 44,101 Hz: 11 GB and a minute
    torch.testing.assert_close(resample(samples, rate, wanted), want, atol=5e-4, rtol=1e-4)
    assert resample(samples, 16_000, 16_000) is samples
