"""ONNX files as teachers: small networks, exported as people export them."""

import re

import numpy as np
import onnx
import pytest
import teacher_zoo as zoo
import torch
from onnx import TensorProto, helper, numpy_helper
from teacher_zoo import RATE, K, M
from torch import nn

from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.frontend import LogMel
from frami_edge.inspecting import describe_teacher
from frami_edge.losses import live_batch_norms
from frami_edge.teachers import load_teacher
from frami_edge.teachers.calling import Input, arrange
from frami_edge.teachers.opening import describe_code, open_teacher, write_description
from frami_edge_runtime.melspec import MelSpec

pytest.importorskip("onnx2torch", reason="needs `pip install frami-edge[onnx]`")

SPEC = MelSpec(n_mels=M)
LABELS = list("abcde")
QUICK = {"dynamo": False}
"""torch's former exporter."""
UNFOLDED = QUICK | {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
FREE = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "optimize": False}


class Plain(nn.Module):
    """Probabilities of a CNN whose `view` writes the batch size into the graph."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(zoo.conv(1, 8, 2), zoo.conv(8, 12, 2))
        self.fc = nn.Linear(12, K)

    def forward(self, x):
        h = nn.functional.adaptive_avg_pool2d(self.trunk(x), 1)
        return self.fc(h.view(h.size(0), -1)).softmax(1)


def export(path, module, x, **how):
    torch.onnx.export(module.eval(), (x,), path, verbose=False, **how)
    return path


def outside(path):
    """The file with its weights in another one, as torch's exporter leaves it."""
    model, beside = onnx.load(path), path.with_name("net.onnx.data")
    beside.unlink(missing_ok=True)
    how = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save_model(model, path, location=beside.name, **how)
    return path


def clips(layout, n, length=96):
    taken = Input(sample_rate=RATE) if "N" in layout else Input(n_mels=M)
    return arrange(taken.probe(length, n), layout).contiguous()


def plain(seed=0):
    torch.manual_seed(seed)
    return zoo.lively(Plain()).eval()


@pytest.mark.parametrize(
    ("name", "layout", "how", "norms", "length"),
    [
        ("Plain", "B1MT", {}, 0, None),  # the exporter's defaults: folded, one batch size
        ("Plain", "B1MT", FREE, 2, None),
        ("Plain", "B1MT", QUICK | {"opset_version": 13}, 0, None),
        ("SubSpectral", "B1TM", UNFOLDED, 3, 96),
        ("Vggish", "B1MT", QUICK, 0, 96),
        ("M5", "B1N", QUICK, 0, None),
    ],
)
def test_a_file_answers_as_the_network_that_it_was_exported_from(
    name, layout, how, norms, length, tmp_path
):
    torch.manual_seed(0)
    module = plain() if name == "Plain" else getattr(zoo, name)().eval()
    audio = "N" in layout
    samples = 16_384 if audio else 96
    batch = 2 if "dynamic_shapes" in how else 1
    path = export(tmp_path / "net.onnx", module, clips(layout, batch, samples), **how)
    facts = {"sample_rate": RATE} if audio else {"mel": SPEC}
    teacher = load_teacher(path, labels=LABELS, **facts)
    anatomy = teacher.model.anatomy
    assert (anatomy.layout, anatomy.clip_length) == (layout, length)
    assert len(live_batch_norms(teacher.model)) == norms
    assert teacher.model.head is not None
    x = clips("BN" if audio else "B1MT", 3, samples).requires_grad_()
    logits = teacher(x)
    assert torch.autograd.grad(logits.square().sum(), x)[0].abs().sum() > 0
    with torch.no_grad():
        expected = module(arrange(x, layout))
    if name == "Plain":
        assert anatomy.answers == "probabilities"
        logits = logits.softmax(1)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_the_operations_of_a_standard_deviation_hide_no_state(tmp_path):
    torch.manual_seed(0)
    module = zoo.lively(zoo.XVector(), "BMT")
    teacher = load_teacher(
        export(tmp_path / "net.onnx", module, clips("BMT", 1), **QUICK), labels=LABELS, mel=SPEC
    )
    x = clips("B1MT", 3)
    with torch.no_grad():
        expected = module.get_submodule("tdnn")(x[:, 0])
    assert torch.allclose(teacher.hidden(x).frames_BCT, expected, atol=1e-4)


def test_the_log_mel_inside_a_graph_is_found(tmp_path):
    torch.manual_seed(0)
    module = zoo.Panns().eval()
    x, free = clips("BN", 2, 16_384), {"audio": {0: "batch", 1: "samples"}}
    how = QUICK | {"input_names": ["audio"], "dynamic_axes": free}
    path = export(tmp_path / "panns.onnx", module, x, **how)
    teacher = load_teacher(path, labels=LABELS, sample_rate=RATE)
    assert teacher.takes == "mel"
    assert teacher.output == "sigmoid"
    with torch.no_grad():
        expected = module(x)["clipwise_output"]
        ours = teacher(LogMel(teacher.mel)(x)[:, None]).sigmoid()
    assert torch.allclose(ours, expected, atol=1e-3)


