"""Bias correction: int8 rounding shifts a channel's mean, and its bias takes that shift back.

The statistics pooling averages rounding noise away, but not a shift that every frame shares: so the
shift is most of what int8 costs a student, 3 to 4 dB of its logits' SQNR where zero points are 0.
Source: M. Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*,
ICCV 2019, section 4.2, with synthetic mels in place of BatchNorm's moments.

Shape legend: N samples, M mel bands, T mel frames, C channels of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from frami_edge_export.quantise import Flavour, Quantiser
from frami_edge_export.scoring import BATCH
from frami_edge_export.sessions import cpu_session
from frami_edge_runtime.modelfile import TRUNK_INPUT

Array = npt.NDArray[np.float32]
SAMPLES: Final = 64


class BiasCorrector:
    """Biases with which an int8 graph's convolutions have the means of the fp32 graph's.

    Args:
        trunk: The fp32 graph.
        quantiser: Of this trunk.
        mels_N1MT: Calibration mels with their context; the first `SAMPLES` are used.
    """

    def __init__(self, trunk: onnx.ModelProto, quantiser: Quantiser, mels_N1MT: Array) -> None:
        self._quantiser, self._mels = quantiser, mels_N1MT[:SAMPLES]
        tensors = {t.name: t for t in trunk.graph.initializer}
        convs = {
            node.name: node
            for node in trunk.graph.node
            if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in tensors
        }
        self._bias_names = {name: node.input[2] for name, node in convs.items()}
        self._biases = {
            name: numpy_helper.to_array(tensors[bias]) for name, bias in self._bias_names.items()
        }
        self._targets = _means(trunk, list(convs), self._mels)

    def biases(self, flavour: Flavour, float_layers: Iterable[str]) -> dict[str, Array]:
        """Corrected biases of the int8 layers, by the name of their initialiser.

        Layer by layer from the input on, because a correction changes what the next layer gets.
        """
        kept = frozenset(float_layers)
        found: dict[str, Array] = {}
        for layer in self._quantiser.layers:
            if layer in kept or layer not in self._biases:
                continue
            model = self._quantiser.graph(flavour, kept, found)
            shift_C = self._targets[layer] - _means(model, [layer], self._mels)[layer]
            found[self._bias_names[layer]] = (self._biases[layer] + shift_C).astype(np.float32)
        return found


def _means(model: onnx.ModelProto, layers: list[str], mels_N1MT: Array) -> dict[str, Array]:
    """Mean of each channel of each layer's output, (C,), before its activation."""
    model = copy.deepcopy(model)
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in layers}
    names = [outputs[layer] for layer in layers]
    known = {port.name for port in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )
    session = cpu_session(model)
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
