"""Static int8 with explicit Q/DQ: one calibration table, any number of graphs from it.

Bias correction: int8 rounding shifts a channel's mean, and its bias takes that shift back. The
statistics pooling averages rounding noise away, but not a shift that every frame shares: so the
shift is most of what int8 costs a student, 3 to 4 dB of its logits' SQNR where zero points are 0.
Source: M. Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*,
ICCV 2019, section 4.2, with synthetic mels in place of BatchNorm's moments.

Shape legend: N samples, M mel bands, T mel frames, C channels of a layer.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from frami_edge_export.graph import check_loadable, strip
from frami_edge_export.grid import align
from frami_edge_export.parity import BATCH, Array, cpu_session
from frami_edge_runtime.backends import PORTABLE_FLAVOUR
from frami_edge_runtime.modelfile import TRUNK_INPUT

OP_TYPES: Final = ["Conv", "Relu", "Clip", "Add", "MaxPool"]
"""With the activations, or each would split a pair of int8 convolutions by float work (measured 2x
slower). Everything else, the mean over frequency included, computes in float."""
TENSORRT_OP_TYPES: Final = ["Conv", "Add"]
"""TensorRT fuses activations into the convolution before them: they get no Q/DQ of their own."""
METHOD: Final = "minmax"
CORRECTION_SAMPLES: Final = 64


@dataclass(frozen=True)
class Flavour:
    """Types and places of the quantised tensors."""

    name: str
    activations: Any
    weights: Any
    symmetric: bool = False
    """Zero points of 0 and a float bias, as TensorRT demands."""
    inputs_only: bool = False
    """Q/DQ on the inputs of convolutions only, behind the activation: TensorRT then fuses
    convolution, activation and quantisation into one kernel. ONNX Runtime's CPU kernels are not
    made for it, so such a graph is judged in float, as it is written."""
    weight_bits: int = 7
    """7 makes a file answer alike on every CPU: x86 without VNNI adds two products in 16 bits, and
    2 * 255 * 64 fits. Measured there on two students: 8-bit weights lose up to 23 dB of SQNR to
    saturation; 7-bit ones cost at most 2.4 dB."""
    aligned: bool = True
    """Float convolutions on a grid (`grid.align`), so that the int8 codes behind them do not depend
    on the order in which a CPU adds. TensorRT's kernels round in ways of their own."""

    @property
    def op_types(self) -> list[str]:
        """Operators to quantise."""
        return TENSORRT_OP_TYPES if self.symmetric else OP_TYPES


