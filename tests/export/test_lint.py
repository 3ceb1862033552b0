from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from frami_edge_export.errors import GraphError
from frami_edge_export.lint import Finding, lint_tensorrt
from frami_edge_export.quantise import FLAVOURS, PORTABLE, TENSORRT, Quantiser


@pytest.fixture(scope="module")
def quantiser(trunk: onnx.ModelProto, calibration: np.ndarray) -> Quantiser:
    return Quantiser(trunk, calibration[:40])


def rules(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.rule for finding in findings}


def test_float_graphs_are_clean(trunk: onnx.ModelProto, whole: onnx.ModelProto) -> None:
    assert lint_tensorrt(trunk) == ()
    assert lint_tensorrt(whole) == ()


@pytest.mark.parametrize("flavour", [TENSORRT, PORTABLE], ids=lambda f: f.name)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_our_graphs_for_tensorrt_are_clean(
    quantiser: Quantiser, flavour: object, first: int
) -> None:
    assert lint_tensorrt(quantiser.graph(flavour, quantiser.layers[:first])) == ()  # type: ignore[arg-type]


class _Few(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, mels: np.ndarray) -> None:
        self._mels = iter([mels])

    def get_next(self) -> dict[str, np.ndarray] | None:
        mels = next(self._mels, None)
        return None if mels is None else {"mel": mels}


def test_the_default_qdq_of_onnxruntime_is_caught_with_reasons(
    trunk: onnx.ModelProto, calibration: np.ndarray, tmp_path: Path
) -> None:
    onnx.save_model(trunk, tmp_path / "trunk.onnx")
    quantize_static(
        tmp_path / "trunk.onnx", tmp_path / "default.onnx", _Few(calibration[:16]),
        quant_format=QuantFormat.QDQ,
    )  # fmt: skip
    found = lint_tensorrt(tmp_path / "default.onnx")
    assert {"zero-point", "int32-bias"} <= rules(found)
    biases = [f for f in found if f.rule == "int32-bias"]
    assert len(biases) == 5  # one a convolution
    assert all("QuantizeBias=False" in f.fix for f in biases)
    assert all(f.node and f.message for f in found)


def test_our_own_graph_for_the_cpu_is_not_for_tensorrt(quantiser: Quantiser) -> None:
    found = lint_tensorrt(quantiser.graph(FLAVOURS[0], ()))
    assert {"not-int8", "int32-bias"} <= rules(found)


class _Stft(torch.nn.Module):
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        window = torch.hann_window(64)
        spectrum = torch.stft(samples, 64, 32, window=window, center=False, return_complex=True)
        return torch.view_as_real(spectrum).square().sum(-1)


def test_an_stft_export_is_caught() -> None:
    program = torch.onnx.export(
        _Stft().eval(), (torch.zeros(1, 640),), dynamo=True, opset_version=20, verbose=False
    )
    assert program is not None
    found = lint_tensorrt(program.model_proto)
    assert [f.message for f in found] == ["STFT is not supported by the parser."]
    assert "convolution" in found[0].fix


def graph(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    shape: list[str | int | None] | None = None,
    opset: int = 20,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["b", 2, 4, "t"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def pair(scale: str = "s", zero: str = "z") -> list[onnx.NodeProto]:
    return [
        helper.make_node(
            "QuantizeLinear", ["x", scale, *([zero] if zero else [])], ["q"], name="Q"
        ),
        helper.make_node(
            "DequantizeLinear", ["q", scale, *([zero] if zero else [])], ["y"], name="D"
        ),
    ]


def weights(axis: int, scales: int, op: str = "Conv") -> onnx.ModelProto:
    constants = {
        "w": np.ones((3, 2, 1, 1), np.int8), "ws": np.ones(scales, np.float32),
        "wz": np.zeros(scales, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="W", axis=axis),
        helper.make_node(op, ["x", "wf"], ["y"], name="C"),
    ]
    return graph(nodes, constants)


S, Z = np.float32(0.1), np.int8(0)
RELU = helper.make_node("Relu", ["x"], ["y"], name="R")


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (graph(pair(), {"s": S, "z": np.int8(3)}), "zero-point"),
        (graph(pair(), {"s": S, "z": np.uint8(0)}), "not-int8"),
        (graph(pair(zero=""), {"s": S}), "not-int8"),
        (graph(pair("x2"), {"z": Z}), "scale-dynamic"),
        (graph(pair(), {"s": np.float32(0), "z": Z}), "scale-positive"),
        (graph(pair(), {"s": np.float32(np.nan), "z": Z}), "scale-positive"),
        (graph(pair(), {"s": np.float16(0.1), "z": Z}, opset=18), "scale-fp16"),
        (
            graph(pair(), {"s": np.ones(2, np.float32), "z": np.zeros(2, np.int8)}),
            "per-channel-activation",
        ),
        (weights(axis=1, scales=2), "per-channel-axis"),
        (weights(axis=0, scales=2), "per-channel-size"),
        (weights(axis=0, scales=3, op="ConvTranspose"), "per-channel-axis"),
        (graph(pair()[:1], {"s": S, "z": Z}), "pair"),
        (graph([helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])],
               {"s": S, "z": Z}), "pair"),
        (graph([RELU], {}, opset=8), "opset"),
        (graph([RELU], {}, opset=21), "opset"),
        (graph([RELU], {}, shape=["b", 2, None, "t"]), "shape"),
        (graph([helper.make_node("Add", ["x", "c"], ["y"])], {"c": np.ones(1)}), "type"),
        (
            graph([helper.make_node("Reshape", ["x", "c"], ["y"])],
                  {"c": np.array([1 << 40])}),
            "int64",
        ),
        (graph([helper.make_node("HannWindow", ["x"], ["y"])], {}), "operator"),
        (
            graph([helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")], {},
                  domains=("com.microsoft",)),
            "operator",
        ),
        (graph([helper.make_node("ReduceMean", ["x", "axes"], ["y"])], {}), "constant-input"),
    ],
)  # fmt: skip
def test_every_rule_finds_its_fault(model: onnx.ModelProto, rule: str) -> None:
    assert rule in rules(lint_tensorrt(model))


def test_what_is_allowed_is_not_found() -> None:
    clean = [
        graph(pair(), {"s": S, "z": Z}),
        graph(pair(), {"s": np.float16(0.1), "z": Z}, opset=19),
        weights(axis=0, scales=3),
        graph([helper.make_node("ReduceMean", ["x", "axes"], ["y"])], {"axes": np.array([2])}),
        graph([RELU], {}, opset=9),
    ]
    assert [lint_tensorrt(model) for model in clean] == [()] * len(clean)


def test_nodes_inside_a_branch_are_seen() -> None:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("STFT", ["x", "x"], ["o"])], "b", [], [out])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    found = lint_tensorrt(graph([node], {"c": np.array(True)}))
    assert rules(found) == {"operator"}


def test_external_data_newer_ir_and_free_channels(tmp_path: Path) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    model = graph([conv], {"w": np.ones((3, 2, 1, 1), np.float32)}, shape=["b", "c", 4, "t"])
    model.ir_version = 11
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    assert rules(lint_tensorrt(path)) == {"external-data", "ir", "shape"}


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x0a\xff\xff")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("torn.onnx", "empty.onnx", "missing.onnx"):
        with pytest.raises(GraphError, match=name):
            lint_tensorrt(tmp_path / name)


def test_a_finding_reads_as_one_line() -> None:
    finding = Finding("zero-point", "Q", "It is 3.", "Use 0.")
    assert str(finding) == "zero-point at Q: It is 3. Use 0."
