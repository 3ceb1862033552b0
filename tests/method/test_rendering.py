"""Rendered audio has the log-mel that it was made from, and its files are safe and loud."""

import numpy as np
import pytest
import soundfile
import torch

from frami_edge.bank import Bank, BankIndex, Clips
from frami_edge.frontend import LogMel, mel_to_audio
from frami_edge.journey import write_examples
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_runtime.errors import MelSpecError
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
    "pre-emphasis": WIDE.replace(pre_emphasis=0.97, window="hann_symmetric"),
    "pre-emphasis, centred": WIDE.replace(pre_emphasis=0.97, mel_scale="kaldi", center=True),
    "kaldi": WIDE.replace(
        win_length=200, framing="window", remove_dc=True, pre_emphasis=0.97, window="povey"
    ),
}


def decibels(spec, difference):
    """Mean absolute difference of two normalised log-mels, in dB."""
    std = torch.tensor(spec.std).reshape(-1, 1)
    scale = (10 if spec.power == 2 else 20) / np.log(10) / spec.log_scale
    return float((difference * std * scale).abs().mean())


@pytest.mark.parametrize("name", SPECS)
def test_the_mel_of_the_waveform_is_the_mel_that_was_given(name):
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


def test_silence_is_silent():
    for spec in SPECS.values():
        floor = torch.from_numpy(spec.floor)[:, None].expand(-1, 20)
        assert np.abs(mel_to_audio(floor, spec)).max() < 1e-3


def test_files_are_16_bit_and_1_db_below_full_scale(tmp_path):
    labels = ("dog/bark", "dog bark")
    index = BankIndex(
        mel=WIDE.to_dict(), frames=30, labels=labels, teacher_sha256="0" * 64, config={}, seed=0
    )
    bank = Bank.create(tmp_path / "bank", index)
    mels = torch.stack([torch.zeros(1, 40, 30), torch.full((1, 40, 30), -0.5)])
    bank.append("inversion", Clips(mels, torch.tensor([0, 1]), torch.eye(2)), 0, 1)
    folder = tmp_path / "new" / "wavs"
    paths = write_examples(bank, "inversion", folder)
    names = ["inversion-dog_bark-0.wav", "inversion-dog_bark-1.wav"]
    assert [p.name for p in paths] == sorted(p.name for p in folder.iterdir()) == names
    for path in paths:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
        peak = np.abs(soundfile.read(path)[0]).max()
        assert 20 * np.log10(peak) == pytest.approx(-1.0, abs=0.01)


def test_windows_without_overlap_are_refused():
    with pytest.raises(MelSpecError, match="hop_length"):
        mel_to_audio(torch.zeros(40, 10), WIDE.replace(hop_length=256))
