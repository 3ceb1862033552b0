"""Float layers of int8 files: the order in which a kernel adds does not change their sums."""

import copy

import numpy as np
import onnx
import pytest
import torch
from export_kit import MEL
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from frami_edge_export.grid import MANTISSA, Grid, fit
from frami_edge_export.parity import cpu_session
from frami_edge_export.quantise import PORTABLE, U8S8, Quantiser

LIMITS = float(MEL.floor.min()), float(MEL.ceiling.max())


def attribute(node, name, default):
    return next((list(a.ints) for a in node.attribute if a.name == name), default)


def sums(node, x, w, b, order):
    """A convolution of float32 as a kernel computes it that adds in this order; (B, C, positions).

    ``fused`` rounds each product together with its sum, once, as FMA does.
    """
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    padded = torch.from_numpy(np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))))
    columns = torch.nn.functional.unfold(
        padded, w.shape[2:], stride=attribute(node, "strides", [1, 1])
    )
    groups = x.shape[1] // w.shape[1]
    x_BGKP = columns.reshape(len(x), groups, -1, columns.shape[-1]).numpy()
    w_GCK = w.reshape(groups, len(w) // groups, -1)
    taps = list(range(w_GCK.shape[2]))
    if order == "backwards":
        taps.reverse()
    elif order == "shuffled":
        np.random.default_rng(0).shuffle(taps)
    b_1GC1 = b.reshape(1, groups, -1, 1)
    total = np.zeros((len(x), *w_GCK.shape[:2], columns.shape[-1]), np.float32)
    if order == "bias first":
        total = total + b_1GC1
    for k in taps:
        xs, ws = x_BGKP[:, :, None, k], w_GCK[None, :, :, k, None]
        if order == "fused":
            total = (total + xs.astype(np.float64) * ws).astype(np.float32)
        else:
            total = total + xs * ws
    if order != "bias first":
        total = total + b_1GC1
    return total.reshape(len(x), len(w), -1)


ORDERS = ("forwards", "backwards", "shuffled", "fused", "bias first")


def orders_differ(model, mels):
    """Whether some order changes a bit of what the float convolutions give on this CPU."""
    model = copy.deepcopy(model)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    convs = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in tensors]
    names = list(dict.fromkeys(name for n in convs for name in (n.input[0], n.output[0])))
    kept = [name for name in names if name != "mel"]
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in kept
    )
    found = dict(zip(kept, cpu_session(model).run(kept, {"mel": mels}), strict=True))
    found["mel"] = mels
    return {
        n.name: any(
            not np.array_equal(
                sums(n, found[n.input[0]], *(tensors[name] for name in n.input[1:]), order),
                found[n.output[0]].reshape(len(mels), len(tensors[n.input[1]]), -1),
            )
            for order in ORDERS
        )
        for n in convs
    }


@pytest.fixture(scope="module")
def quantiser(trunk, calibration):
    return Quantiser(trunk, calibration[:60], LIMITS)


@pytest.fixture(scope="module")
def mels(calibration):
    """Plausible ones, and bands between digital silence and full scale from frame to frame."""
    few = calibration[60:64]
    return np.concatenate([few, np.random.default_rng(0).choice(LIMITS, few.shape)]).astype(
        np.float32
    )


@pytest.mark.parametrize("kept", [(0,), (0, 1), (0, 1, 2), (0, 2), (0, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("flavour", [U8S8, PORTABLE], ids=lambda flavour: flavour.name)
def test_no_order_of_adding_changes_a_bit(quantiser, mels, flavour, kept):
    layers = [quantiser.layers[i] for i in kept]
    assert orders_differ(quantiser.graph(flavour, layers), mels) == dict.fromkeys(layers, False)


def test_float_sums_depend_on_the_order_otherwise(trunk, mels):
    """So that the test above cannot pass for want of differences."""
    assert all(orders_differ(trunk, mels).values())


def test_the_first_layers_are_rounded_once(quantiser):
    """Rounding between the two would cost a fifth of the speed."""
    ops = [n.op_type for n in quantiser.graph(U8S8, quantiser.layers[:2]).graph.node]
    ops = [op for op in ops if op != "DequantizeLinear"]
    assert ops[:6] == ["Sub", "Add", "Conv", "Relu", "Conv", "Relu"]
    assert {"Sub", "Add"}.isdisjoint(ops[6:])


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(-30, 30),
    spread=st.integers(0, 12),
    shape=st.sampled_from([(4, 1, 3, 3), (4, 8, 1, 1), (8, 4, 3, 3), (2, 256, 3, 3)]),
    groups=st.sampled_from([1, 2]),
)
def test_every_sum_fits_float32(seed, size, spread, shape, groups):
    """Channels of any sizes side by side, one of them dead, and a bias that dwarfs or vanishes."""
    rng = np.random.default_rng(seed)
    size_C = 10.0 ** (size - rng.uniform(0, spread, shape[0]))
    weight = rng.normal(size=shape) * size_C[:, None, None, None]
    bias_C = rng.normal(size=shape[0]) * 10.0 ** (size + rng.uniform(-spread, spread))
    weight[0] = 0
    channels = shape[1] * groups
    step_C = 2.0 ** rng.integers(-20, 10, channels)
    low_C, high_C = (step_C * rng.integers(0, 2**10, channels) * sign for sign in (-1, 1))
    w, b_C, grid = fit(weight, bias_C, Grid(step_C, low_C, high_C), MANTISSA)
    np.testing.assert_array_equal(w, w.astype(np.float32))
    np.testing.assert_array_equal(b_C, b_C.astype(np.float32))
    for c in range(shape[0]):
        first = c * groups // shape[0] * shape[1]
        reads = slice(first, first + shape[1])
        steps = w[c] * (step_C[reads] / grid.step_C[c])[:, None, None]
        bias = b_C[c] / grid.step_C[c]
        assert (steps == np.rint(steps)).all()
        assert bias == np.rint(bias)
        # The worst input: each value at the end that makes its product largest.
        ends = [steps * (end[reads] / step_C[reads])[:, None, None] for end in (low_C, high_C)]
        for products, b in ((np.maximum(*ends), bias), (-np.minimum(*ends), -bias)):
            assert products.sum() + max(b, 0) <= 2**MANTISSA
