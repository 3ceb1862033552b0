"""Teachers that are not ours: what is found in them, and that it is right."""

import copy
from dataclasses import dataclass

import pytest
import teacher_zoo as zoo
import torch
from teacher_zoo import K, M
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.errors import TeacherError
from frami_edge.teachers.foreign import ForeignTeacher

SIGMOID = "sigmoid probabilities"
CASES = {
    # name: layout, frames, pooled, C, D, stride, receptive field, head, answers
    "KeywordNet": ("BTM", "bn2", "classify@in", 12, 12, 2, 9, "classify", "logits"),
    "XVector": ("BMT", "tdnn.5", "out@in", 12, 10, 1, 9, "out", "logits"),
    "Attention": ("B1MT", "pool@in", "pool", 12, 12, 4, 7, "fc", "log-probabilities"),
    "InlineAttention": ("BTM", "score@in", "fc@in", 12, 12, 1, 5, "fc", "logits"),
    "SqueezeExcite": ("B1MT", "more.2", "pool", 16, 16, 4, None, "fc", "probabilities"),
    "SubSpectral": ("B1TM", "last.2", "fc2@in", 12, 12, 2, 5, "fc2", "logits"),
    "Shared": ("BMT", "mix@in", "fc@in", 12, 12, 1, 5, "fc", "logits"),
    "Recurrent": ("BTM", "gru", "fc@in", 12, 12, 1, None, "fc", "logits"),
    "Cnn14": ("B1TM", "bn2", "fc_audioset@in", 12, 12, 2, 8, "fc_audioset", SIGMOID),
    "Patches": ("BTM", "norm", "head@in", 12, 12, 8, None, "head", "logits"),
    "Ast": ("BTM", "norm", "head@in", 12, 12, 8, None, "head", "logits"),
    "Vggish": ("B1MT", "features", "fc@in", 8, 20, 4, 10, "fc", "logits"),
    "Crnn": ("B1TM", "strong@in", "@mean", 12, 12, 2, None, "strong", SIGMOID),
    "StrongWeak": ("B1TM", "soft@in", "@answer", 12, 5, 2, None, "", SIGMOID),
    "ScoresOverTime": ("BTM", "net", "@answer", 5, 5, 1, 3, "", "logits"),
}


def teacher(name, **how):
    torch.manual_seed(0)
    arguments = {"Ast": ("Patches", 200), "StrongWeak": ("Crnn", "soft")}
    kind, *given = arguments.get(name, (name,))
    layout = CASES[name][0] if name in CASES else "BTM"
    module = zoo.lively(
        getattr(zoo, kind)(*given), layout, {"Ast": 200, "Vggish": 96}.get(name, 64)
    )
    return ForeignTeacher(module, M, K, **how)


def mels(n=3, frames=90, seed=1):
    return torch.randn(n, 1, M, frames, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_are_found_and_right(name):
    made = teacher(name)
    a, s = made.anatomy, made.anatomy.states
    found = (a.layout, s.frames, s.pooled, s.channels, s.pooled_size, a.stride, a.receptive_field,
             a.head, a.answers)  # fmt: skip
    assert found == CASES[name]
    hidden = made.hidden(mels())
    assert hidden.frames_BCT.shape[:2] == (3, made.channels)
    assert hidden.pooled_BD.shape == (3, made.pooled_size)
    if made.head is not None:
        again = made.head(hidden.pooled_BD).log_softmax(1)
        assert torch.allclose(again, hidden.logits_BK.log_softmax(1), atol=1e-4, rtol=1e-4)
    if made.anatomy.clip_length is None:
        longer = made.hidden(mels(frames=90 + 8 * made.frame_stride))
        assert longer.frames_BCT.shape[2] - hidden.frames_BCT.shape[2] == 8
    copied = copy.deepcopy(made)  # as for a thread of its own
    made.hidden(mels(seed=3))
    assert torch.equal(copied.hidden(mels()).frames_BCT, hidden.frames_BCT)
    # Gradients against a central difference: torch's BatchNorm is wrong for (B, M, T, 1) on CPUs.
    made.double()
    x, direction = mels(2, 40).double().requires_grad_(), mels(2, 40, seed=2).double()
    (gradient,) = torch.autograd.grad(made.hidden(x).logits_BK.square().sum(), x)
    with torch.no_grad():
        high, low = (
            made.hidden(x + step * direction).logits_BK.square().sum() for step in (1e-6, -1e-6)
        )
    expected = float((high - low) / 2e-6)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_frames_are_centred_where_their_offset_says():
    made = teacher("KeywordNet")
    x = mels(1, 101)
    before = made.hidden(x).frames_BCT
    x[..., 50] += 3
    changed = (made.hidden(x).frames_BCT - before).abs().sum((0, 1)).nonzero()[:, 0].float()
    centre = float(changed.mean()) * made.frame_stride + made.frame_offset
    assert centre == pytest.approx(50, abs=made.frame_stride / 2)


def test_a_network_of_one_clip_length_takes_any():
    made = teacher("Ast")
    assert made.anatomy.clip_length == 200
    assert "clips of 200 frames alone" in " ".join(made.notes)
    x = mels(2, 200)
    whole = made.hidden(x)
    expected = made.module(x[:, 0].transpose(1, 2))
    assert torch.allclose(whole.logits_BK, expected, atol=1e-5)
    short = made.hidden(x[..., :70])  # repeated; frames beyond its end are left out
    again = torch.cat([x[..., :70]] * 3, 3)[..., :200]
    assert torch.allclose(short.logits_BK, made.hidden(again).logits_BK, atol=1e-5)
    assert short.frames_BCT.shape[2] == 9
    twice = made.hidden(torch.cat([x, x], 3))
    assert torch.allclose(twice.logits_BK, whole.logits_BK, atol=1e-5)
    assert torch.allclose(twice.frames_BCT, torch.cat([whole.frames_BCT] * 2, 2), atol=1e-5)
    assert made.hidden(mels(2, 230)).frames_BCT.shape[2] == 29


def test_tokens_of_frequency_and_time_become_frames():
    made = teacher("Patches")
    assert made.anatomy.patch_bands == 2
    x = mels(1, 80)
    tokens = []
    handle = made.module.norm.register_forward_hook(lambda _, __, out: tokens.append(out))
    frames_BCT = made.hidden(x).frames_BCT
    handle.remove()
    patches = tokens[0][:, 1:].reshape(1, 2, 10, 12)  # bands, frames, channels
    assert torch.allclose(frames_BCT, patches.mean(1).transpose(1, 2), atol=1e-6)


def test_a_field_of_more_than_half_the_probe_is_measured_on_longer_clips():
    layers = [nn.Conv2d(1 if i == 0 else 4, 4, (1, 11), (1, 2), (0, 5)) for i in range(5)]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, K))
    made = ForeignTeacher(body.eval(), M, K)
    assert (made.anatomy.stride, made.anatomy.receptive_field) == (32, 1 + 10 * 31)
    assert made.anatomy.offset == 0