U8S8: Final = Flavour("U8S8", QuantType.QUInt8, QuantType.QInt8)
S8S8: Final = Flavour("S8S8", QuantType.QInt8, QuantType.QInt8)
FLAVOUR_OF: Final = {"x86": U8S8, "arm": S8S8, "jetson-gpu": S8S8}
"""By target. The grid is the same, only its zero points differ by 128: so are the answers. x86
kernels take unsigned activations, ARM's signed ones; each CPU reads both, and on x86 both took the
same time."""
TENSORRT: Final = Flavour(
    "S8S8 TensorRT", QuantType.QInt8, QuantType.QInt8, True, True, weight_bits=8, aligned=False
)
PORTABLE: Final = Flavour(PORTABLE_FLAVOUR, QuantType.QInt8, QuantType.QInt8, True)
"""Q/DQ behind convolutions too, so that ONNX Runtime finds int8 on both sides of each."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds mels, `BATCH` at a time."""

    def __init__(self, mels_N1MT: Array) -> None:
        self._batches = iter([mels_N1MT[i : i + BATCH] for i in range(0, len(mels_N1MT), BATCH)])

    def get_next(self) -> dict[str, Array] | None:
        """The next feed, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {TRUNK_INPUT: batch}


class Quantiser:
    """Quantises one trunk in any flavour, with any layers left float.

    Args:
        trunk: The fp32 graph.
        mels_N1MT: The clamped calibration set, with its context.
        limits: Least and largest log-mel of the front end; None for those of the set.
    """

    def __init__(
        self,
        trunk: onnx.ModelProto,
        mels_N1MT: Array,
        limits: tuple[float, float] | None = None,
    ) -> None:
        self._trunk = onnx.shape_inference.infer_shapes(trunk)
        convs = [node for node in trunk.graph.node if node.op_type == "Conv"]
        self.layers = tuple(node.name for node in convs)
        """Convolutions in graph order, named after their torch modules."""
        groups = [next((a.i for a in c.attribute if a.name == "group"), 1) for c in convs]
        self.stem = 2 if len(groups) > 2 and groups[1] > 1 else 1
        """Number of first convolutions that stay float: the one over a single channel, and a
        depthwise one behind it. Their maps are the largest and their work the least, so int8 gains
        less on them than the conversion costs: 2 was the fastest of 0 to 5 for students of 9 k to
        320 k weights (docs/LOG.md). They feed no tensor core either, and int8 costs 2 to 3 dB of
        SQNR on the second."""
        self._table = self._calibrate(mels_N1MT)
        self._limits = limits or self.ranges[TRUNK_INPUT]

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and largest value of every activation on the calibration set."""
        return {
            name: (float(np.min(low)), float(np.max(high)))
            for name, data in self._table.items()
            for low, high in [data.range_value]
        }

    def graph(
        self,
        flavour: Flavour,
        float_layers: Iterable[str],
        biases: Mapping[str, Array] | None = None,
    ) -> onnx.ModelProto:
        """The int8 trunk: per-channel weights, per-tensor activations, the given layers float.

        Args:
            flavour: Types and places.
            float_layers: Names of `layers`.
            biases: Replacements for the trunk's, by layer.
        """
        trunk = copy.deepcopy(self._trunk)
        tensors = {t.name: t for t in trunk.graph.initializer}
        for node in trunk.graph.node:
            if biases and node.op_type == "Conv" and node.name in biases:
                name = node.input[2]
                tensors[name].CopyFrom(numpy_helper.from_array(biases[node.name], name))
        options = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # Only an int32 bias needs weights that fit its scale.
            "QDQDisableWeightAdjustForInt32Bias": True,
            "OpTypesToExcludeOutputQuantization": flavour.op_types if flavour.inputs_only else [],
        }
        quantizer = QDQQuantizer(
            trunk,
            per_channel=True,
            reduce_range=flavour.weight_bits == 7,
            weight_qType=flavour.weights,
            activation_qType=flavour.activations,
            tensors_range=self._table,
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(float_layers),
            op_types_to_quantize=flavour.op_types,
            extra_options=options if flavour.symmetric else {},
        )
        quantizer.quantize_model()
        _state_biases(quantizer.model.model)
        quantizer.model.topological_sort()
        if flavour.aligned:
            align(quantizer.model.model, {**self.ranges, TRUNK_INPUT: self._limits})
        _keep_float(quantizer.model.model)
        quantizer.model.topological_sort()
        model = onnx.ModelProto()
        model.CopyFrom(quantizer.model.model)
        strip(model)
        check_loadable(model)
        return model

    def _calibrate(self, mels_N1MT: Array) -> TensorsData:
        with tempfile.TemporaryDirectory(prefix="frami-calibration-") as folder:
            source = Path(folder, "trunk.onnx")
            onnx.save_model(self._trunk, source)
            calibrator = create_calibrator(
                source,
                OP_TYPES,
                augmented_model_path=str(Path(folder, "augmented.onnx")),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Reader(mels_N1MT))
            table = calibrator.compute_data()
            del calibrator  # Windows cannot remove the folder while the session holds the file
        return table


_LARGEST_BIAS: Final = 1 << 22
"""Steps of the accumulator. float32 counts so far in halves: rounding again changes nothing."""


