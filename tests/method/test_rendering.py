"""Rendered audio has the log-mel that it was made from, and its files are safe and loud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from frami_edge.frontend import LogMel
from frami_edge.rendering import mel_energies, mel_to_audio, write_wavs
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_runtime.errors import AudioError, MelSpecError
from frami_edge_runtime.melspec import MelSpec

WIDE = MelSpec(
    sample_rate=8000, n_fft=256, win_length=256, hop_length=80, n_mels=40, mean=-6.0, std=4.0
)
SPECS = {
    "plain": WIDE,
    "centred": WIDE.replace(center=True),
    "short window": WIDE.replace(win_length=200),
    "magnitude in dB, clamped": WIDE.replace(
        power=1.0, log="db", log_floor="clamp", norm="slaney", mel_scale="slaney"
    ),
    "per band": WIDE.replace(mean=tuple(-6.0 + 0.01 * k for k in range(40)), f_min=60.0),
}


def decibels(spec: MelSpec, difference: Tensor) -> float:
    """Mean absolute difference of two normalised log-mels, in dB."""
    std = torch.tensor(spec.std).reshape(-1, 1)
    scale = (10 if spec.power == 2 else 20) / np.log(10) / spec.log_scale
    return float((difference * std * scale).abs().mean())


@pytest.mark.parametrize("name", SPECS)
def test_the_mel_of_the_waveform_is_the_mel_that_was_given(name: str) -> None:
    spec = SPECS[name]
    errors, lengths = [], []
    for clip in ProceduralAudio(spec.sample_rate, 0.6).clips(4, seed=5):
        mel = LogMel(spec)(torch.from_numpy(clip))
        found = LogMel(spec)(torch.from_numpy(mel_to_audio(mel, spec)))
        errors.append(decibels(spec, found - mel))
        lengths.append(found.shape == mel.shape)
    assert all(lengths)
    # Measured: 0.6 to 0.8 dB; torchaudio's InverseMelScale in place of our solver gives 1.4.
    assert float(np.mean(errors)) < 1.5


def test_energies_undo_normalisation_and_logarithm() -> None:
    energy = torch.tensor([[0.0, 1e-3], [2.0, 50.0]]).double()
    for spec in SPECS.values():
        spec = spec.replace(n_mels=2, mean=0.5, std=2.0)
        mel = torch.from_numpy(spec.compress(energy.numpy().T).T)
        torch.testing.assert_close(mel_energies(mel, spec), energy, rtol=1e-3, atol=1e-9)


def test_a_tone_keeps_its_pitch() -> None:
    t = torch.arange(8000) / 8000
    mel = LogMel(WIDE)(0.5 * torch.sin(2 * torch.pi * 1000 * t))
    samples = mel_to_audio(mel, WIDE)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert np.argmax(spectrum) * 8000 / len(samples) == pytest.approx(1000, abs=40)


def test_silence_is_silent() -> None:
    for spec in SPECS.values():
        floor = torch.from_numpy(spec.floor)[:, None].expand(-1, 20)
        assert np.abs(mel_to_audio(floor, spec)).max() < 1e-3


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    mel = LogMel(WIDE)(torch.from_numpy(ProceduralAudio(8000, 0.5).clips(1, seed=0)[0]))
    state = torch.get_rng_state()
    first = mel_to_audio(mel, WIDE, iterations=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(mel_to_audio(mel, WIDE, iterations=2, seed=3), first)
    assert not np.array_equal(mel_to_audio(mel, WIDE, iterations=2, seed=4), first)


def test_files_are_16_bit_and_1_db_below_full_scale(tmp_path: Path) -> None:
    mels = [torch.zeros(WIDE.n_mels, 30), torch.full((WIDE.n_mels, 30), -0.5)]
    folder = tmp_path / "new" / "wavs"
    paths = write_wavs(folder, mels, ["dog/bark 1", "dog_bark_1"], WIDE)
    assert [p.name for p in paths] == ["dog_bark_1.wav", "dog_bark_1-2.wav"]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
        peak = np.abs(soundfile.read(path)[0]).max()
        assert 20 * np.log10(peak) == pytest.approx(-1.0, abs=0.01)


@pytest.mark.parametrize("shape", [(39, 10), (40, 0), (1, 40, 10)])
def test_mels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match="shape"):
        mel_to_audio(torch.zeros(shape), WIDE)


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(AudioError, match="not finite"):
        mel_to_audio(torch.full((40, 10), float("nan")), WIDE)
    with pytest.raises(MelSpecError, match="hop_length"):
        mel_to_audio(torch.zeros(40, 10), WIDE.replace(hop_length=256))
