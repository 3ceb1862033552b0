"""Int8 graphs out of fine-tuned weights and given ranges: no second calibration."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorData, TensorsData

from frami_edge_export.quantise import Quantiser

Ranges = Mapping[str, tuple[float, float]]


class GivenRanges(Quantiser):
    """A `Quantiser` whose table is given.

    Args:
        trunk: The fp32 graph, with the weights to quantise.
        ranges: Least and largest value of every activation, as in ``calib.json``.
    """

    def __init__(self, trunk: onnx.ModelProto, ranges: Ranges) -> None:
        self._given = dict(ranges)
        super().__init__(trunk, np.empty((0, 1, 1, 1), np.float32))

    def _calibrate(self, mels_N1MT: npt.NDArray[np.float32]) -> TensorsData:
        del mels_N1MT
        return TensorsData(
            CalibrationMethod.MinMax,
            {
                name: TensorData(lowest=np.float32(low), highest=np.float32(high))
                for name, (low, high) in self._given.items()
            },
        )


def with_weights(
    trunk: onnx.ModelProto, weights: Mapping[str, npt.NDArray[np.float32]]
) -> onnx.ModelProto:
    """A copy of the fp32 graph with some initializers replaced, by name."""
    model = copy.deepcopy(trunk)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return model


def float_weights(trunk: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """Weights and biases of all convolutions, by the name of their initializer."""
    stored = {t.name: t for t in trunk.graph.initializer}
    return {
        name: numpy_helper.to_array(stored[name]).copy()
        for node in trunk.graph.node
        if node.op_type == "Conv"
        for name in node.input[1:]
        if name in stored
    }