def test_a_field_is_measured_on_the_longest_clips_that_a_network_takes():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(1, 8, (M, 321), (1, 16), (0, 160))
            self.places, self.head = nn.Parameter(torch.randn(8, 40)), nn.Linear(8, K)

        def forward(self, x):
            h = self.body(x).squeeze(2)
            return self.head((h + self.places[:, : h.shape[2]]).mean(2))

    torch.manual_seed(0)
    made = ForeignTeacher(Wide().eval(), M, K)
    assert made.anatomy.clip_length is None
    assert made.anatomy.receptive_field is not None


class Limited(nn.Module):
    """Has learned places for 800 frames; hears longer clips in parts, or not at all."""

    def __init__(self, parts):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(1, 8, (M, 8), 8), nn.BatchNorm1d(8)
        self.places, self.head, self.parts = (
            nn.Parameter(torch.randn(8, 100)),
            nn.Linear(8, K),
            parts,
        )

    def forward(self, x):
        parts = x.split(800, 3) if self.parts else [x]
        h = self.embed(torch.cat(parts)).squeeze(2)
        h = self.norm(h + self.places[:, : h.shape[2]])
        return self.head(h.mean(2)).unflatten(0, (len(parts), -1)).mean(0)


@pytest.mark.parametrize(("parts", "said"), [(False, "fails"), (True, "parts of its own")])
def test_a_clip_that_is_too_long_is_refused(parts, said):
    torch.manual_seed(0)
    made = ForeignTeacher(Limited(parts).eval(), M, K)
    assert made.hidden(mels(2, 800)).frames_BCT.shape == (2, 8, 100)
    with pytest.raises(TeacherError, match=f"1600 frames: it .*{said}"):
        made.hidden(mels(2, 1600))


def test_answers_per_frame_are_averaged():
    made, x = teacher("Crnn"), mels(2, 60)
    strong = made.module(x.transpose(2, 3))
    assert torch.allclose(made(x), strong.logit().mean(1), atol=1e-4)
    assert "answers per frame" in " ".join(made.doubts)


