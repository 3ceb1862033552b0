"""From files, modules and Python code to a teacher."""

import json
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import teacher_zoo as zoo
import torch
from safetensors.torch import save_file
from teacher_zoo import K, M

from frami_edge.checkpoint import DIGITS_TEACHER
from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.teachers import load_teacher
from frami_edge.teachers.opening import (
    build_module,
    open_teacher,
    read_description,
    write_description,
)
from frami_edge.teachers.weights import load_weights, read_weights
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.melspec import MelSpec

MEL = "sample_rate: 8000\nn_fft: 256\nwin_length: 200\nhop_length: 80\nn_mels: 16\nlog: log2\n" \
      "mel_scale: slaney\nnorm: slaney\ncenter: true\nmean: -8.0\nstd: 4.0\n"  # fmt: skip
SPEC = MelSpec(n_mels=M)
LABELS = ("go", "stop", "left", "right", "up")
GIVEN = {"mel": SPEC, "labels": LABELS}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_file(zoo.lively(zoo.KeywordNet(), "BTM").state_dict(), tmp_path / "kws.safetensors")
    (tmp_path / "mel.yaml").write_text(MEL)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (tmp_path / "kws.yaml").write_text(
        "factory: teacher_zoo:KeywordNet\nweights: kws.safetensors\nmel: mel.yaml\n"
        "labels: labels.txt\n"
    )
    return tmp_path


def test_a_description_is_relative_to_its_folder(folder):
    loaded = open_teacher(folder / "kws.yaml")
    assert loaded.card.labels == LABELS
    assert (loaded.mel.log, loaded.mel.mel_scale, loaded.mel.center) == ("log2", "slaney", True)
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_weights_that_do_not_fit_are_named(folder):
    model = zoo.KeywordNet(width=10)
    with pytest.raises(CheckpointError, match=r"other shape: conv1\.weight"):
        load_weights(model, read_weights(folder / "kws.safetensors"), Path("kws"))
    with pytest.raises(CheckpointError, match=r"missing: conv1\.weight.*unknown: other"):
        load_weights(model, {"other": torch.zeros(1)}, Path("kws"))
    deeper = {f"net.{key}": value for key, value in zoo.KeywordNet().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"unknown: conv3\.weight"):
        load_weights(zoo.KeywordNet(), deeper | {"net.conv3.weight": torch.ones(1)}, Path("kws"))
    damaged = dict(zoo.KeywordNet().state_dict())
    damaged["classify.bias"] = torch.full((5,), torch.nan)
    with pytest.raises(CheckpointError, match=r"not finite: classify\.bias"):
        load_weights(zoo.KeywordNet(), damaged, Path("kws"))


@pytest.mark.parametrize(
    ("factory", "arguments", "said"),
    [
        ("no_such_module:Net", {}, "no_such_module:Net cannot be imported"),
        ("teacher_zoo:Nothing", {}, "teacher_zoo:Nothing cannot be imported"),
        ("teacher_zoo:KeywordNet", {"depth": 3}, r"KeywordNet\(depth=3\) fails: TypeError"),
        ("builtins:dict", {}, "gives dict, not an nn.Module"),
        ("script_nets:Net", {}, "SystemExit: training done"),
        ("faulty_nets:Net", {}, "SyntaxError"),
    ],
)
def test_factories_that_fail_are_refused_with_the_reason(
    factory, arguments, said, tmp_path, monkeypatch
):
    (tmp_path / "script_nets.py").write_text("import sys\nsys.exit('training done')\n")
    (tmp_path / "faulty_nets.py").write_text("def broken(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TeacherError, match=said):
        build_module(factory, arguments)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"factory": "no colon"}, ConfigError, "factory"),
        ({"labels": ["one"]}, TeacherError, "name 1 classes"),
        ({"labels": "none.txt"}, TeacherError, "cannot be read"),
        ({"weights": "none.pt"}, CheckpointError, "There are no weights"),
        ({"mel": {"n_mel": 3}}, FramiEdgeError, "has no key n_mel"),
        ({"mel": None}, ConfigError, "neither a mel front end nor a sample rate"),
        ({"unknown": 1}, ConfigError, "unknown"),
    ],
)
def test_mistakes_in_a_description(folder, changes, kind, said):
    base = {"factory": "teacher_zoo:KeywordNet", "weights": "kws.safetensors", "mel": "mel.yaml",
            "labels": "labels.txt"}  # fmt: skip
    (folder / "bad.yaml").write_text(json.dumps(base | changes))
    with pytest.raises(kind, match=said):
        open_teacher(folder / "bad.yaml")


