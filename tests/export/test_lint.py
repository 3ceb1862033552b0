"""The lint: our graphs are clean, and every rule of TensorRT's parser finds its fault."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from frami_edge_export.lint import Finding, lint_tensorrt
from frami_edge_export.quantise import PORTABLE, TENSORRT, U8S8, Quantiser


def rules(findings):
    return {finding.rule for finding in findings}


def test_our_graphs_for_tensorrt_are_clean_and_the_one_for_the_cpu_is_not(
    trunk, whole, calibration
):
    assert lint_tensorrt(trunk) == lint_tensorrt(whole) == ()
    quantiser = Quantiser(trunk, calibration[:40])
    for flavour in (TENSORRT, PORTABLE):
        assert lint_tensorrt(quantiser.graph(flavour, quantiser.layers[:1])) == ()
    found = lint_tensorrt(quantiser.graph(U8S8, ()))
    assert rules(found) == {"not-int8", "int32-bias", "zero-point"}
    biases = [f for f in found if f.rule == "int32-bias"]
    assert len(biases) == 5  # one per convolution
    assert all("QuantizeBias=False" in f.fix for f in biases)
    assert (
        str(Finding("pair", "Q", "It is alone.", "Pair it.")) == "pair at Q: It is alone. Pair it."
    )


def graph(body, constants, shape="b, 2, 4, t", opset=20):
    opsets = f'opset_import: ["" : {opset}, "com.microsoft" : 1]'
    ports = f"(float[{shape}] x) => (float y)"
    model = onnx.parser.parse_model(f"<ir_version: 10, {opsets}> g {ports} {{ {body} }}")
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    model.graph.initializer.extend(tensors)
    return model


Q = "q = QuantizeLinear (x, s, z)"
PAIR = f"{Q} y = DequantizeLinear (q, s, z)"
S, Z = np.float32(0.1), np.int8(0)
REDUCE, RELU = "y = ReduceMean (x, axes)", "y = Relu (x)"


def weights(axis, scales, op="Conv"):
    body = f"wf = DequantizeLinear <axis = {axis}> (w, ws, wz) y = {op} (x, wf)"
    zeros = np.zeros(scales, np.int8)
    w = np.ones((3, 2, 1, 1), np.int8)
    return graph(body, {"w": w, "ws": np.ones(scales, np.float32), "wz": zeros})


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (graph(PAIR, {"s": S, "z": np.int8(3)}), "zero-point"),
        (graph(PAIR, {"s": S}), "zero-point"),
        (graph(PAIR, {"s": S, "z": np.uint8(0)}), "not-int8"),
        (graph(PAIR.replace(", z", ""), {"s": S}), "not-int8"),
        (graph(PAIR, {"z": Z}), "scale-dynamic"),
        (graph(PAIR, {"s": np.float32(0), "z": Z}), "scale-positive"),
        (graph(PAIR, {"s": np.float32(np.nan), "z": Z}), "scale-positive"),
        (graph(PAIR, {"s": np.float16(0.1), "z": Z}, opset=18), "scale-fp16"),
        (graph(PAIR, {"s": np.ones(2, np.float32), "z": Z}), "per-channel-activation"),
        (weights(axis=1, scales=2), "per-channel-axis"),
        (weights(axis=0, scales=2), "per-channel-size"),
        (weights(axis=0, scales=3, op="ConvTranspose"), "per-channel-axis"),
        (graph(Q, {"s": S, "z": Z}), "pair"),
        (graph("y = DequantizeLinear (x, s, z)", {"s": S, "z": Z}), "pair"),
        (graph(RELU, {}, opset=8), "opset"),
        (graph(RELU, {}, opset=21), "opset"),
        (graph(RELU, {}, shape="b, 2, ?, t"), "shape"),
        (graph("y = Conv (x, w)", {"w": S}, shape="b, c, 4, t"), "shape"),
        (graph("y = Add (x, c)", {"c": np.ones(1)}), "type"),
        (graph("y = STFT (x, x)", {}), "operator"),
        (graph("y = com.microsoft.FusedConv (x)", {}), "operator"),
        (graph(REDUCE, {}), "constant-input"),
    ],
)
def test_every_rule_finds_its_fault(model, rule):
    assert rule in rules(lint_tensorrt(model))
    assert all(finding.message and finding.fix for finding in lint_tensorrt(model))
