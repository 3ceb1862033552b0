"""The torch student as ONNX graphs: trunk, head and whole classifier, and their descriptions.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2C, K classes.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from frami_edge_export.errors import GraphError
from frami_edge_export.parity import Head, cpu_session, run_trunk, with_context
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import (
    HEAD_INPUT,
    HEAD_OUTPUT,
    TRUNK_INPUT,
    TRUNK_OUTPUT,
    Context,
    ModelInfo,
    Pooling,
    model_metadata,
)
from frami_edge_runtime.selftest import golden_clip, golden_vectors

OPSET: Final = 20
"""The newest that onnxruntime 1.23.2 and TensorRT 10.3 both read."""
MAX_IR: Final = 10
"""onnxruntime 1.23.2, the last for JetPack 6's Python 3.10, refuses IR 11."""


class ExportableStudent(Protocol):
    """A student with a trunk, statistics pooling and an affine head; attributes are only read."""

    @property
    def trunk(self) -> nn.Module:
        """(B, 1, M, T) normalised log-mel -> frames (B, C, T'), no padding along time."""

    @property
    def receptive_field(self) -> int:
        """Mel frames that one trunk frame depends on."""

    @property
    def stride(self) -> int:
        """Mel frames between trunk frames: T' = (T - receptive_field) // stride + 1."""

    @property
    def context(self) -> tuple[int, int]:
        """Mel frames of 0 before the start and after the end of a clip, receptive_field - 1 in all.

        So T >= 1 mel frames give (T - 1) // stride + 1 trunk frames.
        """

    @property
    def channels(self) -> int:
        """C."""

    @property
    def pool_eps(self) -> float:
        """Pooling is [mean; sqrt(max(var, 0) + eps)] with the population variance over T'."""

    def collapsed_head(self) -> tuple[Tensor, Tensor]:
        """Weight (K, 2C) and bias (K,) of the affine map from pooled statistics to logits."""


def missing_parts(student: Any) -> list[str]:
    """Names that a student lacks of `ExportableStudent`.

    `isinstance` with a runtime protocol ignores `__getattr__` from Python 3.12 on, and so every
    submodule of an `nn.Module`.
    """
    parts = ("trunk", "receptive_field", "stride", "context", "channels", "pool_eps")
    return [name for name in (*parts, "collapsed_head") if not hasattr(student, name)]


@dataclass(frozen=True)
class StudentFacts:
    """Facts for the model file that the module does not hold."""

    mel: MelSpec
    """The front end that the student was trained on."""
    labels: tuple[str, ...]
    """(K,) class names, in the order of the logits."""
    teacher_sha256: str | None = None
    """Hash of the teacher's weights."""
    student_sha256: str | None = None
    """Hash of the student's weights."""
    licence: str = ""
    output: str = "softmax"
    """How logits become scores: `softmax`, or `sigmoid` for one detector per class."""


@dataclass(frozen=True)
class OnnxStudent:
    """The fp32 student in ONNX form, from which the other files of an export are made."""

    name: str
    """Prefix of the files."""
    trunk: onnx.ModelProto
    head: Head
    """Pooling and head in float64, to judge by logits."""
    head_onnx: bytes
    """The head's ONNX file, as every streaming file carries it."""
    info: ModelInfo
    """Description of the fp32 file."""

    def described(self, graph: onnx.ModelProto, info: ModelInfo, *, exact: bool = False) -> bytes:
        """The bytes of a streaming model file: graph, description and head; see `answered`."""
        described_as = self.answered(graph, info, exact=exact)
        return with_entries(graph, model_metadata(described_as, self.head_onnx))

    def answered(
        self, graph: onnx.ModelProto, info: ModelInfo, *, exact: bool = False
    ) -> ModelInfo:
        """The description with golden vectors: a trunk's answers to the clip of the self-test.

        Args:
            graph: The trunk.
            info: Its description.
            exact: Compute Q/DQ in float, as TensorRT does, not in this CPU's integer kernels.
        """
        session, context = cpu_session(graph, exact=exact), (info.context.left, info.context.right)

        def answer(frames: int) -> tuple[float, int, npt.NDArray[np.floating]]:
            mel_MT = log_mel(golden_clip(info.mel, frames), info.mel).T[None].astype(np.float32)
            mels = np.stack([mel_MT, mel_MT - JITTER, mel_MT + JITTER])
            logits_3K = self.head(run_trunk(session, with_context(mels, context)))
            return float(np.abs(logits_3K[1:] - logits_3K[0]).max()), frames, logits_3K[0]

        least = golden_frames(info)
        tried = []
        for frames in range(least, least + GOLDEN_TRIES):
            tried.append(answer(frames))
            if tried[-1][0] <= STABLE:
                break
        _, frames, logits_K = min(tried, key=lambda found: found[:2])
        return info.replace(golden=golden_vectors(info.mel, frames, logits_K))


