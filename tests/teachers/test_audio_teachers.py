"""Teachers that take audio: the log-mel inside them is found and proved, or they keep audio."""

import pytest
import teacher_zoo as zoo
import torch
from teacher_zoo import RATE, K

from frami_edge.errors import ConfigError, TeacherError
from frami_edge.teachers import load_teacher
from frami_edge_runtime.melspec import MelSpec

LABELS = tuple("abcde")


def opened(module, rate=RATE, **how):
    return load_teacher(module.eval(), labels=LABELS, sample_rate=rate, **how)


def sounds(n=3, samples=20_000):
    noise = torch.randn(n, samples, generator=torch.Generator().manual_seed(3))
    return 0.1 * noise * torch.linspace(0.1, 1, samples)


FOUND = {
    "a transform of convolutions, dB": (
        zoo.Panns,
        "extract",
        {"n_fft": 256, "hop_length": 80, "f_min": 50.0, "mel_scale": "slaney", "norm": "slaney",
         "log": "db", "log_eps": 1e-10, "log_floor": "clamp", "center": True},
    ),
    "torchaudio inside forward": (
        zoo.Inline,
        "net@in",
        {"n_fft": 512, "win_length": 400, "mel_scale": "htk", "log": "ln", "log_eps": 1e-6,
         "log_floor": "add", "mean": -7.0, "std": 3.5},
    ),
    "Kaldi's frames in a method": (
        zoo.Kaldi,
        "fbank",
        {"framing": "window", "window": "povey", "remove_dc": True, "pre_emphasis": 0.97,
         "mel_scale": "kaldi", "f_min": 20.0, "center": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_the_log_mel_inside_is_found_and_proved(name):
    make, spot, fields = FOUND[name]
    torch.manual_seed(0)
    module = make().eval()
    teacher = opened(module)
    front = teacher.model.front_end
    assert teacher.takes == "mel"
    assert str(front.spot) == spot
    assert {key: getattr(teacher.mel, key) for key in fields} == fields
    assert front.difference < 1e-3
    # The teacher answers log-mels as the module answers the audio itself.
    x = sounds()
    with torch.no_grad():
        out = module(x[:, None] if name.startswith("torchaudio") else x)
    expected = out["clipwise_output"].logit() if isinstance(out, dict) else out
    assert torch.allclose(teacher(teacher.listen(x)), expected, atol=1e-4)
    assert teacher.step_s == teacher.mel.hop_s
    mels = teacher.listen(x).requires_grad_()
    (gradient,) = torch.autograd.grad(teacher(mels).square().sum(), mels)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "layout", "stride", "length"),
    [
        (zoo.M5, "B1N", 256, None),
        (zoo.SampleNet, "B1N", 256, 16_000),
        (lambda: zoo.Inline("clip"), "B1N", 320, None),  # normalised over the clip
    ],
)
def test_other_networks_keep_audio(make, layout, stride, length):
    torch.manual_seed(0)
    module = make().eval()
    teacher = opened(module)
    anatomy = teacher.model.anatomy
    assert (teacher.takes, anatomy.layout, anatomy.clip_length) == ("audio", layout, length)
    assert teacher.model.frame_stride == pytest.approx(stride, abs=1)
    assert teacher.step_s == 1 / RATE
    assert teacher.mel.sample_rate == RATE  # proposed for the student
    assert "It takes audio" in teacher.model.notes[0]
    x = sounds(samples=length or 20_000)
    hidden = teacher.hidden(teacher.listen(x))
    with torch.no_grad():
        assert torch.allclose(hidden.logits_BK, module(x[:, None]), atol=1e-5)
    frames = hidden.frames_BCT.shape[2]
    assert abs(frames * stride - x.shape[1]) < 3 * stride


def test_the_wrong_rate_is_named():
    with pytest.raises(TeacherError, match="mel filters are those of 16000 Hz") as caught:
        opened(zoo.Panns(), 8_000)
    assert "--sample-rate 16000" in (caught.value.fix or "")


def test_audio_needs_a_rate_and_one_rate():
    with pytest.raises(ConfigError, match="without mel or sample_rate"):
        load_teacher(zoo.M5(), labels=LABELS)
    with pytest.raises(ConfigError, match="is not that of the mel"):
        opened(zoo.M5(), 8_000, mel=MelSpec())
    with pytest.raises(ConfigError, match="layout BTM is one of log-mels"):
        opened(zoo.M5(), layout="BTM")


def test_with_a_mel_alone_audio_is_tried_at_its_rate():
    torch.manual_seed(0)
    spec = MelSpec(n_mels=24)
    teacher = load_teacher(zoo.M5().eval(), labels=LABELS, mel=spec)
    assert (teacher.takes, teacher.mel) == ("audio", spec)
    assert teacher.model.classes == K
