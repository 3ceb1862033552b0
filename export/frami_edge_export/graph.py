"""Files appear whole or not at all."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import logging
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from frami_edge_export.errors import ExportError, GraphError
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

# --- What the exporter needs of a student: structure here, facts about its origin beside it
# Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.


class ExportableStudent(Protocol):
    """Any student of this form: a trunk, statistics pooling, an affine head.

    Plain attributes will do; they are only read.
    """

    @property
    def trunk(self) -> nn.Module:
        """(B, 1, M, T) normalised log-mel -> frames (B, C, T'), no padding along time."""

    @property
    def receptive_field(self) -> int:
        """Mel frames that one trunk frame sees."""

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
    """What a student lacks of `ExportableStudent`.

    Not `isinstance` with a runtime protocol: from Python 3.12 on it looks past `__getattr__`, and
    so past every submodule of an `nn.Module`.
    """
    parts = ("trunk", "receptive_field", "stride", "context", "channels", "pool_eps")
    return [name for name in (*parts, "collapsed_head") if not hasattr(student, name)]


@dataclass(frozen=True)
class StudentFacts:
    """What the file must say and the module does not know."""

    mel: MelSpec
    """The front end that the student was trained on."""
    labels: tuple[str, ...]
    """(K,) class names, in the order of the logits."""
    teacher_sha256: str | None = None
    """Of the teacher's weights."""
    student_sha256: str | None = None
    """Of the student's weights."""
    licence: str = ""


# --- The mean over frequency as average pooling: the same numbers, faster kernels
# Shape legend: B batch, C channels, F frequency bands of a feature map, T' trunk frames.

_FREQUENCY: Final = 2


def mean_as_pooling(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace ReduceMean of (B, C, F, T') over a known F by AveragePool and Squeeze, in place.

    ONNX Runtime's ReduceMean over an inner axis takes 8 us of a student's 60 us on a streaming
    chunk, whatever its size; the pooling takes 1.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    bands = {
        v.name: v.type.tensor_type.shape.dim[_FREQUENCY].dim_value
        for v in inferred.graph.value_info
        if len(v.type.tensor_type.shape.dim) == 4
    }
    axes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for i, node in enumerate(list(model.graph.node)):
        if node.op_type != "ReduceMean" or not bands.get(node.input[0]):
            continue
        over = axes.get(node.input[1]) if len(node.input) > 1 else None
        if over is None or over.tolist() != [_FREQUENCY] or _keeps(node):
            continue
        pooled = f"{node.output[0]}_pooled"
        axis = np.array([_FREQUENCY], np.int64)
        squeeze = f"{node.output[0]}_axis"
        model.graph.initializer.append(numpy_helper.from_array(axis, squeeze))
        pool = helper.make_node(
            "AveragePool", [node.input[0]], [pooled], kernel_shape=[bands[node.input[0]], 1]
        )
        model.graph.node.remove(node)
        model.graph.node.insert(i, pool)
        model.graph.node.insert(
            i + 1, helper.make_node("Squeeze", [pooled, squeeze], [node.output[0]])
        )
    return _without_unused(model)


def _keeps(node: onnx.NodeProto) -> bool:
    return next((bool(a.i) for a in node.attribute if a.name == "keepdims"), True)


def _without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    return model


# --- torch to ONNX: the trunk, the head and the whole classifier, stripped of local traces
# Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2C, K classes.

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


# --- A few lines to write an ONNX graph by hand: constants and nodes, named as they come


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


# --- What a model file says about itself, and the tools that made it

_TOOLS = ("frami-edge-export", "frami-edge-runtime", "torch", "onnx", "onnxscript", "onnxruntime")


def tool_versions() -> dict[str, str]:
    """Of Python and every tool that touched the file."""
    return {"python": platform.python_version(), **{t: metadata.version(t) for t in _TOOLS}}


def model_info(student: ExportableStudent, facts: StudentFacts) -> ModelInfo:
    """The fp32 model's description; `ModelInfo.replace` makes the int8 one of it.

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
        versions=tool_versions(),
        licence=facts.licence,
        created=_now().isoformat(timespec="seconds"),
    )


def described(model: onnx.ModelProto, info: ModelInfo, head: bytes) -> bytes:
    """The bytes of a streaming model file: graph, description and head."""
    return _with_entries(model, model_metadata(info, head))


def described_classifier(model: onnx.ModelProto, info: ModelInfo, key: str) -> bytes:
    """The bytes of ``model.onnx``: the description only, for the head is in the graph."""
    return _with_entries(model, {key: info.to_json()})


def _with_entries(model: onnx.ModelProto, entries: Mapping[str, Any]) -> bytes:
    model = copy.deepcopy(model)
    model.ClearField("metadata_props")
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = (
        "frami-edge-export",
        metadata.version("frami-edge-export"),
    )
    onnx.checker.check_model(model)
    return serialised(model)


def serialised(model: onnx.ModelProto) -> bytes:
    """Equal graphs give equal bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def _now() -> datetime.datetime:
    """Now, or SOURCE_DATE_EPOCH, with which the same student gives the same bytes.

    Source: https://reproducible-builds.org/specs/source-date-epoch/
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdecimal() and len(epoch) < 12:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    return datetime.datetime.now(datetime.UTC)


# --- Files appear whole or not at all


def write_files(folder: Path, files: Mapping[str, bytes], seal: str | None = None) -> None:
    """Write every file under a temporary name in the folder, then rename them all.

    Args:
        folder: Made where missing.
        files: Contents by file name.
        seal: The one of them that vouches for the others: the old one goes first and the new one
            comes last, so that a process killed in between leaves none beside files it is not of.

    Raises:
        ExportError: The folder cannot be written to, or the disk is full: no file was replaced.
    """
    staged: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            handle, staged[name] = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(staged[name], 0o666 & ~_umask())  # mkstemp's files are private
        if seal is not None:
            (folder / seal).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == seal):
            os.replace(staged[name], folder / name)
            del staged[name]
        _clear(folder, files)
    except OSError as error:
        raise ExportError(
            f"Cannot write the export to {folder}: {error.strerror or error}.",
            fix="Choose a folder that you may write to, with room for the files.",
        ) from None
    finally:
        for temporary in staged.values():
            Path(temporary).unlink(missing_ok=True)


def _clear(folder: Path, names: Iterable[str]) -> None:
    """Delete what processes left that were killed while they wrote these files."""
    left = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.[a-z0-9_]{{8}}")
    for path in folder.glob(".*"):
        if left.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """One JSON object with a final newline; never NaN."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