GOLDEN_S: Final = 0.5
"""Length of the clip of the self-test, and at least twice the receptive field."""
JITTER: Final = 4e-6
"""The log-mels of two CPUs differ by less. Where such a difference crosses a rounding of an int8
file's input, logits differ by up to 0.02, and a right machine would fail the self-test: then a clip
that is longer by a frame is tried."""
STABLE: Final = 1e-4
GOLDEN_TRIES: Final = 20


def golden_frames(info: ModelInfo) -> int:
    """Mel frames of the clip that a file is tested with."""
    return max(round(GOLDEN_S / info.mel.hop_s), 2 * info.receptive_field)


class WholeClassifier(nn.Module):
    """`classifier_graph` in torch, which its file is compared with: mel (B, 1, M, T) to logits."""

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
        self.eval()

    def forward(self, mel: Tensor) -> Tensor:
        """Logits (B, K)."""
        h_BCT = self.trunk(nn.functional.pad(mel, self.context))
        mean_BC1 = h_BCT.mean(dim=2, keepdim=True)
        var_BC = (h_BCT - mean_BC1).square().mean(dim=2)
        std_BC = torch.sqrt(var_BC.clamp_min(0.0) + self.eps)
        pooled_BD = torch.cat([mean_BC1.squeeze(2), std_BC], dim=1)
        return nn.functional.linear(pooled_BD, self.weight, self.bias)


def frozen_trunk(student: ExportableStudent) -> nn.Module:
    """A float32 CPU copy in evaluation mode; the caller's module is not changed."""
    return copy.deepcopy(student.trunk).float().cpu().eval().requires_grad_(False)