def test_a_description_names_the_file_and_what_it_lacks(tmp_path):
    path = outside(export(tmp_path / "net.onnx", plain(), clips("B1MT", 1), **QUICK))
    with pytest.raises(TeacherError, match="does not say which classes") as caught:
        load_teacher(path)
    assert "`weights: net.onnx`" in (caught.value.fix or "")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    text = "weights: net.onnx\nlabels: labels.txt\nmel: {n_mels: 16}\n"
    (tmp_path / "teacher.yaml").write_text(
        f"{text}trained_on: {{data: fsdd, test_fold: test, clips: 3, sha256: {'a' * 64}}}\n"
    )
    teacher = open_teacher(tmp_path / "teacher.yaml")
    assert teacher.card.trained_on is not None
    (tmp_path / "run").mkdir()
    write_description(tmp_path / "run" / "teacher.yaml", teacher.description)
    again = open_teacher(tmp_path / "run" / "teacher.yaml")
    assert again.sha256 == teacher.sha256
    assert again.card.trained_on == teacher.card.trained_on
    assert load_teacher(path, labels=LABELS, mel=SPEC).sha256 == teacher.sha256

    outside(export(path, plain(1), clips("B1MT", 1), **QUICK))  # only the weights differ
    assert open_teacher(tmp_path / "teacher.yaml").sha256 != teacher.sha256
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"net\.onnx cannot be read"):
        open_teacher(tmp_path / "teacher.yaml")
    (tmp_path / "teacher.yaml").write_text(f"factory: teacher_zoo:KeywordNet\n{text}")
    with pytest.raises(ConfigError, match="holds its network itself"):
        open_teacher(tmp_path / "teacher.yaml")


def test_a_student_can_inherit_the_layers_of_a_graph(tmp_path):
    path = export(tmp_path / "net.onnx", plain(), clips("B1MT", 1), **UNFOLDED)
    description = describe_code(str(path), {"labels": LABELS, "mel": SPEC})
    found = describe_teacher(description).to_dict()
    assert set(found["network"]["batch_norms"].values()) == {8, 12}
    assert 956 in found["network"]["inheritable"].values()
    assert not any("B1TM" in finding for finding in found["findings"])  # its shapes say B1MT


def graph(*nodes, **arrays):
    """x (1, 1, M, 96) to y (1, K)."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, [1, 1, M, 96])],
        [value("y", TensorProto.FLOAT, [1, K])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def net(name="conv", shape=(1, K)):
    rng = np.random.default_rng(0)
    return graph(
        helper.make_node("Conv", ["x", "w"], ["a"], name),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], "pool"),
        helper.make_node("Reshape", ["b", "shape"], ["y"], "flat"),
        w=rng.normal(size=(K, 1, 3, 3)).astype(np.float32),
        shape=np.array(shape, np.int64),
    )


def opened(path, model, **facts):
    onnx.save(model, path)
    return load_teacher(path, labels=LABELS, **{"mel": SPEC, **facts})


def test_the_name_of_a_node_is_not_run_as_code(tmp_path):
    name = 'x")(1) or setattr(__import__("builtins"), "ran_by_onnx", 1) or getattr(self, "x'
    teacher = opened(tmp_path / "net.onnx", net(name))
    teacher(clips("B1MT", 2))
    import builtins

    assert not hasattr(builtins, "ran_by_onnx")
    assert all(re.fullmatch(r"[\w/.]*", n) for n, _ in teacher.model.named_modules())


def mixing():
    """Subtracts the mean over the batch, which is nothing in a batch of one."""
    model = net()
    model.graph.node[2].output[0] = "z"
    model.graph.node.append(helper.make_node("ReduceMean", ["z"], ["m"], "m", axes=[0]))
    model.graph.node.append(helper.make_node("Mul", ["m", "z"], ["y"], "mul"))
    return model


def squeezing():
    """The batch axis of size 1 is squeezed away and put back."""
    model = net()
    model.graph.node[2].CopyFrom(helper.make_node("Squeeze", ["b"], ["z"], "squeeze"))
    model.graph.node.append(helper.make_node("Unsqueeze", ["z", "shape"], ["y"], "back"))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "shape"))
    return model


def unknown():
    model = net()
    model.graph.node[0].output[0] = "c"
    model.graph.node.insert(1, helper.make_node("Det", ["c"], ["a"], "det"))
    return model


def two_inputs():
    model = net()
    model.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, [1]))
    return model


@pytest.mark.parametrize(
    ("model", "facts", "said", "fix"),
    [
        (unknown(), {}, "the operation Det is not known", "opset_version=17"),
        (two_inputs(), {}, "does not take one tensor of float32: x, lengths", "alone"),
        (squeezing(), {}, "takes batches of 1 alone", "free batch axis"),
        (mixing(), {}, "answers otherwise in PyTorch than in ONNX Runtime", "free batch axis"),
        (net(), {"mel": MelSpec(n_mels=40)}, r"cannot run .*\(4, 1, 40, 96\)", "Check mel"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_with_the_fix(model, facts, said, fix, tmp_path):
    with pytest.raises(TeacherError, match=said) as caught:
        opened(tmp_path / "net.onnx", model, **facts)
    assert fix in (caught.value.fix or "")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(net().SerializeToString()[:300])
    with pytest.raises(CheckpointError, match=r"net\.onnx"):
        load_teacher(tmp_path / "net.onnx", labels=LABELS, mel=SPEC)
