"""A few lines to write an ONNX graph by hand: constants and nodes, named as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from frami_edge_export.graphs import MAX_IR, OPSET


class NodeList:
    """Nodes and constants of one graph, all names beginning with ``prefix``.

    Args:
        prefix: Keeps the names apart from those of a graph that this one is joined with.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Store an array; gives its name in the graph."""
        name = f"{self._prefix}.{name}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        # ascontiguousarray makes a scalar 1-D.
        array = array.reshape(np.shape(value))
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node of one output; gives the output's name."""
        return self.nodes(op, *inputs, outputs=(output,), **attributes)[0]

    def nodes(
        self, op: str, *inputs: str, outputs: tuple[str | None, ...], **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node of any number of outputs; gives their names, made up where None."""
        name = f"{self._prefix}.{op.lower()}_{len(self._nodes)}"
        names = tuple(given or f"{name}:{i}" for i, given in enumerate(outputs))
        self._nodes.append(helper.make_node(op, list(inputs), list(names), name=name, **attributes))
        return names

    def model(
        self,
        name: str,
        inputs: Mapping[str, list[str | int]],
        outputs: Mapping[str, list[str | int]],
    ) -> onnx.ModelProto:
        """The checked model; inputs and outputs are float32 of the given shapes."""
        graph = helper.make_graph(
            self._nodes,
            name,
            [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
                for n, s in inputs.items()
            ],
            [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
                for n, s in outputs.items()
            ],
            self._constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=MAX_IR)
        onnx.checker.check_model(model, full_check=True)
        return model
