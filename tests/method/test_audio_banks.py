"""Banks of audio: teachers that take samples, students with their own front end, recordings."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from frami_edge import api
from frami_edge.bank import FULL_SCALE, Bank, BankSampler, to_int16
from frami_edge.checkpoint import Teacher
from frami_edge.cli._options import parse_sources
from frami_edge.config import DistillConfig, JourneyConfig
from frami_edge.distillation import Hearing, augmented, distill, normalised
from frami_edge.errors import BankError, ConfigError, DataError
from frami_edge.filling import invert
from frami_edge.frontend import LogMel, Renderer
from frami_edge.journey import calibration_mels, changed, threshold_clips
from frami_edge.opening import OpenedModel
from frami_edge.readiness import judge
from frami_edge.sources.procedural import ProceduralAudio, measured, procedural_mels
from frami_edge_runtime.melspec import MelSpec

FRAMES = 16
TINY = {
    "bank.clip_s": FRAMES / 100, "bank.procedural_clips": 12, "distill.steps": 3,
    "distill.batch_size": 8, "distill.crop_min_s": 0.12, "distill.crop_max_s": FRAMES / 100,
    "student.channels": [8, 8, 8], "student.time_kernels": [3, 3, 3], "student.out_channels": 8,
}  # fmt: skip


def journey():
    return changed(JourneyConfig(), JourneyConfig, TINY)


class Ears(nn.Module):
    """A teacher with its front end inside: samples in, and frames counted in samples."""

    takes = "audio"

    def __init__(self, body, spec):
        super().__init__()
        self.body, self.front_end = body, LogMel(spec)
        self.channels, self.pooled_size = body.channels, body.pooled_size
        self.frame_stride = body.frame_stride * spec.hop_length
        self.frame_offset = spec.n_fft / 2
        self.head = body.head

    def hidden(self, x_BN, lengths_B=None):
        return self.body.hidden(self.front_end(x_BN)[:, None])

    def forward(self, x_BN):
        return self.hidden(x_BN).logits_BK


@pytest.fixture
def ears(opened, spec):
    """The tiny teacher as one that takes audio, with a proposed front end of unknown statistics."""
    proposed = spec.replace(mean=0.0, std=1.0)
    return Teacher(Ears(opened.model, spec).eval(), opened.card, proposed, opened.sha256)


def test_rendering_has_a_gradient_and_each_clip_is_rendered_alone(spec):
    mels = procedural_mels(spec, 3, 20, seed=1)
    render = Renderer(spec, 8, 5)
    whole = render(mels)
    torch.testing.assert_close(whole[1:2], render(mels[1:2]), rtol=1e-3, atol=1e-4)
    x = torch.zeros_like(mels, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.1)
    losses = []
    for _ in range(30):
        loss = (LogMel(spec)(render(x))[:, None] - mels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_a_teacher_that_takes_audio_is_inverted_and_distilled(ears, cpu, bank_config, tmp_path):
    mix = {"inversion": 1, "translator": 1, "procedural": 1, "smooth_noise": 1}
    own = {"inversion": {"steps": 40, "class_loss": 20.0, "learning_rate": 5e-3}}
    ears.mel = measured(ears.mel)
    bank = invert(ears, bank_config(sources=mix, **own), tmp_path, cpu, 0)
    for source in bank.sources:
        clips = bank.read(source)
        assert clips.audio_NS.shape[1] == bank.index.samples
        assert clips.audio_NS.abs().max() <= 1
        with torch.no_grad():
            logits = ears(clips.audio_NS)
        torch.testing.assert_close(clips.logits_NK, logits, atol=1e-4, rtol=1e-4)
        assert clips.mels_N1MT.shape[2:] == (bank.spec.n_mels, FRAMES)
    assert bank.index.health["inversion"]["hit_rate"] > 0.35, "chance is 0.2"
    sampler, config = BankSampler(bank, dict.fromkeys(mix, 0.25)), journey()
    mel = normalised(ears, ears.mel.replace(mean=0.0, std=1.0), sampler, 0)
    assert mel.mean != 0
    student = distill(ears, sampler, config, cpu, mel=mel)
    verdict = judge(ears, student, config, cpu, mel, bank)
    assert set(verdict.agreement) == set(mix)
    assert set(verdict.held_out) == set(mix) - {"smooth_noise"}
    # Scored on audio, a clip at a time, each at its own length.
    a, b = ProceduralAudio(8000, 1.0).clips(2, 5)
    found = OpenedModel.of_network(Path("it"), ears).logits_of_audio([(a, 8000), (b[:5000], 8000)])
    with torch.no_grad():
        torch.testing.assert_close(found[:1], ears(torch.from_numpy(a)[None]))


OWN = {"sample_rate": 4000, "n_fft": 128, "win_length": 100, "hop_length": 80, "n_mels": 4}


def test_a_student_hears_the_bank_through_its_own_front_end(
    opened, spec, cpu, bank_config, tmp_path
):
    config, settings = journey(), bank_config(sources={"inversion": 1, "procedural": 1})
    # Windows of the teacher's length, every second frame: computed from the teacher's log-mels.
    near, far = MelSpec(**OWN), MelSpec(**OWN | {"win_length": 128})
    hear = Hearing(opened, near, cpu.device)
    assert (hear.needs_audio, Hearing(opened, far, cpu.device).needs_audio) == (False, True)
    banks = [invert(opened, settings, tmp_path / str(a), cpu, 0, audio=a) for a in (False, True)]
    shares = {"inversion": 0.5, "procedural": 0.5}
    for mel, bank in ((near, banks[0]), (near, banks[1]), (far, banks[1])):
        student = distill(opened, BankSampler(bank, shares), config, cpu, mel=mel)
        assert student.n_mels == 4
    heard = [bank.mels("procedural", torch.arange(4), near) for bank in banks]
    assert heard[0].shape == heard[1][..., : heard[0].shape[3]].shape == (4, 1, 4, FRAMES // 2)
    with pytest.raises(BankError, match="audio is needed"):
        distill(opened, BankSampler(banks[0], shares), config, cpu, mel=far)


def test_frames_are_compared_at_the_same_time(opened, spec):
    device = torch.device("cpu")
    assert Hearing(opened, spec, device).clock == (1.0, 0.0)
    own = spec.replace(sample_rate=4000, n_fft=128, win_length=100, hop_length=80, n_mels=10)
    rate, start = Hearing(opened, own, device).clock
    assert rate == pytest.approx(2), "20 ms are two frames of the teacher"
    assert start == pytest.approx(0)
    rate, start = Hearing(opened, own.replace(center=True), device).clock
    assert start == pytest.approx(-128 / 80), "the teacher's frame 0 is centred at sample 128"


def test_augmented_audio_is_cropped_in_samples_and_changes_loudness(spec):
    clips = torch.ones(200, 3000)
    config = DistillConfig(crop_min_s=0.2, crop_max_s=0.2, gain=0.3, mixup=0.0)
    x = augmented(clips, config, torch.Generator().manual_seed(0), spec)
    assert x.shape == (200, 19 * spec.hop_length + spec.n_fft)
    # In log-mel units: 2 ln(gain) / std.
    assert float((2 * x[:, 0].log() / spec.std).std()) == pytest.approx(0.3, rel=0.2)


def write(path, seconds, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate)
    soundfile.write(path, samples, rate)


def test_recordings_are_a_source_that_every_card_names(opened, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "secret" / "yard"
    write(folder / "long.wav", 1.5, 8000)
    write(folder / "deeper" / "short.flac", 0.05, 44_100)
    (folder / "broken.wav").write_bytes(b"RIFF")
    overrides = TINY | {"bank.recordings_clips": 30}
    student = api.distill(
        opened, sources={"recordings": 3, "procedural": 1}, recordings=folder,
        overrides=overrides | {"student_mel": OWN, "bank.audio": True},
        out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    bank = Bank.open(tmp_path / "run" / "bank")
    assert bank.sources == {"recordings": 20, "procedural": 12}
    assert "broken.wav is left out" in caplog.text
    assert bank.index.samples > 0, "as bank.audio says"
    assert student.card.recordings == bank.index.recordings == 2
    assert (student.mel.n_mels, student.mel.mean == 0) == (4, False)
    assert calibration_mels(student, bank, count=8).mels.shape[2:] == (4, FRAMES // 2)
    monkeypatch.setattr("frami_edge.journey.BACKGROUND_CLIPS", 2)
    assert threshold_clips(student, bank, 0).mels is None, "no clip was made for a class"
    assert "secret" not in student.card.model_dump_json()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Real audio: 2 recordings of the user" in card
    for claim in ("data-free", "No audio was used", "without data", "synthetic clips, 3 steps"):
        assert claim not in card
    again = api.distill(
        opened, bank, sources=["recordings"], steps=2, overrides=TINY | {"student_mel": OWN},
        device="cpu",
    )  # fmt: skip
    assert again.card.recordings == 2, "the bank has them: no folder is needed"
    tone = bank.read("recordings").mels_N1MT.mean(dim=(0, 1, 3))
    heard = LogMel(bank.spec)(torch.sin(torch.arange(8000) * 2 * torch.pi * 440 / 8000))
    assert int(tone.argmax()) == int(heard.mean(1).argmax())


def test_recordings_are_checked(opened, tmp_path):
    with pytest.raises(ConfigError, match="the source recordings needs a folder"):
        api.invert(opened, sources=["recordings"], overrides=TINY)
    with pytest.raises(DataError, match="no audio files in the folder of recordings"):
        api.invert(opened, recordings=tmp_path / "none", overrides=TINY, device="cpu")
    assert parse_sources("inversion=2,recordings=my/yard") == (
        {"inversion": 2.0, "recordings": 1.0}, Path("my/yard"),
    )  # fmt: skip
    assert parse_sources("recordings=2", Path("x")) == ({"recordings": 2.0}, Path("x"))


def test_sixteen_bits_hold_a_loud_clip_as_a_whole():
    loud = to_int16(torch.tensor([[0.5, -2.0], [0.5, -1.0]]))
    assert loud.tolist() == [[8192, -FULL_SCALE], [16384, -FULL_SCALE]]