def frozen_head(student: ExportableStudent) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,), float32 on the CPU."""
    weight_KD, bias_K = student.collapsed_head()
    return weight_KD.detach().float().cpu().clone(), bias_K.detach().float().cpu().clone()


def trunk_graph(student: ExportableStudent, n_mels: int) -> onnx.ModelProto:
    """Mel (B, 1, M, T) -> frames (B, C, T'), batch and time dynamic, BatchNorm folded.

    Raises:
        GraphError: The graph cannot be loaded by a device, or holds non-finite weights.
    """
    frames = student.receptive_field + 8 * student.stride
    with _quiet():
        program = torch.onnx.export(
            frozen_trunk(student),
            (torch.zeros(2, 1, n_mels, frames),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[TRUNK_INPUT],
            output_names=[TRUNK_OUTPUT],
            dynamic_shapes=({0: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
            verbose=False,
        )
    if program is None:
        raise GraphError("torch.onnx.export gave no graph.", fix="Use torch 2.11 to 2.14.")
    model = onnx.ModelProto()
    model.CopyFrom(program.model_proto)
    ports = (
        (model.graph.input[0], {0: "batch", 3: "time"}),
        (model.graph.output[0], {0: "batch", 2: "frames"}),
    )
    for port, axes in ports:
        for axis, name in axes.items():
            port.type.tensor_type.shape.dim[axis].dim_param = name
    return _finish(model, "frami_trunk")


def head_graph(student: ExportableStudent) -> onnx.ModelProto:
    """Pooled (B, D) -> logits (B, K): one Gemm, written directly.

    Raises:
        GraphError: It holds non-finite weights.
    """
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
    return _finish(helper.make_model(graph, opset_imports=opset, ir_version=MAX_IR), "frami_head")


def classifier_graph(trunk: onnx.ModelProto, head: Head, info: ModelInfo) -> onnx.ModelProto:
    """Mel (B, 1, M, T) -> logits (B, K), batch and time dynamic, T >= 1: the context is inside.

    The trunk (fp32 or int8) is not changed; the head is computed in float32, the variance in two
    passes.

    Raises:
        GraphError: The result cannot be loaded by a device.
    """
    bands, context = info.mel.n_mels, info.context
    pad = parsed(
        "context",
        f"(float[batch, 1, {bands}, time] {TRUNK_INPUT}) => (float[batch, 1, {bands}, padded] "
        "around)",
        f"around = Pad ({TRUNK_INPUT}, frames, value)",
        {
            "frames": np.array([0, 0, 0, context.left, 0, 0, 0, context.right], np.int64),
            "value": np.array(context.value, np.float32),
        },
    )
    pool = parsed(
        "head",
        f"(float[batch, {info.channels}, frames] {TRUNK_OUTPUT}) => "
        f"(float[batch, {len(head.bias)}] {HEAD_OUTPUT})",
        f"""
            mean = ReduceMean <keepdims = 1> ({TRUNK_OUTPUT}, time_axis)
            centred = Sub ({TRUNK_OUTPUT}, mean)
            squares = Mul (centred, centred)
            var = ReduceMean <keepdims = 0> (squares, time_axis)
            var_eps = Add (var, eps)
            std = Sqrt (var_eps)
            mean_flat = Squeeze (mean, time_axis)
            pooled = Concat <axis = 1> (mean_flat, std)
            {HEAD_OUTPUT} = Gemm <transB = 1> (pooled, weight, bias)
        """,
        {
            "time_axis": np.array([2], np.int64),
            "eps": np.array(head.eps, np.float32),
            "weight": head.weight.astype(np.float32),
            "bias": head.bias.astype(np.float32),
        },
    )
    inner = copy.deepcopy(trunk)
    inner.ir_version = MAX_IR
    inner.ClearField("metadata_props")
    model = compose.merge_models(pad, inner, io_map=[("around", TRUNK_INPUT)])
    model = compose.merge_models(model, pool, io_map=[(TRUNK_OUTPUT, TRUNK_OUTPUT)])
    strip(model)
    model.graph.name = "frami_classifier"
    check_loadable(model)
    return model


def parsed(
    name: str, ports: str, body: str, constants: Mapping[str, npt.NDArray[Any]]
) -> onnx.ModelProto:
    """A model from ONNX's text form; tensors and nodes get ``name`` as prefix, ports do not."""
    header = f'<ir_version: {MAX_IR}, opset_import: ["" : {OPSET}]> {name} {ports}'
    model = onnx.parser.parse_model(f"{header} {{ {body} }}")
    used = {tensor for node in model.graph.node for tensor in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), key)
        for key, value in constants.items()
        if key in used
    )
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{i}"
    return compose.add_prefix(model, f"{name}.", rename_inputs=False, rename_outputs=False)


