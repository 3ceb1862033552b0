"""A student's front end computed from its teacher's log-mels."""

import numpy as np
import pytest
import torch

from frami_edge.errors import ConfigError
from frami_edge.frontend import LogMel, MelBridge, resample
from frami_edge_runtime.melspec import MelSpec

TEACHER = MelSpec(
    sample_rate=32_000, n_fft=1024, win_length=800, hop_length=320, n_mels=128, f_max=15_000.0,
    mel_scale="kaldi", pre_emphasis=0.97, window="hann_symmetric", center=True,
    log_eps=1e-5, mean=-4.5, std=5.0,
)  # fmt: skip
STUDENT = MelSpec(n_mels=40, center=True, mean=-6.0, std=3.0)


def sounds():
    """(3, N) at 16 kHz: filtered noise with a moving level, a sweep, clicks over quiet noise."""
    draw = np.random.default_rng(0)
    t = np.arange(32_000) / 16_000
    noise = np.convolve(draw.standard_normal(len(t)), np.hanning(7), "same")
    swell = 0.1 * noise * (1.1 + np.sin(9 * t))
    sweep = 0.3 * np.sin(2 * np.pi * (200 * t + 1700 * t**2)) + 0.01 * noise
    clicks = 0.01 * noise + 0.8 * (np.arange(len(t)) % 3200 < 4)
    return torch.from_numpy(np.stack([swell, sweep, clicks])).float()


@pytest.mark.parametrize(
    "change", [{}, {"mel_scale": "slaney", "norm": "slaney"}, {"log": "db", "log_floor": "clamp"}]
)
def test_the_bridge_gives_what_the_student_hears(change):
    student, audio = STUDENT.replace(**change), sounds()
    bridge = MelBridge(TEACHER, student)
    theirs = LogMel(TEACHER)(resample(audio, 16_000, 32_000))[:, None]
    mine = LogMel(student)(audio)[:, None]
    made = bridge(theirs)[..., : mine.shape[3]]
    inner = slice(2, made.shape[3] - 2)  # the reflected ends differ
    error = (made - mine[..., : made.shape[3]])[..., inner]
    assert float(error.square().mean().sqrt()) < 0.1 * float(mine.std())
    assert abs(float(error.mean())) < 0.05 * float(mine.std())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hop_length": 200}, "25 ms every 10 ms"),
        ({"power": 1.0}, "power 2"),
        ({"sample_rate": 44_100, "n_fft": 2048, "win_length": 1103, "hop_length": 441}, "length"),
        ({"sample_rate": 32_000, "n_fft": 1024, "win_length": 800, "hop_length": 320}, "15000 Hz"),
        ({"n_mels": 128, "n_fft": 1024}, "Use fewer bands"),
    ],
)
def test_what_cannot_be_computed_is_refused(change, said):
    with pytest.raises(ConfigError) as caught:
        MelBridge(TEACHER, STUDENT.replace(**change))
    assert said in str(caught.value)
