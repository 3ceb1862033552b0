"""Checkpoints and networks as colleagues hand them over."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import teacher_zoo as zoo
import torch
from teacher_zoo import K, M
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from frami_edge.cli import app
from frami_edge.errors import CheckpointError, TeacherError
from frami_edge.teachers.foreign import ForeignTeacher
from frami_edge.teachers.opening import (
    build_module,
    load_weights,
    open_teacher,
    read_description,
    read_weights,
    write_description,
)


def state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(zoo.KeywordNet().state_dict())


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


FRONT = {"mel.spectrogram.window": torch.ones(4), "criterion.weight": torch.ones(K)}
SAVED: dict[str, Any] = {
    "plain": state(),
    "DataParallel": under("module.", state()),
    "compiled DataParallel": {"model": under("_orig_mod.module.", state()), "epoch": 3},
    "Lightning": {
        "state_dict": under("net.", state()) | FRONT,
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
    },
    "timm": {"state_dict": state(), "args": Namespace(lr=0.1, path="x"), "arch": "kws"},
    "AveragedModel": under("module.", state()) | {"n_averaged": torch.tensor(3)},
    "an unusual name": under("student.encoder.", state()) | under("teacher.", {"a": torch.ones(1)}),
    "profiled": state() | {"total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)},
    "EMA beside its equal": {"model": state(), "ema": state()},
    "float16": {k: v.half() if v.is_floating_point() else v for k, v in state().items()},
    "bfloat16": {k: v.bfloat16() if v.is_floating_point() else v for k, v in state().items()},
    "without counters": {k: v for k, v in state().items() if "num_batches" not in k},
}


@pytest.mark.parametrize("name", SAVED)
def test_checkpoints_of_common_trainers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.pt"
    torch.save(SAVED[name], path)
    torch.manual_seed(9)
    model = zoo.KeywordNet()
    load_weights(model, read_weights(path), path)
    expected = state()["conv2.weight"]
    assert torch.allclose(model.conv2.weight, expected, atol=1e-2)
    assert model.conv2.weight.dtype == torch.float32


def test_two_sets_of_weights_are_not_chosen_between(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"model": state(0), "ema": under("module.", state(1))}, path)
    with pytest.raises(CheckpointError, match=r"several sets.*under ema\.module, model") as caught:
        load_weights(zoo.KeywordNet(), read_weights(path), path)
    assert "weights_under: model" in (caught.value.fix or "")
    model = zoo.KeywordNet()
    load_weights(model, read_weights(path), path, "ema.module")
    assert torch.equal(model.conv1.weight, state(1)["conv1.weight"])
    with pytest.raises(CheckpointError, match="missing: "):
        load_weights(zoo.KeywordNet(), read_weights(path), path, "nowhere")


def test_which_set_is_said_in_the_description(tmp_path: Path) -> None:
    torch.save({"model": state(0), "ema": state(1)}, tmp_path / "c.pt")
    (tmp_path / "t.yaml").write_text(
        "factory: teacher_zoo:KeywordNet\nweights: c.pt\nweights_under: ema\nmel: {n_mels: 16}\n"
        "labels: [a, b, c, d, e]\n"
    )
    model = open_teacher(tmp_path / "t.yaml").model
    assert isinstance(model, ForeignTeacher)
    assert torch.equal(model.module.get_parameter("conv1.weight"), state(1)["conv1.weight"])
    write_description(tmp_path / "again.yaml", read_description(tmp_path / "t.yaml"))
    assert read_description(tmp_path / "again.yaml").weights_under == "ema"


def test_what_is_left_over_beside_the_weights_is_still_named(tmp_path: Path) -> None:
    deeper = under("net.", state() | {"conv3.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"unknown: conv3\.weight"):
        load_weights(zoo.KeywordNet(), deeper, tmp_path / "c.pt")


@dataclass
class Output:
    embedding: Tensor
    logits: Tensor


class Returns(zoo.KeywordNet):
    """The answer, and more than that."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        hidden = logits.new_zeros(len(x), 7)
        return {
            "tuple": (hidden, logits),
            "list": [logits, hidden],
            "nested": {"aux": (hidden, {"deep": logits})},
            "mapping": {"embedding": logits + 1, "logits": logits},
            "data class": Output(hidden, logits),
        }[self.how]


@pytest.mark.parametrize("how", ["tuple", "list", "nested", "mapping", "data class"])
def test_the_logits_are_found_in_what_is_returned(how: str) -> None:
    torch.manual_seed(0)
    module = zoo.lively(Returns(how), "BTM")
    x = torch.randn(3, 1, M, 60)
    expected = zoo.KeywordNet.forward(module, x[:, 0].transpose(1, 2))  # type: ignore[arg-type]
    assert torch.allclose(ForeignTeacher(module, M, K).hidden(x).logits_BK, expected, atol=1e-5)


class Pictures(nn.Module):
    """A network for pictures, which sees the mel in three colours."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = nn.Sequential(zoo.conv(3, 8, 2), zoo.conv(8, 12, 2)), nn.Linear(12, K)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == M
        return self.fc(self.trunk(x).mean((2, 3)))


def test_three_channels_are_the_same_mel_thrice() -> None:
    torch.manual_seed(0)
    module = zoo.lively(Pictures(), "B3MT")
    made = ForeignTeacher(module, M, K)
    assert made.anatomy.layout == "B3MT"
    x = torch.randn(2, 1, M, 60)
    assert torch.allclose(made(x), module(x.expand(-1, 3, -1, -1)), atol=1e-6)


class Unsqueezing(nn.Module):
    """Convolutions over a picture that it makes of three axes: any order of them fits."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = nn.Sequential(zoo.conv(1, 8, 2), zoo.conv(8, 12, 2)), nn.Linear(12, K)

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 3
        return self.fc(self.trunk(x[:, None]).mean((2, 3)))


