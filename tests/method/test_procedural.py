"""Procedural audio: bounded, varied, repeatable, and through the real front end."""

import numpy as np
import pytest
import torch

from frami_edge.frontend import LogMel
from frami_edge.sources.procedural import (
    FAMILIES,
    ProceduralAudio,
    SpectrumFactory,
    procedural_mels,
)

RATES = [(8000, 0.5), (44_100, 1.0), (1000, 0.05)]


@pytest.mark.parametrize(("rate", "seconds"), RATES)
def test_clips_are_finite_bounded_audible_and_of_the_right_size(rate, seconds):
    clips = ProceduralAudio(rate, seconds).clips(40, seed=3)
    assert clips.shape == (40, round(rate * seconds))
    assert clips.dtype == np.float32
    assert np.isfinite(clips).all()
    peaks = np.abs(clips).max(axis=1)
    assert peaks.max() <= 1.0
    # The quietest level is -45 dBFS; only a clip cut in its only sound may be below.
    assert (peaks > 10 ** (-46 / 20)).mean() > 0.9
    assert peaks.max() > 20 * peaks.min()


def test_a_clip_depends_on_its_seed_and_index_only():
    audio = ProceduralAudio(8000, 0.5)
    whole = audio.clips(6, seed=1)
    np.testing.assert_array_equal(whole[4:], ProceduralAudio(8000, 0.5).clips(2, seed=1, start=4))
    np.testing.assert_array_equal(whole[:1], audio.clips(1, seed=1))
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole, audio.clips(6, seed=2))


@pytest.mark.parametrize("family", [family for family, _ in FAMILIES])
def test_every_family_sounds_at_every_length(family):
    for rate, n in ((8000, 16), (8000, 6400), (44_100, 22_050)):
        spectra = SpectrumFactory(rate)
        for seed in range(8):
            x = family(np.random.default_rng(seed), n, spectra)
            assert (x.shape, x.dtype) == ((n,), np.float32)
            assert np.isfinite(x).all()
            assert np.abs(x).max() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"center": True},
        {"center": True, "pre_emphasis": 0.97},
        {"framing": "window", "pre_emphasis": 0.97, "remove_dc": True},
    ],
)
@pytest.mark.parametrize("frames", [1, 48])
def test_mels_have_the_right_size_and_stay_in_range(spec, changes, frames):
    spec = spec.replace(**changes)
    x = procedural_mels(spec, 12, frames, seed=0)
    assert x.shape == (12, 1, spec.n_mels, frames)
    assert x.dtype == torch.float32
    assert (x >= torch.from_numpy(spec.floor)[:, None]).all()
    assert (x <= torch.from_numpy(spec.ceiling)[:, None]).all()
    assert x.std() > 0.3


def test_mels_come_from_the_real_front_end(spec):
    """Each mel is the front end's mel of some stretch of the very clip it was cut from."""
    frames = 48
    x = procedural_mels(spec, 3, frames, seed=7)
    needed = (frames - 1) * spec.hop_length + spec.n_fft
    audio = ProceduralAudio(spec.sample_rate, max(1.25 * needed / spec.sample_rate, 0.5))
    clips = audio.clips(3, seed=7)
    low, high = (torch.from_numpy(v)[:, None] for v in (spec.floor, spec.ceiling))
    for mel, clip in zip(x[:, 0], clips, strict=True):
        cuts = torch.from_numpy(clip).unfold(0, needed, 1)
        tried = LogMel(spec)(cuts[:, : spec.n_fft]).clamp(low, high)[..., 0]
        at = int((tried - mel[:, 0]).abs().amax(1).argmin())
        torch.testing.assert_close(LogMel(spec)(cuts[at]).clamp(low, high), mel)


def test_few_mels_are_silent_and_no_two_are_alike(spec):
    x = procedural_mels(spec, 200, 48, seed=11)[:, 0]
    loudest = x.amax((1, 2)) - float(spec.floor.max())
    assert (loudest < 0.25).float().mean() < 0.05
    z = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
    z = torch.nn.functional.normalize(z, dim=1)
    cosine = (z @ z.T).fill_diagonal_(0)
    assert cosine.mean() < 0.5