def test_a_module_in_memory_is_copied_and_opened():
    torch.manual_seed(0)
    module = zoo.lively(zoo.KeywordNet(), "BTM").train()
    teacher = load_teacher(module, mel=SPEC, labels=LABELS)
    assert (teacher.mel, teacher.labels) == (SPEC, LABELS)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    x = torch.randn(2, 1, M, 60)
    expected = module.eval()(x[:, 0].transpose(1, 2))
    assert torch.allclose(teacher(x), expected, atol=1e-6)
    assert teacher.hidden(x).pooled_BD.shape == (2, 12)
    again = load_teacher(module, mel=SPEC.to_dict(), labels=list(LABELS))
    assert again.sha256 == teacher.sha256
    with torch.no_grad():
        module.get_parameter("classify.bias").add_(1)
    assert load_teacher(module, mel=SPEC, labels=LABELS).sha256 != teacher.sha256


def test_paths_and_assets():
    by_name, by_path = load_teacher("digits-teacher"), load_teacher(str(DIGITS_TEACHER))
    assert by_name.sha256 == by_path.sha256
    assert load_teacher(by_path) is by_path


def test_python_code_keeps_its_description(tmp_path):
    torch.save(zoo.lively(zoo.KeywordNet(8), "BTM").state_dict(), tmp_path / "w.pt")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    teacher = load_teacher(
        "teacher_zoo:KeywordNet", weights=tmp_path / "w.pt", mel=SPEC,
        labels=tmp_path / "labels.txt", arguments={"width": 8},
    )  # fmt: skip
    assert teacher.labels == LABELS
    assert teacher.description.model_dump()["arguments"] == {"width": 8}


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (zoo.KeywordNet(), {"mel": SPEC}, "passed without labels"),
        (zoo.KeywordNet(), GIVEN | {"weights": "w.pt"}, "passed with weights"),
        ("teacher_zoo:KeywordNet", {"mel": SPEC}, "passed without weights, labels"),
        (DIGITS_TEACHER, {"mel": SPEC}, "carries these facts itself"),
        (zoo.KeywordNet(), {"mel": 5, "labels": LABELS}, "mel: .*, not 5"),
        (zoo.KeywordNet(), {"mel": SPEC, "labels": range(5)}, "labels.0: .* string, not 0"),
        (zoo.KeywordNet(), GIVEN | {"layout": "XYZ"}, "'B3TM', .* not 'XYZ'"),
        (zoo.KeywordNet(), GIVEN | {"output": "tanh"}, "not 'tanh'"),
        (zoo.M5(), {"sample_rate": 0, "labels": LABELS}, "sample_rate: .*1000, not 0"),
    ],
)
def test_arguments_that_do_not_go_together(source, arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_teacher(source, **arguments)


def state(seed=0):
    torch.manual_seed(seed)
    return dict(zoo.KeywordNet().state_dict())


def under(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}


FRONT = {"mel.spectrogram.window": torch.ones(4), "criterion.weight": torch.ones(K)}
SAVED = {
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
def test_checkpoints_of_common_trainers(tmp_path, name):
    path = tmp_path / "c.pt"
    torch.save(SAVED[name], path)
    torch.manual_seed(9)
    model = zoo.KeywordNet()
    load_weights(model, read_weights(path), path)
    expected = state()["conv2.weight"]
    assert torch.allclose(model.conv2.weight, expected, atol=1e-2)
    assert model.conv2.weight.dtype == torch.float32


def test_two_sets_of_weights_are_not_chosen_between(tmp_path):
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
    (tmp_path / "t.yaml").write_text(
        "factory: teacher_zoo:KeywordNet\nweights: c.pt\nweights_under: ema.module\n"
        "mel: {n_mels: 16}\nlabels: [a, b, c, d, e]\n"
    )
    found = open_teacher(tmp_path / "t.yaml").model.module
    assert torch.equal(found.get_parameter("conv1.weight"), state(1)["conv1.weight"])
    write_description(tmp_path / "again.yaml", read_description(tmp_path / "t.yaml"))
    assert read_description(tmp_path / "again.yaml").weights_under == "ema.module"


def test_files_of_other_programs_get_a_route(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/code/__torch__.py", "class Net: pass")
    torch.save(state(), tmp_path / "weights.pth")
    (tmp_path / "net.onnx").write_bytes(b"")
    (tmp_path / "net.tflite").write_bytes(b"")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "wav2vec2"}')
    for name, said, fix in (
        ("script.pt", "TorchScript archive", "Convert it to ONNX"),
        ("weights.pth", "weights and not their network", "MODULE:CALLABLE"),
        ("net.onnx", "does not say which classes", "`weights: net.onnx`"),
        ("net.tflite", "TensorFlow", "PyTorch port"),
        ("hub", "folder of Hugging Face", "hf:"),
    ):
        with pytest.raises(TeacherError, match=said) as caught:
            load_teacher(tmp_path / name)
        assert fix in (caught.value.fix or "")
    with pytest.raises(CheckpointError, match="its code is not executed"):
        read_weights(tmp_path / "script.pt")