def test_an_order_of_axes_that_nobody_can_know_is_asked_for() -> None:
    module = zoo.lively(Unsqueezing(), "BTM")
    with pytest.raises(TeacherError, match="alike") as caught:
        ForeignTeacher(module, M, K)
    assert "--layout BTM" in (caught.value.fix or "")
    assert ForeignTeacher(module, M, K, layout="BTM").anatomy.layout == "BTM"


def test_an_order_of_axes_that_was_assumed_is_told() -> None:
    assumed = ForeignTeacher(zoo.lively(zoo.Attention()), M, K)
    assert assumed.anatomy.also == ("B1TM",)
    assert "--layout B1MT" in assumed.doubts[0]
    assert ForeignTeacher(zoo.lively(zoo.Attention()), M, K, layout="B1MT").doubts == ()


class Random(zoo.KeywordNet):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Normalised(zoo.KeywordNet):
    """Its mean and deviation are buffers of its own, and the mel has none."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(-8.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.get_buffer("mean")) / 4)


class Waveforms(nn.Conv1d):
    def __init__(self) -> None:
        super().__init__(1, K, 400, 160)

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 2, "expected (batch, samples)"
        return super().forward(x[:, None]).mean(2)


class WithLengths(zoo.KeywordNet):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Broken(zoo.KeywordNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


@pytest.mark.parametrize(
    ("module", "said", "fix"),
    [
        (Random(), "differently each time", "self.training"),
        (Broken(), "not finite", "mean and std"),
        (Waveforms(), r"expected \(batch, samples\)", "waveforms"),
        (WithLengths(), "missing 1 required positional argument: 'lengths'", "one argument"),
        (nn.Sequential(nn.Flatten(), nn.Linear(M * 101, K)), "clips of 101 frames", "any length"),
    ],
)
def test_what_is_refused_says_how_to_go_on(module: nn.Module, said: str, fix: str) -> None:
    with pytest.raises(TeacherError, match=said) as caught:
        ForeignTeacher(module.eval(), M, K)
    assert fix in (caught.value.fix or "")


def test_half_precision_and_normalisation_inside_are_fine() -> None:
    made = ForeignTeacher(zoo.lively(Normalised(), "BTM").half(), M, K)
    assert made.hidden(torch.randn(2, 1, M, 60)).logits_BK.dtype == torch.float32


def test_a_channel_that_an_inline_relu_silences_hides_no_state() -> None:
    """Its mean of 0 lies above the greatest value before the ReLU."""
    module = zoo.lively(zoo.KeywordNet(), "BTM")
    with torch.no_grad():
        module.get_parameter("bn2.bias")[3] = -50
    states = ForeignTeacher(module, M, K).anatomy.states
    assert (states.frames, states.pooled, states.pooling) == (
        "bn2", "classify@in", "mean after a ReLU",
    )  # fmt: skip


@pytest.fixture
def loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that talks when it is imported, built and left."""
    (tmp_path / "loud_nets.py").write_text(
        "import sys\nimport teacher_zoo\nprint('hello')\n"
        "def build():\n    print('building')\n    return teacher_zoo.KeywordNet()\n"
    )
    (tmp_path / "script_nets.py").write_text("import sys\nsys.exit('training done')\n")
    (tmp_path / "faulty_nets.py").write_text("def broken(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "loud_nets:build"
    for name in ("loud_nets", "script_nets", "faulty_nets"):
        sys.modules.pop(name, None)


def test_what_their_code_prints_is_no_result(tmp_path: Path, loud: str) -> None:
    torch.save(zoo.lively(zoo.KeywordNet(), "BTM").state_dict(), tmp_path / "w.pt")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "mel.yaml").write_text("n_mels: 16\n")
    files = ["--weights", tmp_path / "w.pt", "--mel", tmp_path / "mel.yaml"]
    words = ["inspect", loud, *files, "--labels", tmp_path / "labels.txt", "--json"]
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kind"] == "foreign-teacher"
    assert "building" in result.stderr


@pytest.mark.usefixtures("loud")
@pytest.mark.parametrize(
    ("name", "said"), [("script_nets", "training done"), ("faulty_nets", "SyntaxError")]
)
def test_modules_that_cannot_be_imported_say_why(name: str, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        build_module(f"{name}:Net", {})


def test_the_wrapper_of_the_page_takes_any_length(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "MY_TEACHER.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    exec(page.split("```python file=any_length.py\n")[1].split("```")[0], found)
    torch.manual_seed(0)
    fixed = nn.Sequential(zoo.conv(1, 4, 2), nn.Flatten(), nn.Linear(4 * 8 * 16, K))
    wrapped = found["AnyLength"](nn.Sequential(zoo.conv(1, 4, 2), nn.Flatten(), fixed[2]), 32)
    load_weights(wrapped, under("module.", fixed.state_dict()), tmp_path / "c.pt")
    made = ForeignTeacher(wrapped, M, K, layout="B1MT")
    assert (made.anatomy.states.frames, made.anatomy.states.pooled) == ("windows@in", "pooled@in")
    assert made.frame_stride == 16
    x = torch.randn(2, 1, M, 32)
    expected = fixed.eval()(x).log_softmax(1)
    assert torch.allclose(made(x), expected, atol=1e-5)
    assert made(x[..., :20]).shape == (2, K)


def test_a_clip_that_is_too_short_for_its_convolutions_is_repeated() -> None:
    made = ForeignTeacher(zoo.lively(zoo.XVector(), "BMT"), M, K)
    assert made.shortest == 9
    x = torch.randn(2, 1, M, 4)
    again = torch.cat([x, x, x[..., :1]], 3)
    assert torch.allclose(made(x), made(again))