def mean_as_pooling(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace ReduceMean of (B, C, F, T') over a known F by AveragePool and Squeeze, in place.

    ONNX Runtime's ReduceMean over an inner axis takes 8 us of a student's 60 us on a streaming
    chunk, whatever its size; the pooling takes 1.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in inferred.graph.value_info}
    bands = {name: dims[2].dim_value for name, dims in shapes.items() if len(dims) == 4}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for i, node in enumerate(list(model.graph.node)):
        if node.op_type != "ReduceMean" or not bands.get(node.input[0]):
            continue
        axes = constants.get(node.input[1]) if len(node.input) > 1 else None
        keeps = next((bool(a.i) for a in node.attribute if a.name == "keepdims"), True)
        if axes is None or axes.tolist() != [2] or keeps:
            continue
        pooled, axis = f"{node.output[0]}_pooled", f"{node.output[0]}_axis"
        model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), axis))
        pool = helper.make_node(
            "AveragePool", [node.input[0]], [pooled], kernel_shape=[bands[node.input[0]], 1]
        )
        squeeze = helper.make_node("Squeeze", [pooled, axis], [node.output[0]])
        model.graph.node.remove(node)
        model.graph.node.insert(i, pool)
        model.graph.node.insert(i + 1, squeeze)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    return model


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Clean a graph in place: one import per domain; no stack traces, which hold local paths."""
    graph = model.graph
    imports = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    model.ClearField("opset_import")
    model.opset_import.extend(helper.make_opsetid(*item) for item in imports.items())
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    graph.ClearField("value_info")
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators that a graph imports."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def check_loadable(model: onnx.ModelProto) -> None:
    """Check the opset and IR that a JetPack 6 device reads, and that no BatchNorm is left.

    Raises:
        GraphError: One of them does not hold, or `onnx.checker` finds a fault.
    """
    opset, ir = opset_of(model), model.ir_version
    if opset != OPSET or ir > MAX_IR:
        raise GraphError(
            f"The graph was written with opset {opset} and IR {ir}; devices read opset {OPSET} and "
            f"at most IR {MAX_IR}.",
            fix="Use the torch, onnx and onnxscript versions of constraints.txt.",
        )
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise GraphError(
            "A BatchNorm could not be folded: it does not follow a convolution directly.",
            fix="Place each BatchNorm right after a convolution of the student's trunk.",
        )
    onnx.checker.check_model(model, full_check=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute the exporter's warnings about torchvision and itself; a user cannot act on them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _finish(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    strip(mean_as_pooling(model))
    model.graph.name = name
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        # Convolutions are named after their torch module, so that reports can name a layer.
        node.name = f"{node.op_type.lower()}_{i}"
        if node.op_type == "Conv" and node.input[1].endswith(".weight"):
            layer = node.input[1].removesuffix(".weight")
            node.name = f"{layer}_{i}" if layer in taken else layer
        taken.add(node.name)
    model.ir_version = min(model.ir_version, MAX_IR)
    check_loadable(model)
    if not all(np.isfinite(numpy_helper.to_array(t)).all() for t in model.graph.initializer):
        raise GraphError(
            "The student holds weights that are not finite.", fix="Distil it again: it diverged."
        )
    return model


_TOOLS = ("frami-edge-export", "frami-edge-runtime", "torch", "onnx", "onnxscript", "onnxruntime")


def model_info(student: ExportableStudent, facts: StudentFacts) -> ModelInfo:
    """The fp32 model's description; `ModelInfo.replace` derives those of the other precisions.

    Raises:
        ModelFileError: A fact is of the wrong type or out of range.
    """
    return ModelInfo(
        mel=facts.mel,
        labels=tuple(facts.labels),
        receptive_field=student.receptive_field,
        stride=student.stride,
        channels=student.channels,
        context=Context(*student.context),
        pooling=Pooling(eps=student.pool_eps),
        teacher_sha256=facts.teacher_sha256,
        student_sha256=facts.student_sha256,
        versions={
            "python": platform.python_version(),
            **{tool: metadata.version(tool) for tool in _TOOLS},
        },
        licence=facts.licence,
        output=facts.output,
        created=_created(),
    )


def with_entries(model: onnx.ModelProto, entries: Mapping[str, str]) -> bytes:
    """The bytes of a graph with these metadata and no others."""
    model = copy.deepcopy(model)
    model.ClearField("metadata_props")
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name = "frami-edge-export"
    model.producer_version = metadata.version("frami-edge-export")
    onnx.checker.check_model(model)
    return serialised(model)


def serialised(model: onnx.ModelProto) -> bytes:
    """The graph as bytes; equal graphs give equal bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def sha256(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _created() -> str:
    """The time in SOURCE_DATE_EPOCH, ISO 8601, and nothing without: two exports are equal files.

    Source: https://reproducible-builds.org/specs/source-date-epoch/
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not (epoch.isdecimal() and len(epoch) < 12):
        return ""
    return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).isoformat(timespec="seconds")
