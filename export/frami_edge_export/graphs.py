"""torch to ONNX: the trunk, the head and the whole classifier, stripped of local traces.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2C, K classes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from frami_edge_export.errors import GraphError
from frami_edge_export.frequency_mean import mean_as_pooling
from frami_edge_export.protocol import ExportableStudent
from frami_edge_runtime.modelfile import HEAD_INPUT, HEAD_OUTPUT, TRUNK_INPUT, TRUNK_OUTPUT

OPSET: Final = 20
"""The newest that onnxruntime 1.23.2 and TensorRT 10.3 both read."""
MAX_IR: Final = 10
"""onnxruntime 1.23.2, the last for JetPack 6's Python 3.10, refuses IR 11."""


class WholeClassifier(nn.Module):
    """Mel (B, 1, M, T) to logits (B, K): context, trunk, two-pass float32 pooling, head."""

    weight: Tensor
    bias: Tensor

    def __init__(self, student: ExportableStudent) -> None:
        super().__init__()
        weight_KD, bias_K = frozen_head(student)
        self.trunk = frozen_trunk(student)
        self.context = tuple(student.context)
        self.eps = student.pool_eps
        self.register_buffer("weight", weight_KD)
        self.register_buffer("bias", bias_K)

    def forward(self, mel: Tensor) -> Tensor:
        """Logits (B, K)."""
        h_BCT = self.trunk(nn.functional.pad(mel, self.context))
        mean_BC1 = h_BCT.mean(dim=2, keepdim=True)
        var_BC = (h_BCT - mean_BC1).square().mean(dim=2)
        std_BC = torch.sqrt(var_BC.clamp_min(0.0) + self.eps)
        pooled_BD = torch.cat([mean_BC1.squeeze(2), std_BC], dim=1)
        return nn.functional.linear(pooled_BD, self.weight, self.bias)


def frozen_trunk(student: ExportableStudent) -> nn.Module:
    """A float32 CPU copy in evaluation mode: the caller's module is never touched."""
    return copy.deepcopy(student.trunk).float().cpu().eval().requires_grad_(False)


def frozen_head(student: ExportableStudent) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,), float32 on the CPU."""
    weight_KD, bias_K = student.collapsed_head()
    return weight_KD.detach().float().cpu().clone(), bias_K.detach().float().cpu().clone()


def whole_classifier(student: ExportableStudent) -> WholeClassifier:
    """The torch reference of ``model.onnx``."""
    return WholeClassifier(student).eval()


def trunk_graph(student: ExportableStudent, n_mels: int) -> onnx.ModelProto:
    """Mel (B, 1, M, T) -> frames (B, C, T'), batch and time dynamic, BatchNorm folded."""
    model = _export(frozen_trunk(student), student, n_mels, TRUNK_OUTPUT)
    _name_axes(model, {0: "batch", 2: "frames"})
    return _finish(model, "frami_trunk")


def whole_graph(student: ExportableStudent, n_mels: int) -> onnx.ModelProto:
    """Mel (B, 1, M, T) -> logits (B, K), batch and time dynamic, T >= 1: the context is inside."""
    model = _export(whole_classifier(student), student, n_mels, HEAD_OUTPUT)
    _name_axes(model, {0: "batch"})
    return _finish(model, "frami_classifier")


def head_graph(student: ExportableStudent) -> onnx.ModelProto:
    """Pooled (B, D) -> logits (B, K): one Gemm, written directly."""
    weight_KD, bias_K = (t.numpy() for t in frozen_head(student))
    k, d = weight_KD.shape
    node = helper.make_node(
        "Gemm", [HEAD_INPUT, "weight", "bias"], [HEAD_OUTPUT], name="head", transB=1
    )
    graph = helper.make_graph(
        [node],
        "frami_head",
        [helper.make_tensor_value_info(HEAD_INPUT, TensorProto.FLOAT, ["batch", d])],
        [helper.make_tensor_value_info(HEAD_OUTPUT, TensorProto.FLOAT, ["batch", k])],
        [numpy_helper.from_array(weight_KD, "weight"), numpy_helper.from_array(bias_K, "bias")],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=MAX_IR)
    return _finish(model, "frami_head")


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove stack traces, doc strings and metadata in place: they hold local paths."""
    graph = model.graph
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.ClearField("value_info")
    for group in (graph.node, graph.initializer, graph.input, graph.output):
        for item in group:
            item.ClearField("doc_string")
            item.ClearField("metadata_props")
    return model


def check_loadable(model: onnx.ModelProto) -> None:
    """The opset and IR that a JetPack 6 device reads, and no BatchNorm left.

    Raises:
        GraphError: One of them does not hold.
    """
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset != OPSET:
        raise GraphError(
            f"The graph was written with opset {opset}, not {OPSET}.",
            fix="Use the torch and onnxscript versions of constraints.txt.",
        )
    if model.ir_version > MAX_IR:
        raise GraphError(
            f"The graph was written with IR {model.ir_version}; devices read at most {MAX_IR}.",
            fix="Use the torch and onnx versions of constraints.txt.",
        )
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise GraphError(
            "A BatchNorm could not be folded: it does not follow a convolution directly.",
            fix="Place each BatchNorm right after a convolution of the student's trunk.",
        )


def _export(
    module: nn.Module, student: ExportableStudent, n_mels: int, output: str
) -> onnx.ModelProto:
    frames = student.receptive_field + 8 * student.stride
    example = torch.zeros(2, 1, n_mels, frames)
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[TRUNK_INPUT],
            output_names=[output],
            dynamic_shapes=({0: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
            verbose=False,
        )
    if program is None:
        raise GraphError("torch.onnx.export gave no graph.", fix="Use torch 2.11 to 2.14.")
    model = onnx.ModelProto()
    model.CopyFrom(program.model_proto)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about torchvision and itself: nothing a user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_axes(model: onnx.ModelProto, output_axes: dict[int, str]) -> None:
    for axis, name in {0: "batch", 3: "time"}.items():
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for axis, name in output_axes.items():
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name


def _finish(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    strip(mean_as_pooling(model))
    model.graph.name = name
    _name_nodes(model)
    model.ir_version = min(model.ir_version, MAX_IR)
    check_loadable(model)
    onnx.checker.check_model(model, full_check=True)
    if not all(np.isfinite(numpy_helper.to_array(t)).all() for t in model.graph.initializer):
        raise GraphError(
            "The student holds weights that are not finite.", fix="Distil it again: it diverged."
        )
    return model


def _name_nodes(model: onnx.ModelProto) -> None:
    """Convolutions are named after their torch module: reports can name a layer."""
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        name = f"{node.op_type.lower()}_{i}"
        if node.op_type == "Conv" and node.input[1].endswith(".weight"):
            name = node.input[1].removesuffix(".weight")
        node.name = name if name not in taken else f"{name}_{i}"
        taken.add(node.name)