def _state_biases(model: onnx.ModelProto) -> None:
    """Round float biases of int8 convolutions to whole steps of the accumulator, in place.

    Where a convolution leads to a `QuantizeLinear`, newer versions of ONNX Runtime do so by
    themselves (`WeightBiasQuantization`) and older ones do not: a file with other biases would
    answer differently. TensorRT takes no integer biases. A channel whose weights are too small for
    its bias gets a larger step, or the integer would overflow.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    parents = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type != "Conv" or len(node.input) < 3 or node.input[2] not in tensors:
            continue  # no bias, or an int32 one with its own scale
        data, weight = (parents.get(name) for name in node.input[:2])
        if data is None or weight is None:
            continue
        codes, scale_C, bias_C = (
            numpy_helper.to_array(tensors[name]) for name in (*weight.input[:2], node.input[2])
        )
        step = numpy_helper.to_array(tensors[data.input[1]])
        wide_C = np.maximum(scale_C, np.abs(bias_C) / (step * _LARGEST_BIAS)).astype(np.float32)
        narrower = (scale_C / wide_C).reshape(-1, *[1] * (codes.ndim - 1))
        steps_C = step * wide_C
        for name, value in (
            (weight.input[0], np.rint(codes * narrower).astype(codes.dtype)),
            (weight.input[1], wide_C),
            (node.input[2], (np.rint(bias_C / steps_C) * steps_C).astype(np.float32)),
        ):
            tensors[name].CopyFrom(numpy_helper.from_array(value, name))


def _keep_float(model: onnx.ModelProto) -> None:
    """Put a `Max` that changes nothing behind float convolutions between int8 ones.

    In place; the nodes are no longer sorted. Where only activations stand between such a
    convolution and a `QuantizeLinear`, newer versions of ONNX Runtime quantise its weights, per
    tensor (`WeightBiasQuantization`). The `Max` cuts off what the `QuantizeLinear` would clip.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in list(model.graph.node):
        if node.op_type != "Conv" or node.input[0] not in dequantized:
            continue
        if node.input[1] not in tensors:
            continue  # an int8 convolution
        end, last = node.output[0], readers.get(node.output[0], [])
        while len(last) == 1 and last[0].op_type in ("Relu", "Clip"):
            end = last[0].output[0]
            last = readers.get(end, [])
        if len(last) != 1 or last[0].op_type != "QuantizeLinear":
            continue
        scale, zero = (numpy_helper.to_array(tensors[name]) for name in last[0].input[1:])
        least = np.array((np.iinfo(zero.dtype).min - float(zero)) * scale, np.float32)
        bound, kept = f"{node.name}_least", f"{node.name}_float"
        model.graph.initializer.append(numpy_helper.from_array(least, bound))
        model.graph.node.append(helper.make_node("Max", [end, bound], [kept], name=kept))
        last[0].input[0] = kept


class BiasCorrector:
    """Biases with which an int8 graph's convolutions have the means of the fp32 graph's.

    Args:
        trunk: The fp32 graph.
        quantiser: The quantiser of this trunk.
        mels_N1MT: Calibration mels with their context; the first `CORRECTION_SAMPLES` are used.
    """

    def __init__(self, trunk: onnx.ModelProto, quantiser: Quantiser, mels_N1MT: Array) -> None:
        self._quantiser, self._mels = quantiser, mels_N1MT[:CORRECTION_SAMPLES]
        tensors = {t.name: t for t in trunk.graph.initializer}
        self._biases = {
            node.name: tensors[node.input[2]]
            for node in trunk.graph.node
            if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in tensors
        }
        self._targets = _means(trunk, list(self._biases), self._mels)

    def biases(self, flavour: Flavour, float_layers: Iterable[str]) -> dict[str, Array]:
        """Corrected biases of the int8 layers.

        Layer by layer from the input on, because a correction changes the next layer's input.
        """
        kept = frozenset(float_layers)
        corrected: dict[str, Array] = {}
        for layer in self._quantiser.layers:
            if layer in kept or layer not in self._biases:
                continue
            model = self._quantiser.graph(flavour, kept, corrected)
            found_C = _means(model, [layer], self._mels, exact=flavour.inputs_only)[layer]
            bias_C = numpy_helper.to_array(self._biases[layer])
            corrected[layer] = (bias_C + (self._targets[layer] - found_C)).astype(np.float32)
        return corrected


def _means(
    model: onnx.ModelProto, layers: list[str], mels_N1MT: Array, exact: bool = False
) -> dict[str, Array]:
    """Mean of each channel of each layer's output, (C,), before its activation."""
    model = copy.deepcopy(model)
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in layers}
    names = [outputs[layer] for layer in layers]
    del model.graph.output[:]  # so that nothing behind these layers is computed
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = cpu_session(model, exact=exact)
    totals = [np.zeros(1)] * len(names)
    for i in range(0, len(mels_N1MT), BATCH):
        batch = mels_N1MT[i : i + BATCH]
        for k, value_NCMT in enumerate(session.run(names, {TRUNK_INPUT: batch})):
            axes = (0, *range(2, value_NCMT.ndim))
            totals[k] = totals[k] + value_NCMT.mean(axis=axes, dtype=np.float64) * len(batch)
    return {
        layer: (total / len(mels_N1MT)).astype(np.float32)
        for layer, total in zip(layers, totals, strict=True)
    }
