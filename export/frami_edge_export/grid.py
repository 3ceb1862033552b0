"""Float convolutions of an int8 file with exact sums: the same int8 codes behind them everywhere.

Kernels add the products of a convolution in different orders, with and without fused multiply-add.
In float32 such sums differ in their last bits, and on one clip of 60 such a bit turned over a
rounding of the `QuantizeLinear` behind them: one int8 step, up to 0.03 in a logit. Here inputs,
weights and biases of a float convolution are multiples of powers of two, so coarse that each sum of
its products, whole or partial, is a multiple of a power of two and at most 2^24 times as large.
float32 holds that as it is, so no order of adding rounds anything.

Shape legend: C channels of a layer, I input channels of a group, H and W of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array64 = npt.NDArray[np.float64]

MANTISSA: Final = 24
"""float32 holds every whole number up to 2^24."""
INPUT_BITS: Final = (11, 10, 9, 8)
"""Bits of a rounded input, without its sign: the first that leaves enough for the weights."""
PAIR_BITS: Final = (8, 16)
"""Bits of input and sums where a depthwise convolution reads the sums as they are: 8 are left for
its weights. Rounding in between would cost a fifth of the speed of the whole file (docs/LOG.md)."""
FACTORS: Final = 2.0 ** (np.arange(256) / 256)
"""Between the two, tried for each channel: the best of so many halves the noise of the weights."""
COARSE: Final = 3e-4
"""Largest share of the weights' energy that their rounding may cost; 7-bit int8 costs 1e-4."""


@dataclass(frozen=True)
class Grid:
    """Values of a tensor: multiples of ``step_C``, powers of two, from ``low_C`` to ``high_C``.

    One of each for all channels, or one per channel. 0, the value of padding, is among the values.
    """

    step_C: Array64
    low_C: Array64
    high_C: Array64

    def positive(self) -> Grid:
        """The same behind a Relu."""
        return Grid(self.step_C, np.zeros_like(self.low_C), np.maximum(self.high_C, 0))


