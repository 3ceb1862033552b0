"""An ONNX graph with the look-ups that rules need."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper


class GraphView:
    """Constants, producers and consumers of the main graph by tensor name.

    Args:
        model: Not changed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = tuple(model.graph.node)
        self.constants: dict[str, onnx.TensorProto] = {t.name: t for t in model.graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.output:
                self.producers[name] = node
            for name in filter(None, node.input):
                self.consumers.setdefault(name, []).append(node)
            if node.op_type == "Constant":
                for a in node.attribute:
                    if a.name == "value":
                        self.constants[node.output[0]] = a.t
        self.opset = max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0
        )

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """The value of a tensor that is known before the model runs; None where it is computed."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        value: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
        return value

    def is_constant(self, name: str) -> bool:
        """Whether the tensor is an initialiser or a Constant's output."""
        return name in self.constants

    def every_node(self) -> Iterator[onnx.NodeProto]:
        """Nodes of the graph and of the graphs inside If, Loop and Scan."""
        yield from _nodes_of(self.graph)


def where(node: onnx.NodeProto) -> str:
    """What to call a node."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from _nodes_of(a.g)
