from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio

from frami_edge.frontend import LogMel, resample, tile_to_window
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.logmel import log_mel
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
}


@pytest.mark.parametrize("name", SPECS)
def test_the_front_end_is_the_runtimes(name: str) -> None:
    spec = SPECS[name]
    samples = np.random.default_rng(1).normal(0, 0.1, 12_345).astype(np.float32)
    got_MT = LogMel(spec)(torch.from_numpy(samples)).numpy()
    assert got_MT.shape == (spec.n_mels, spec.frames(len(samples)))
    np.testing.assert_allclose(got_MT, log_mel(samples, spec).T, atol=2e-3)


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_the_samples(name: str) -> None:
    samples = torch.randn(4_000, generator=torch.Generator().manual_seed(0)).mul_(0.1)
    samples.requires_grad_()
    LogMel(SPECS[name])(samples).square().mean().backward()
    assert samples.grad is not None
    assert torch.isfinite(samples.grad).all()
    assert samples.grad.abs().max() > 0


def test_autocast_does_not_touch_the_mel() -> None:
    log_mel = LogMel(MelSpec())
    samples = torch.randn(8_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = log_mel(samples)
    torch.testing.assert_close(got, log_mel(samples), atol=0, rtol=0)


def test_samples_that_cannot_be_used_are_refused() -> None:
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


def test_short_clips_are_repeated_up_to_one_window() -> None:
    spec = MelSpec()
    short = torch.arange(1.0, 201.0)
    tiled = tile_to_window(short, spec)
    assert tiled.shape == (512,)
    assert torch.equal(tiled, short.repeat(3)[:512])
    enough = torch.ones(512)
    assert tile_to_window(enough, spec) is enough
    assert tile_to_window(torch.ones(2, 5), spec).shape == (2, 512)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 44_101])
def test_resampling_is_torchaudios(rate: int) -> None:
    samples = torch.randn(4_410, generator=torch.Generator().manual_seed(0))
    want = torchaudio.functional.resample(samples, rate, 16_000)
    torch.testing.assert_close(resample(samples, rate, 16_000), want, atol=5e-4, rtol=1e-4)
    assert resample(samples, 16_000, 16_000) is samples