def test_a_padded_batch_is_answered_clip_by_clip():
    made = teacher("SqueezeExcite")
    x, lengths = mels(4, 60), torch.tensor([60, 35, 60, 20])
    together = made(x, lengths)
    alone = torch.cat([made(x[i : i + 1, :, :, :n]) for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(together, alone, atol=1e-6)
    with pytest.raises(TeacherError, match="has no masks"):
        made.hidden(x, lengths)


def test_states_can_be_named():
    made = teacher("XVector", frames="tdnn.4", pooled="norm@in")
    assert made.hidden(mels()).pooled_BD.shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("KeywordNet", {"frames": "nowhere"}, "has no module nowhere"),
        ("KeywordNet", {"frames": "classify"}, "no state with time"),
        ("KeywordNet", {"pooled": "bn1"}, "no state without time"),
        ("KeywordNet", {"layout": "B1MT"}, "Tried: B1MT"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_its_reason(name, how, said):
    with pytest.raises(TeacherError, match=said) as caught:
        teacher(name, **how)
    assert caught.value.fix


@dataclass
class Output:
    embedding: Tensor
    logits: Tensor


class Returns(zoo.KeywordNet):
    """The answer, and more than that."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        logits = super().forward(x)
        hidden = logits.new_zeros(len(x), 7)
        return {
            "tuple": (hidden, logits),
            "nested": {"aux": (hidden, {"deep": logits})},
            "mapping": {"embedding": logits + 1, "logits": logits},
            "data class": Output(hidden, logits),
        }[self.how]


@pytest.mark.parametrize("how", ["tuple", "nested", "mapping", "data class"])
def test_the_logits_are_found_in_what_is_returned(how):
    torch.manual_seed(0)
    module = zoo.lively(Returns(how), "BTM")
    x = torch.randn(3, 1, M, 60)
    expected = zoo.KeywordNet.forward(module, x[:, 0].transpose(1, 2))
    assert torch.allclose(ForeignTeacher(module, M, K).hidden(x).logits_BK, expected, atol=1e-5)


class Pictures(nn.Module):
    """A network for pictures, which sees the mel in three colours."""

    def __init__(self):
        super().__init__()
        self.trunk, self.fc = nn.Sequential(zoo.conv(3, 8, 2), zoo.conv(8, 12, 2)), nn.Linear(12, K)

    def forward(self, x):
        assert x.shape[2] == M
        return self.fc(self.trunk(x).mean((2, 3)))


def test_three_channels_are_the_same_mel_thrice():
    torch.manual_seed(0)
    module = zoo.lively(Pictures(), "B3MT")
    made = ForeignTeacher(module, M, K)
    assert made.anatomy.layout == "B3MT"
    x = torch.randn(2, 1, M, 60)
    assert torch.allclose(made(x), module(x.expand(-1, 3, -1, -1)), atol=1e-6)


class Unsqueezing(Pictures):
    """Convolutions over a picture that it makes of three axes: any order of them fits."""

    def forward(self, x):
        assert x.ndim == 3
        return self.fc(self.trunk(x[:, None].expand(-1, 3, -1, -1)).mean((2, 3)))


def test_an_ambiguous_order_of_axes_must_be_named():
    module = zoo.lively(Unsqueezing(), "BTM")
    with pytest.raises(TeacherError, match="alike") as caught:
        ForeignTeacher(module, M, K)
    assert "--layout BTM" in (caught.value.fix or "")
    assert ForeignTeacher(module, M, K, layout="BTM").anatomy.layout == "BTM"


def test_an_assumed_order_of_axes_is_reported():
    assumed = ForeignTeacher(zoo.lively(zoo.Attention()), M, K)
    assert assumed.anatomy.also == ("B1TM",)
    assert "--layout B1MT" in assumed.doubts[0]
    assert ForeignTeacher(zoo.lively(zoo.Attention()), M, K, layout="B1MT").doubts == ()


class Random(zoo.KeywordNet):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


class Waveforms(nn.Conv1d):
    def __init__(self):
        super().__init__(1, K, 400, 160)

    def forward(self, x):
        assert x.ndim == 2, "expected (batch, samples)"
        return super().forward(x[:, None]).mean(2)


class WithLengths(zoo.KeywordNet):
    def forward(self, x, lengths):
        return super().forward(x)


@pytest.mark.parametrize(
    ("module", "said", "fix"),
    [
        (Random(), "differ between two equal calls", "self.training"),
        (Waveforms(), r"expected \(batch, samples\)", "--sample-rate"),
        (WithLengths(), "missing 1 required positional argument: 'lengths'", "one argument"),
        (nn.Conv1d(24, K, 3), f"does not turn log-mels of {M} bands", "Check mel and labels"),
    ],
)
def test_what_needs_a_wrapper_is_refused_with_the_fix(module, said, fix):
    with pytest.raises(TeacherError, match=said) as caught:
        ForeignTeacher(module.eval(), M, K)
    assert fix in (caught.value.fix or "")


def test_a_channel_that_an_inline_relu_silences_hides_no_state():
    """Its mean of 0 is above the greatest value before the ReLU."""
    module = zoo.lively(zoo.KeywordNet(), "BTM")
    with torch.no_grad():
        module.get_parameter("bn2.bias")[3] = -50
    states = ForeignTeacher(module, M, K).anatomy.states
    assert (states.frames, states.pooled, states.pooling) == (
        "bn2", "classify@in", "mean after a ReLU",
    )  # fmt: skip


def test_a_clip_that_is_too_short_for_its_convolutions_is_repeated():
    made = ForeignTeacher(zoo.lively(zoo.XVector(), "BMT"), M, K)
    assert made.shortest == 9
    x = torch.randn(2, 1, M, 4)
    again = torch.cat([x, x, x[..., :1]], 3)
    assert torch.allclose(made(x), made(again))
