from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_kit import MEL, TinyStudent
from torch import nn

from frami_edge_export.errors import GraphError
from frami_edge_export.graph import MAX_IR, OPSET, head_graph, trunk_graph
from frami_edge_export.parity import cpu_session


@pytest.fixture(scope="module")
def graphs(
    student: TinyStudent, trunk: onnx.ModelProto, whole: onnx.ModelProto
) -> dict[str, onnx.ModelProto]:
    return {"trunk": trunk, "whole": whole, "head": head_graph(student)}


@pytest.mark.parametrize("name", ["trunk", "whole", "head"])
def test_loads_on_jetpack_6(graphs: dict[str, onnx.ModelProto], name: str) -> None:
    model = graphs[name]
    assert {o.domain: o.version for o in model.opset_import} == {"": OPSET}
    assert OPSET <= 20
    assert model.ir_version <= MAX_IR == 10


@pytest.mark.parametrize("name", ["trunk", "whole", "head"])
def test_no_local_trace_in_the_bytes(graphs: dict[str, onnx.ModelProto], name: str) -> None:
    data = graphs[name].SerializeToString()
    checkout = str(Path(__file__).resolve().parents[2]).encode()
    for trace in (checkout, b"site-packages", b"/home/", b".py", b"stack_trace"):
        assert trace not in data


def test_batchnorm_is_folded_and_layers_keep_their_names(
    graphs: dict[str, onnx.ModelProto],
) -> None:
    ops = [node.op_type for node in graphs["trunk"].graph.node]
    assert set(ops) == {"Conv", "Relu", "AveragePool", "Squeeze"}
    names = [node.name for node in graphs["trunk"].graph.node if node.op_type == "Conv"]
    assert names == ["0.0", "1.0", "2.0", "3.0", "4.0"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("extra", [0, 1, 2, 57])
def test_axes_are_dynamic(
    graphs: dict[str, onnx.ModelProto], student: TinyStudent, batch: int, extra: int
) -> None:
    mel = np.zeros((batch, 1, MEL.n_mels, student.receptive_field + extra), np.float32)
    h_BCT = cpu_session(graphs["trunk"]).run(["frames"], {"mel": mel})[0]
    assert h_BCT.shape == (batch, student.channels, extra // student.stride + 1)
    clip = mel[..., : 1 + extra]
    assert cpu_session(graphs["whole"]).run(["logits"], {"mel": clip})[0].shape == (batch, 6)


def test_the_context_is_inside_the_whole_graph_only(
    graphs: dict[str, onnx.ModelProto], student: TinyStudent
) -> None:
    # In the whole graph it may be a Pad, or be folded into the first convolution.
    assert all(node.op_type != "Pad" for node in graphs["trunk"].graph.node)
    padding = [
        attribute.ints
        for node in graphs["trunk"].graph.node
        for attribute in node.attribute
        if attribute.name == "pads"
    ]
    assert len(padding) == 5
    assert all(left == right == 0 for _, left, _, right in padding)
    mel = np.random.default_rng(0).standard_normal((2, 1, MEL.n_mels, 7)).astype(np.float32)
    with torch.inference_mode():
        expected = student(torch.from_numpy(mel)).numpy()
    found = cpu_session(graphs["whole"]).run(["logits"], {"mel": mel})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_graph_names_its_axes(graphs: dict[str, onnx.ModelProto]) -> None:
    def axes(value: onnx.ValueInfoProto) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    graph = graphs["trunk"].graph
    assert axes(graph.input[0]) == ["batch", 1, MEL.n_mels, "time"]
    assert axes(graph.output[0]) == ["batch", 24, "frames"]


def test_the_student_is_left_alone(student: TinyStudent) -> None:
    mine = copy.deepcopy(student).train()
    before = copy.deepcopy(mine.state_dict())
    trunk_graph(mine, MEL.n_mels)
    assert mine.training
    assert all(module.training for module in mine.modules())
    assert all(parameter.requires_grad for parameter in mine.parameters())
    for key, value in mine.state_dict().items():
        assert torch.equal(value, before[key])


def test_an_unfoldable_batchnorm_is_refused(student: TinyStudent) -> None:
    mine = copy.deepcopy(student)
    mine.trunk = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), *mine.trunk.children()).eval()
    with pytest.raises(GraphError, match="BatchNorm could not be folded") as caught:
        trunk_graph(mine, MEL.n_mels)
    assert "after a convolution" in caught.value.fix


def test_weights_that_are_not_finite_are_refused(student: TinyStudent) -> None:
    mine = copy.deepcopy(student)
    with torch.no_grad():
        mine.head.weight[0, 0] = float("nan")
    with pytest.raises(GraphError, match="not finite"):
        head_graph(mine)