def align(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Put the float convolutions of a Q/DQ graph on grids, in place.

    The input of each is rounded by a `Sub` and an `Add`. A depthwise convolution behind another one
    and a Relu, as at the start of a student, takes that one's sums as they are.

    Args:
        model: The graph, its nodes in order.
        ranges: Least and largest value of the tensors that float convolutions read.
    """
    graph = model.graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    grids: dict[str, Grid] = {}
    for node in list(graph.node):
        known = grids.get(node.input[0]) if node.input else None
        if known is not None and node.op_type == "Relu":
            grids[node.output[0]] = known.positive()
        if not _is_float(node, tensors):
            continue
        weight, bias_C = _parameters(node, tensors)
        fitted = None if known is None else fit(weight, bias_C, known, MANTISSA)
        if fitted is None or _lost(weight, fitted[0]) > COARSE:
            low_C, high_C = _bounds(node.input[0], known, makers, tensors, ranges)
            behind = _depthwise_behind(node, readers, tensors)
            for bits in INPUT_BITS if behind is None else PAIR_BITS[:1]:
                step_C = _power_of_two(np.maximum(-low_C, high_C), bits)
                source = Grid(step_C, low_C, high_C)
                if behind is None:
                    fitted = fit(weight, bias_C, source, MANTISSA)
                else:
                    fitted = _fit_pair(weight, bias_C, source, behind, tensors)
                if _lost(weight, fitted[0]) <= COARSE:
                    break
            _round_input(graph, node, step_C.reshape(-1, *[1] * (weight.ndim - 2)))
        assert fitted is not None
        tensors |= dict(zip(node.input[1:], fitted[:2], strict=False))
        grids[node.output[0]] = fitted[2]
    for tensor in graph.initializer:
        value = tensors.get(tensor.name)
        if value is not None and value.dtype == np.float64:
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))


def fit(weight: Array64, bias_C: Array64, source: Grid, bits: int) -> tuple[Array64, Array64, Grid]:
    """Round a convolution so that each sum of its products and bias has at most so many bits.

    Args:
        weight: (C, I, H, W), or (C, I, W).
        bias_C: (C,).
        source: Its input.
        bits: Without the sign; in steps of the output, a power of two per channel.

    Returns:
        Weights and bias in float64, which float32 holds, and the output's grid.
    """
    count, per_group = weight.shape[:2]
    inputs = len(source.step_C)
    # Channels that each output channel reads; an input without channels has one grid for all.
    group_C = np.arange(count) * (inputs // per_group) // count
    reads_CI = np.minimum(group_C[:, None] * per_group + np.arange(per_group), inputs - 1)
    weight_CIK = weight.reshape(count, per_group, -1)
    step_CI1, low_CI1, high_CI1 = (
        v[reads_CI][:, :, None] for v in (source.step_C, source.low_C, source.high_C)
    )

    def sums(w_CIK: Array64, b_C: Array64) -> tuple[Array64, Array64]:
        """The least and the largest sum of any of the products."""
        one, other = w_CIK * low_CI1, w_CIK * high_CI1
        least_C = np.minimum(np.minimum(one, other), 0).sum(axis=(1, 2)) + np.minimum(b_C, 0)
        most_C = np.maximum(np.maximum(one, other), 0).sum(axis=(1, 2)) + np.maximum(b_C, 0)
        return least_C, most_C

    least_C, most_C = sums(weight_CIK, bias_C)
    step_C = _power_of_two(np.maximum(-least_C, most_C), bits)
    while True:
        step_w = step_C[:, None, None] / step_CI1
        w_CIK = _rounded(weight_CIK / step_w) * step_w
        b_C = np.rint(bias_C / step_C) * step_C
        least_C, most_C = sums(w_CIK, b_C)
        over_C = np.maximum(-least_C, most_C) > step_C * 2.0**bits
        if not over_C.any():
            return w_CIK.reshape(weight.shape), b_C, Grid(step_C, least_C, most_C)
        step_C = np.where(over_C, 2 * step_C, step_C)


def _rounded(steps_CIK: Array64) -> Array64:
    """Whole numbers whose sum per channel is that of the steps, rounded (largest remainder).

    Neighbouring log-mels are much alike, so that what is lost of the sum costs most: this is worth
    1 dB of SQNR against rounding each by itself.
    """
    flat = steps_CIK.reshape(len(steps_CIK), -1)
    below = np.floor(flat)
    up_C1 = np.rint((flat - below).sum(axis=1, keepdims=True))
    order = (below - flat).argsort(axis=1, kind="stable")
    rank = order.argsort(axis=1, kind="stable")
    rounded: Array64 = (below + (rank < up_C1)).reshape(steps_CIK.shape)
    return rounded


def _power_of_two(size_C: Array64, bits: int) -> Array64:
    """The least powers of two of which ``size_C`` are at most 2^bits."""
    tiny = np.finfo(np.float32).tiny * 2.0**MANTISSA  # an empty channel
    return np.asarray(2.0 ** (np.ceil(np.log2(np.maximum(size_C, tiny))) - bits))


def _fit_pair(
    weight: Array64,
    bias_C: Array64,
    source: Grid,
    behind: onnx.NodeProto,
    tensors: dict[str, npt.NDArray[Any]],
) -> tuple[Array64, Array64, Grid]:
    """Fit a convolution whose sums a depthwise one reads behind a Relu.

    A Relu passes a positive factor on. So each channel takes the one of `FACTORS` with which the
    weights of both layers round best; the depthwise ones, in ``tensors``, are divided by it.
    """
    second, second_bias_C = _parameters(behind, tensors)
    shape = (-1, *[1] * (weight.ndim - 1))
    best_C, factor_C = np.full(len(weight), np.inf), np.ones(len(weight))
    for factor in FACTORS:
        first, _, sums = fit(weight * factor, bias_C * factor, source, PAIR_BITS[1])
        then, *_ = fit(second / factor, second_bias_C, sums.positive(), MANTISSA)
        harm_C = _harm(weight * factor, first) + _harm(second / factor, then)
        factor_C = np.where(harm_C < best_C, factor, factor_C)
        best_C = np.minimum(harm_C, best_C)
    tensors[behind.input[1]] = second / factor_C.reshape(shape)
    return fit(weight * factor_C.reshape(shape), bias_C * factor_C, source, PAIR_BITS[1])


def _harm(weight: Array64, rounded: Array64) -> Array64:
    """What rounding costs each channel, (C,); the sum counts, for neighbouring inputs are alike."""
    flat, lost = (x.reshape(len(x), -1) for x in (weight, weight - rounded))
    energy_C = np.maximum((flat**2).sum(axis=1), np.finfo(np.float64).tiny)
    harm_C: Array64 = ((lost**2).sum(axis=1) + 4 * lost.sum(axis=1) ** 2) / energy_C
    return harm_C


def _lost(weight: Array64, rounded: Array64) -> float:
    return float(((weight - rounded) ** 2).sum() / max((weight**2).sum(), 1e-30))


def _is_float(node: onnx.NodeProto, tensors: Mapping[str, npt.NDArray[Any]]) -> bool:
    """A convolution that is not int8: those have a `DequantizeLinear` before their weights."""
    return node.op_type == "Conv" and node.input[1] in tensors


def _parameters(
    node: onnx.NodeProto, tensors: Mapping[str, npt.NDArray[Any]]
) -> tuple[Array64, Array64]:
    """Weights and bias of a float convolution."""
    weight, *bias = (tensors[name].astype(np.float64) for name in node.input[1:])
    return weight, bias[0] if bias else np.zeros(len(weight))


def _depthwise_behind(
    node: onnx.NodeProto,
    readers: Mapping[str, list[onnx.NodeProto]],
    tensors: Mapping[str, npt.NDArray[Any]],
) -> onnx.NodeProto | None:
    """The float depthwise convolution that alone reads a convolution's output behind a Relu."""
    channels = len(tensors[node.input[1]])
    for kind in ("Relu", "Conv"):
        following = readers.get(node.output[0], [])
        if len(following) != 1 or following[0].op_type != kind:
            return None
        node = following[0]
    depthwise = _is_float(node, tensors) and tensors[node.input[1]].shape[:2] == (channels, 1)
    return node if depthwise else None


def _bounds(
    name: str,
    known: Grid | None,
    makers: Mapping[str, onnx.NodeProto],
    tensors: Mapping[str, npt.NDArray[Any]],
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[Array64, Array64]:
    """Least and largest value of a tensor, (C,) or (1,)."""
    if known is not None:
        return known.low_C, known.high_C
    maker = makers.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        scale, zero = (tensors[given] for given in maker.input[1:])
        kind = np.iinfo(zero.dtype)
        low, high = ((end - float(zero)) * float(scale) for end in (kind.min, kind.max))
    else:
        low, high = ranges[name]
    return np.array([min(low, 0.0)]), np.array([max(high, 0.0)])


def _round_input(graph: onnx.GraphProto, node: onnx.NodeProto, step: Array64) -> None:
    """Round the input of a convolution to multiples of a power of two.

    x + 1.5 * 2^23 steps has its last bit at one step, so float32 rounds it there, halves to even.
    A `Sub` comes first: an `Add` behind a convolution could be fused into its bias.
    """
    name = f"{node.name}_input"
    shift = numpy_helper.from_array((-1.5 * 2.0**23 * step).astype(np.float32), f"{name}_shift")
    graph.initializer.append(shift)
    nodes = [
        helper.make_node("Sub", [node.input[0], shift.name], [f"{name}_up"], name=f"{name}_up"),
        helper.make_node("Add", [f"{name}_up", shift.name], [f"{name}_grid"], name=f"{name}_grid"),
    ]
    place = next(i for i, n in enumerate(graph.node) if n.name == node.name)
    for i, added in enumerate(nodes):
        graph.node.insert(place + i, added)
    node.input[0] = nodes[1].output[0]
