"""Students whose first layers are their teacher's."""

import pytest
import torch
from torch import Tensor, nn

from frami_edge import load_teacher
from frami_edge.checkpoint import Card, Student, load_checkpoint
from frami_edge.config import BankConfig, DistillConfig, JourneyConfig, StudentArch
from frami_edge.distillation import TensorSampler, distill
from frami_edge.errors import CheckpointError, ConfigError, FramiEdgeError
from frami_edge.teachers.inheriting import inherit, inheritable
from frami_edge_export.parity import check_streamable


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, c):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(c, 4), nn.Linear(4, c)

    def forward(self, x):
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return torch.stack([x * gate[:, :, None, None]]).amax(0)  # as published taggers write it


class Residual(nn.Module):
    """A gated inverted residual, dilated along time."""

    def __init__(self, c):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(c, 2 * c, 1), nn.BatchNorm2d(2 * c), nn.Hardswish(),
            nn.Conv2d(2 * c, 2 * c, (3, 5), padding=(1, 4), dilation=(1, 2), groups=2 * c),
            nn.BatchNorm2d(2 * c), nn.SiLU(), Gate(2 * c),
            nn.Conv2d(2 * c, c, 1, bias=False), nn.BatchNorm2d(c),
        )  # fmt: skip

    def forward(self, x):
        return x + self.block(x)


class Tagger(nn.Module):
    """Scale per channel first, strided convolutions, a residual block, and recurrence behind."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.BatchNorm2d(1), nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Dropout(0.1), Residual(6),
            nn.Conv2d(6, 8, (3, 5), (2, 2), (0, 2)), nn.BatchNorm2d(8), nn.ReLU6(),
        )  # fmt: skip
        self.recur = nn.GRU(8 * 3, 12, batch_first=True)
        self.classify = nn.Linear(12, 5)

    def forward(self, x):
        h = self.features(x).flatten(1, 2).transpose(1, 2)
        out = self.classify(self.recur(h)[0].mean(1).squeeze())
        if out.dim() == 1:  # torch.fx cannot go on here
            out = out[None]
        return out


@pytest.fixture
def tagger(spec):
    torch.manual_seed(3)
    model = Tagger()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(8, 1, spec.n_mels, 40))
        for gate in model.modules():
            if isinstance(gate, Gate):  # the same for every clip, so that its mean is exact
                gate.excite.weight.zero_()
                gate.excite.bias.normal_()
    return load_teacher(model.eval(), mel=spec, labels=list("abcde"), output="softmax")


@pytest.mark.parametrize("name", ["features.4", "features.7", "features.4.block.6"])
def test_inherited_layers_are_the_teachers(tagger, spec, name):
    x, seen = torch.randn(3, 1, spec.n_mels, 90), dict[str, Tensor]()
    module = tagger.model.module.get_submodule(name)
    hook = module.register_forward_hook(lambda _, __, out: seen.update(out=out))
    tagger.model(x)
    hook.remove()
    layers = inherit(tagger.model, name, x)
    found, c = layers(x), layers.cut
    torch.testing.assert_close(found, seen["out"][..., c:-c], atol=1e-5, rtol=1e-5)
    assert found.shape[1:3] == (layers.channels, layers.bands)
    assert found.shape[3] == (90 - layers.receptive_field) // layers.stride + 1
    gates = 1 if name.endswith("block.6") else 0  # elsewhere the convolution behind it took it up
    assert len(layers.convolutions) == {"features.4": 5, "features.7": 6}.get(name, 4 + gates)


@pytest.mark.parametrize("frames", [1, 2, 15, 41, 90])
@pytest.mark.parametrize("name", ["features.4", "features.7"])
def test_silence_around_a_clip_is_computed_once(tagger, spec, name, frames):
    x = torch.randn(3, 1, spec.n_mels, frames)
    layers = inherit(tagger.model, name, x)
    around = layers.cut * layers.stride
    want = layers(nn.functional.pad(x, (around, around)))
    torch.testing.assert_close(layers.in_silence(x), want, atol=1e-5, rtol=1e-5)


def test_a_student_inherits_streams_and_is_saved(tagger, spec, cpu, tmp_path):
    arch = StudentArch(
        inherit="features.7", channels=(10, 12), time_kernels=(1, 3), out_channels=12
    )
    config = JourneyConfig(
        student=arch,
        bank=BankConfig(clip_s=0.4),
        distill=DistillConfig(steps=3, batch_size=8, crop_min_s=0.2, crop_max_s=0.4),
    )
    clips = torch.randn(64, 1, spec.n_mels, 40)
    student = distill(tagger, TensorSampler(clips), config, cpu)
    want = inherit(tagger.model, "features.7", clips).state_dict()
    torch.testing.assert_close(student.inherited.state_dict(), want)
    whole = student.trunk(nn.functional.pad(clips, student.context))
    torch.testing.assert_close(student.hidden(clips).frames_BCT, whole, atol=1e-5, rtol=1e-5)
    check_streamable(
        student.trunk, student.receptive_field, student.stride, student.channels, spec, 0
    )
    card = Card(
        kind="student", arch=student.arch.model_dump(mode="json"), mel=spec.to_dict(),
        labels=tagger.labels,
    )  # fmt: skip
    Student(student, card, spec, "").save(tmp_path / "student.safetensors")
    again = load_checkpoint(tmp_path / "student.safetensors", "student")
    torch.testing.assert_close(again.model(clips), student(clips))

    for layer in ({"of": [9]}, {"of": [0, 0]}, {"channels": 7}, {"groups": 5}):
        arch = student.arch.model_dump(mode="json")
        arch["layers"][1] |= layer
        Student(student, card.model_copy(update={"arch": arch}), spec, "").save(tmp_path / "bad")
        with pytest.raises(CheckpointError, match="do not fit the network"):
            load_checkpoint(tmp_path / "bad", "student")
    with pytest.raises(ValueError, match="layers are found by distill"):
        StudentArch(layers=student.arch.layers)

    coarser = spec.replace(n_mels=12)
    with pytest.raises(ConfigError, match="needs its teacher's front end"):
        distill(tagger, TensorSampler(clips), config, cpu, mel=coarser)


def test_layers_of_our_own_teacher(opened, spec):
    x = torch.randn(2, 1, spec.n_mels, 120)
    layers = inherit(opened.model, "blocks.1", x)
    h = torch.relu(opened.model.stem_bn(opened.model.stem(x)))
    for block in opened.model.blocks[:2]:
        h = block(h, None)[0]
    c = layers.cut
    torch.testing.assert_close(layers(x), h[..., c:-c], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "it runs no module of that name before torch.fx stops at its code"),
        ("recur", "is no layer that streams"),
        ("features.4.block.6.excite", "is no layer that streams"),
    ],
)
def test_what_cannot_be_inherited(tagger, spec, name, says):
    x = torch.randn(2, 1, spec.n_mels, 60)
    with pytest.raises(FramiEdgeError, match=says) as refused:
        inherit(tagger.model, name, x)
    assert "features (1,144 parameters)" in refused.value.fix
    assert inheritable(tagger.model, x)["features"] == 1144
