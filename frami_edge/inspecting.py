"""What a file is and what is inside: models, engines, checkpoints, banks and exports, no GPU."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from safetensors import SafetensorError, safe_open
from torch import nn

from frami_edge.bank import Bank, warnings
from frami_edge.checkpoint import Student, Teacher, TrainedOn, load_checkpoint, parameters
from frami_edge.errors import CheckpointError, TeacherError
from frami_edge.io import read_small, sha256_file
from frami_edge.losses import live_batch_norms
from frami_edge.models import ReusedHead, StudentNet, macs_per_second
from frami_edge.teachers.foreign import Anatomy, ForeignTeacher
from frami_edge.teachers.opening import (
    TeacherDescription,
    build_module,
    labels_of,
    load_weights,
    mel_of,
    read_weights,
    weights_path,
)
from frami_edge.teachers.tracing import Event, find_layout, trace
from frami_edge_export.lint import lint_tensorrt
from frami_edge_runtime.errors import FramiEdgeError, ModelFileError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import HEAD_KEY, METADATA_KEY, ModelInfo
from frami_edge_runtime.tensorrt import EngineCard, read_plan_version, read_sidecar, sidecar_path

# --- ONNX Runtime on the CPU for graphs that the device's runtime does not run, errors in words


def external_tensors(model: Any) -> list[str]:
    """Names of the tensors of an `onnx.ModelProto` whose values lie in another file.

    Looks at initialisers and attributes, in subgraphs and functions too.
    """
    found: list[str] = []

    def look(message: Any) -> None:
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            if message.data_location == message.EXTERNAL or message.external_data:
                found.append(message.name or "a constant")
            return
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                repeated = hasattr(value, "__len__") and not hasattr(value, "DESCRIPTOR")
                for inner in value if repeated else (value,):
                    look(inner)

    look(model)
    return found


def _refuse_external_data(source: Path | bytes, name: str) -> None:
    """ONNX Runtime would read whatever file of this machine the graph names."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(source if isinstance(source, bytes) else source.read_bytes())
    except OSError as error:
        raise ModelFileError(
            f"{name} cannot be read: {error.strerror}.", fix="Check the path."
        ) from None
    except Exception:  # protobuf's errors differ between its implementations
        return  # ONNX Runtime says what is wrong with it
    if external_tensors(model):
        raise ModelFileError(
            f"{name} keeps weights in another file, which is not read.",
            fix="Save it as one file: onnx.save_model(model, FILE, save_as_external_data=False).",
        )


class OnnxSession:
    """A graph of one input.

    Args:
        source: Path of the file, or its bytes.
        name: For messages.
        threads: CPU threads of one run.

    Raises:
        ModelFileError: ONNX Runtime cannot load it.
    """

    def __init__(self, source: Path | bytes, name: str, *, threads: int = 1) -> None:
        import onnxruntime as ort

        _refuse_external_data(source, name)
        self._name = name
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what it would print, the error says
        try:
            self._session: Any = ort.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ModelFileError(
                f"ONNX Runtime {ort.__version__} cannot load {name}: {_first(error)}",
                fix="The file is damaged, or needs a newer onnxruntime.",
            ) from None
        inputs = [port.name for port in self._session.get_inputs()]
        if len(inputs) != 1:
            raise ModelFileError(
                f"{name} takes {len(inputs)} inputs, and one is expected.", fix="Export it again."
            )
        self._input = inputs[0]

    def run(
        self, x: npt.NDArray[np.float32], outputs: Sequence[str] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """The outputs, all of them where none is named.

        Raises:
            ModelFileError: The graph does not take this shape, or failed.
        """
        try:
            found: list[npt.NDArray[np.float32]] = self._session.run(outputs, {self._input: x})
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ModelFileError(
                f"ONNX Runtime could not run {self._name} on {x.shape}: {_first(error)}",
                fix="Export it again.",
            ) from None
        return found


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# --- A description: facts in sections, read by people as a table and by programs as one object

_SHA256 = re.compile(r"[0-9a-f]{64}")
SHOWN_NAMES = 24
"""Names of a list that people get to see; JSON has all."""


@dataclass(frozen=True)
class Fact:
    """One thing that is so."""

    name: str
    """In snake case: a key of the JSON object, and the words of the table."""
    value: Any
    """As JSON has it."""
    text: str | None = None
    """As people read it, where that differs; empty: only JSON has it."""

    @property
    def label(self) -> str:
        """The name for a table cell; a unit at its end is in the value."""
        return self.name.removesuffix("_ms").replace("_", " ")

    def shown(self) -> str:
        """The value for a table cell."""
        if self.text is not None:
            return self.text
        value = self.value
        if value is None or value == "":
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, int):
            return thousands(value)
        if isinstance(value, str):
            return short(value)
        if isinstance(value, (list, tuple)):
            return listed([str(item) for item in value])
        return str(value)


@dataclass(frozen=True)
class Section:
    """Facts that belong together."""

    name: str
    """In snake case, like those of the facts."""
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Description:
    """Everything that was found in one file or folder."""

    kind: str
    """For programs, such as ``onnx-streaming``."""
    title: str
    """For people: what it is, in a few words."""
    sections: tuple[Section, ...]
    findings: tuple[str, ...] = ()
    """What a user of the file should know: damage, leaks, what is missing."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: one object a section."""
        found: dict[str, Any] = {"kind": self.kind, "title": self.title}
        for section in self.sections:
            found[section.name] = {fact.name: fact.value for fact in section.facts}
        return found | {"findings": list(self.findings)}


def short(text: str) -> str:
    """A hash by its first digits; anything else as it is. JSON has all 64."""
    return f"{text[:16]}..." if _SHA256.fullmatch(text) else text


def thousands(number: int) -> str:
    """51430 -> 51 430: long numbers in groups of three, as the SI brochure sets them."""
    return f"{number:,}".replace(",", " ")


def size_text(count: int) -> str:
    """Bytes for people, in decimal units as on a disk."""
    if count < 1000:
        return f"{count} bytes"
    if count < 1_000_000:
        return f"{count / 1000:.1f} kB"
    return f"{count / 1e6:.1f} MB"


def listed(names: Sequence[str], most: int = SHOWN_NAMES) -> str:
    """Names after commas; beyond ``most`` only their number."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


# --- What a model says about itself, as facts: front end, classes, geometry, origin


def mel_text(spec: MelSpec) -> str:
    """A front end in one line."""
    where = "centred" if spec.center else "not centred"
    norm = "" if spec.norm == "none" else f", {spec.norm} norm"
    scaled = "per band" if isinstance(spec.mean, tuple) else f"{spec.mean:.3g} ± {spec.std:.3g}"
    return (
        f"{spec.n_mels} {spec.mel_scale} bands{norm} of {spec.f_min:g} to {spec.f_high:g} Hz; "
        f"window {spec.win_length} in FFT {spec.n_fft}, hop {spec.hop_length} "
        f"({1000 * spec.hop_s:g} ms), {where}; {spec.log} of "
        f"{'power' if spec.power == 2 else 'magnitude'}; normalised by {scaled}"
    )


def heard_facts(labels: tuple[str, ...], spec: MelSpec) -> tuple[Fact, ...]:
    """Classes and front end."""
    return (
        Fact("classes", list(labels), f"{len(labels)}: {listed(labels)}"),
        Fact("sample_rate", spec.sample_rate, f"{spec.sample_rate} Hz"),
        Fact("mel", spec.to_dict(), mel_text(spec)),
        Fact("mel_sha256", spec.digest),
    )


def geometry_facts(spec: MelSpec, field: int, stride: int, right: int) -> tuple[Fact, ...]:
    """How far a frame looks, how often one comes, and how late.

    The delay of a trunk frame behind the sound at its centre: the mel frames after it, and half the
    FFT of the last of them. It is the algorithm's own; computing and buffering come on top.
    """
    hop_ms = 1000 * spec.hop_s
    delay_ms = right * hop_ms + 500 * spec.n_fft / spec.sample_rate
    return (
        Fact("receptive_field", field, f"{field} mel frames, {field * hop_ms:g} ms"),
        Fact("stride", stride, f"{stride} mel frames, {stride * hop_ms:g} ms"),
        Fact("delay_ms", delay_ms, f"{delay_ms:g} ms behind the sound, by look-ahead alone"),
    )


def info_sections(info: ModelInfo) -> tuple[Section, ...]:
    """Everything in a `ModelInfo`."""
    left, right = info.context.left, info.context.right
    answers = Section(
        "hears",
        (
            *heard_facts(info.labels, info.mel),
            *geometry_facts(info.mel, info.receptive_field, info.stride, right),
            Fact("context", [left, right], f"{left} mel frames before a clip, {right} after it"),
            Fact(
                "pooling",
                {"kind": info.pooling.kind, "eps": info.pooling.eps, "channels": info.channels},
                f"mean and deviation of {info.channels} channels, eps {info.pooling.eps:g}",
            ),
        ),
    )
    origin = Section(
        "origin",
        (
            Fact("precision", info.precision),
            Fact("quantisation", _plain(info.quantisation), _mapping(info.quantisation)),
            Fact("calibration", _plain(info.calibration), _mapping(info.calibration)),
            Fact("student_sha256", info.student_sha256),
            Fact("teacher_sha256", info.teacher_sha256),
            Fact("licence", info.licence or None),
            Fact("created", info.created or None),
            Fact("versions", dict(info.versions), _mapping(info.versions)),
        ),
    )
    return answers, origin


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(values)


def _mapping(values: Mapping[str, Any] | None) -> str | None:
    if not values:
        return None
    return "; ".join(
        f"{key} {short(value) if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    )


# --- What an ONNX graph is made of: weights, operators, int8 layers, and strings that should not
# Nothing is run; only the protobuf is read.

WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that have weights worth quantising."""
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_INT8 = (TensorProto.INT8, TensorProto.UINT8)
_WEIGHT_TYPES = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
    TensorProto.INT8, TensorProto.UINT8,
)  # fmt: skip
_LEAK = re.compile(
    r"Traceback \(most recent|File \"[^\"]+\", line \d+"
    r"|(?:^|[\s'\"=:(,])(?:/(?:home|root|tmp|Users|usr|opt|mnt|var|workspace|work|data)/[^\s'\",]+"
    r"|[A-Za-z]:\\[^\s'\",]+)"
)


@dataclass(frozen=True)
class Layer:
    """An operator with weights."""

    name: str
    op: str
    weights: str
    """Type of the weights as the graph computes with them: ``int8``, ``float``, ``float16``..."""
    activations: str
    """``uint8``, ``int8`` or ``float``."""

    @property
    def quantised(self) -> bool:
        """Both sides are 8-bit."""
        return self.weights in ("int8", "uint8") and self.activations in ("int8", "uint8")


@dataclass(frozen=True)
class Parts:
    """Of one graph."""

    parameters: int
    """Numbers in the weights; scales and zero points do not count."""
    weight_bytes: int
    """Of all initialisers."""
    types: dict[str, int]
    """Parameters by type."""
    operators: dict[str, int]
    """Nodes by operator, most frequent first."""
    layers: tuple[Layer, ...]


def parts_of(model: onnx.ModelProto) -> Parts:
    """Count and sort what is in the graph."""
    graph = model.graph
    tensors = {t.name: t for t in _tensors(graph)}
    nodes = list(graph.node)
    auxiliary = {
        name for node in nodes if node.op_type in _QDQ for name in list(node.input)[1:] if name
    }
    # An int32 tensor is a table of indices, unless it is the bias of an int8 layer.
    dequantised = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    types: Counter[str] = Counter()
    weight_bytes = 0
    for name, tensor in tensors.items():
        weight_bytes += _bytes(tensor)
        count = math.prod(tensor.dims)
        weight = tensor.data_type in _WEIGHT_TYPES or name in dequantised
        if weight and name not in auxiliary and count > 1:
            types[_type(tensor.data_type)] += count
    operators = Counter(node.op_type for node in nodes)
    return Parts(
        sum(types.values()),
        weight_bytes,
        dict(types.most_common()),
        dict(operators.most_common()),
        tuple(_layers(nodes, tensors)),
    )


def leaks(model: onnx.ModelProto) -> list[str]:
    """Local paths and stack traces that the file carries, shortened; where, then what."""
    found: dict[str, str] = {}
    for where, text in _strings(model):
        hit = _LEAK.search(text)
        if hit and where not in found:
            shown = hit.group(0).strip()
            found[where] = shown if len(shown) <= 60 else shown[:57] + "..."
    return [f"{where}: {what}" for where, what in found.items()]


def port_text(port: onnx.ValueInfoProto) -> str:
    """Name, type and shape of an input or output."""
    tensor = port.type.tensor_type
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?")
            for d in tensor.shape.dim]  # fmt: skip
    kind = _type(tensor.elem_type) if tensor.elem_type else "no tensor"
    return f"{port.name} {kind} ({', '.join(dims)})"


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's own entries."""
    return {entry.key: entry.value for entry in model.metadata_props}


def _layers(nodes: list[onnx.NodeProto], tensors: dict[str, TensorProto]) -> Iterator[Layer]:
    made_by = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type not in WEIGHED or len(node.input) < 2:
            continue
        weights = _operand(node.input[1], made_by, tensors)
        if weights == "computed":
            continue  # a product of two activations has no weights
        activations = _operand(node.input[0], made_by, tensors)
        yield Layer(
            node.name or node.output[0], node.op_type, weights,
            activations if activations in ("int8", "uint8") else "float",
        )  # fmt: skip


def _operand(name: str, made_by: dict[str, onnx.NodeProto], tensors: dict[str, TensorProto]) -> str:
    """Type that a layer reads: 8-bit behind a DequantizeLinear, else the tensor's own."""
    maker = made_by.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        source = tensors.get(maker.input[0])
        if source is not None:
            return _type(source.data_type)
        point = tensors.get(maker.input[2]) if len(maker.input) > 2 else None
        if point is not None and point.data_type in _INT8:
            return _type(point.data_type)
        return "uint8"  # the type that a missing zero point stands for
    tensor = tensors.get(name)
    return "computed" if tensor is None else _type(tensor.data_type)


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    copy = TensorProto()
                    copy.CopyFrom(attribute.t)
                    copy.name = node.output[0]
                    yield copy


def _bytes(tensor: TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return int(tensor.ByteSize())


def _type(number: int) -> str:
    try:
        name = TensorProto.DataType.Name(number).lower()
    except ValueError:
        return f"type {number}"
    return "float" if name == "float" else str(name)


def _strings(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    yield "doc_string", model.doc_string
    yield "graph's doc_string", model.graph.doc_string
    for entry in model.metadata_props:
        yield f"metadata {entry.key}", entry.value[:1_000_000]
    for node in model.graph.node:
        where = f"node {node.name or node.op_type}"
        yield where, node.doc_string
        yield where, node.name
        for entry in node.metadata_props:
            yield f"{where}, {entry.key}", entry.value
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.STRING:
                yield where, helper.get_attribute_value(attribute).decode("utf-8", "replace")
    for tensor in model.graph.initializer:
        yield f"tensor {tensor.name}", tensor.doc_string
        for item in tensor.external_data:
            yield f"tensor {tensor.name}", item.value


# --- An ONNX file: which of ours it is, what it computes, and what it says about itself

CLASSIFIER_KEY = "frami.classifier"
WAVEFORM_KEY = "frami.waveform"
KINDS = {
    METADATA_KEY: ("onnx-streaming", "streaming model of frami-edge (trunk and head)"),
    CLASSIFIER_KEY: ("onnx-classifier", "whole classifier of frami-edge (log-mel to logits)"),
    WAVEFORM_KEY: ("onnx-waveform", "whole classifier of frami-edge (samples to logits)"),
}
MAX_BYTES = 2 << 30
_MAX_IR, _MAX_OPSET = 10, 20
"""What ONNX Runtime 1.23.2 of JetPack 6 loads."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The protobuf of a file.

    Raises:
        ModelFileError: It is too large, truncated, or no ONNX file.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ModelFileError(
            f"{path} is larger than 2 GiB.", fix="Check that it is the right file."
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError:
        raise
    except Exception:  # protobuf's errors differ between its implementations
        model = onnx.ModelProto()
    if not model.ir_version or not model.graph.node or not _all_text(model):
        raise ModelFileError(
            f"{path} is no whole ONNX file: it is damaged, truncated, or something else.",
            fix="Copy it again, and compare its size and hash with those of export_report.json.",
        )
    return model


def _all_text(message: Any) -> bool:
    """Protobuf hands over text that is no UTF-8 as bytes, which no reader expects."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        single = isinstance(value, (str, bytes)) or hasattr(value, "ListFields")
        for item in (value,) if single else value:
            if isinstance(item, bytes) or (hasattr(item, "ListFields") and not _all_text(item)):
                return False
    return True


def read_info(model: onnx.ModelProto) -> tuple[str, ModelInfo] | None:
    """Which of our keys the file carries, and what it says; None for a file that is not ours.

    Raises:
        ModelFileError: The description is damaged or of another schema.
    """
    metadata = metadata_of(model)
    for key in KINDS:
        if key in metadata:
            text = metadata[key]
            if key == WAVEFORM_KEY:
                text = _inner_model(text)
            return key, ModelInfo.from_json(text)
    return None


def describe_onnx(path: Path) -> Description:
    """Everything that can be read without running it.

    Raises:
        ModelFileError: No whole ONNX file.
    """
    model = read_onnx(path)
    findings: list[str] = []
    kind, title = "onnx", "plain ONNX file, not of frami-edge export"
    sections: tuple[Section, ...] = ()
    known = next((key for key in KINDS if key in metadata_of(model)), None)
    if known is None:
        findings.append(
            "It carries no description of frami-edge: labels, front end and receptive field are "
            "unknown, and frami-edge-runtime cannot run it."
        )
    else:
        kind, title = KINDS[known]
        try:
            found = read_info(model)
            sections = () if found is None else info_sections(found[1])
        except ModelFileError as error:
            findings.append(f"Its description cannot be read: {error}")
    elsewhere = external_tensors(model)
    if elsewhere:
        findings.append(
            f"{len(elsewhere)} of its tensors lie in another file ({elsewhere[0]} first): it is "
            "not loaded, because such a place may be any file of this machine."
        )
    unsound = _unsound(model)
    findings += unsound + [f"A local path or stack trace is inside: {x}" for x in leaks(model)]
    graph, size = _graph(model, path)
    graph.append(_lint(model, sound=not unsound))
    first = (_file(path, size), Section("graph", tuple(graph)))
    return Description(kind, title, (*first, *sections), tuple(findings))


def _file(path: Path, parts: dict[str, int]) -> Section:
    total = path.stat().st_size
    shown = ", ".join(f"{name} {size_text(n)}" for name, n in parts.items() if n)
    return Section(
        "file",
        (
            Fact("path", str(path)),
            Fact("bytes", total, size_text(total)),
            Fact("bytes_by_part", parts, shown),
            Fact("sha256", sha256_file(path)),
        ),
    )


def _graph(model: onnx.ModelProto, path: Path) -> tuple[list[Fact], dict[str, int]]:
    parts = parts_of(model)
    metadata = metadata_of(model)
    head = len(metadata.get(HEAD_KEY, ""))
    described = sum(len(k) + len(v) for k, v in metadata.items()) - head
    size = {"weights": parts.weight_bytes, "head": head, "metadata": described}
    size["graph"] = max(0, path.stat().st_size - sum(size.values()))
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    quantised = [layer.name for layer in parts.layers if layer.quantised]
    floats = [layer.name for layer in parts.layers if not layer.quantised]
    flavours = sorted({_flavour(x.activations, x.weights) for x in parts.layers if x.quantised})
    kinds = listed(sorted({x.weights for x in parts.layers}))
    precision = f"all {len(floats)} layers with weights in {kinds}" if floats else "none"
    if quantised:
        kept = f"; float: {listed([repr(name) for name in floats])}" if floats else ""
        precision = (
            f"{len(quantised)} of {len(parts.layers)} layers with weights in int8 "
            f"({', '.join(flavours)}){kept}"
        )
    head_parameters = _head_parameters(metadata.get(HEAD_KEY))
    params = thousands(parts.parameters)
    if head_parameters:
        params += f", and {thousands(head_parameters)} in the head"
    operators = ", ".join(f"{n} {op}" for op, n in parts.operators.items())
    producer = f"{model.producer_name or 'unknown'} {model.producer_version}".strip()
    return [
        Fact("opset", opsets, ", ".join(f"{d} {v}" for d, v in opsets.items())),
        Fact("ir_version", model.ir_version),
        Fact("producer", producer),
        Fact("inputs", [port_text(p) for p in _inputs(model)]),
        Fact("outputs", [port_text(p) for p in model.graph.output]),
        Fact("parameters", parts.parameters, params),
        Fact("head_parameters", head_parameters, ""),
        Fact("parameters_by_type", parts.types,
             ", ".join(f"{thousands(n)} {t}" for t, n in parts.types.items())),
        Fact("layers", {"int8": quantised, "float": floats, "flavours": flavours}, precision),
        Fact("operators", parts.operators, operators),
    ], size  # fmt: skip


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {t.name for t in model.graph.initializer}
    return [port for port in model.graph.input if port.name not in stored]


def _flavour(activations: str, weights: str) -> str:
    return f"{'U8' if activations == 'uint8' else 'S8'}{'U8' if weights == 'uint8' else 'S8'}"


def _head_parameters(text: str | None) -> int | None:
    if not text:
        return None
    head = onnx.ModelProto()
    try:
        head.ParseFromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None
    except Exception:  # protobuf's errors differ between its implementations
        return None
    return parts_of(head).parameters


def _unsound(model: onnx.ModelProto) -> list[str]:
    """What the checker and the devices' loaders would object to."""
    found = []
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises half a dozen types
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        found.append(f"The ONNX checker objects: {first[:200]}")
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if model.ir_version > _MAX_IR or opset > _MAX_OPSET:
        found.append(
            f"Opset {opset} or IR {model.ir_version} is too new for ONNX Runtime 1.23.2, the last "
            f"one for JetPack 6, which loads opset {_MAX_OPSET} and IR {_MAX_IR}."
        )
    return found


def _inner_model(text: str) -> str:
    try:
        return json.dumps(json.loads(text)["model"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(
            f"{WAVEFORM_KEY} is no JSON object with a model in it.", fix="Export it again."
        ) from None


def _lint(model: onnx.ModelProto, *, sound: bool) -> Fact:
    """Whether TensorRT would take the graph, by the exporter's static rules."""
    if not sound:
        return Fact("tensorrt_lint", None, "not checked, because the graph is not sound")
    found = lint_tensorrt(model)
    counts = Counter(f.rule for f in found)
    text = "clean: no rule speaks against building an engine from it"
    if found:
        text = "not for TensorRT: " + ", ".join(f"{n} {rule}" for rule, n in counts.items())
    value = [{"rule": f.rule, "node": f.node, "message": f.message, "fix": f.fix} for f in found]
    return Fact("tensorrt_lint", value, text)


# --- A bank of synthetic clips: its sources, seeds and health


def describe_bank(folder: Path) -> Description:
    """Everything in `bank.json`, after the hash of every shard was checked.

    Raises:
        BankError: No bank, another version, or a shard that is missing or damaged.
    """
    bank = Bank.open(folder)
    index, spec = bank.index, bank.spec
    total = sum((folder / shard.file).stat().st_size for shard in index.shards)
    seconds = index.frames * spec.hop_s
    clips = Section(
        "clips",
        (
            Fact("path", str(folder)),
            Fact("clips", len(bank)),
            Fact("sources", bank.sources,
                 ", ".join(f"{thousands(n)} {name}" for name, n in bank.sources.items()) or "none"),
            Fact("frames", index.frames, f"{index.frames} mel frames, {seconds:.2f} s each"),
            Fact("hours", len(bank) * seconds / 3600),
            Fact("bytes", total, f"{size_text(total)} in {len(index.shards)} shards, hashes right"),
            Fact("seed", index.seed),
            Fact("teacher_sha256", index.teacher_sha256),
        ),
    )  # fmt: skip
    hears = Section("hears", heard_facts(index.labels, spec))
    health = [_health(name, figures) for name, figures in index.health.items()]
    findings = [] if index.health else ["Nobody measured its health: bank.json has no figures."]
    findings += warnings(index.health) if index.health else []
    recipe = Section("recipe", (Fact("config", index.config, _weights(index.config)),))
    sections = (clips, Section("health", tuple(health)), hears, recipe)
    return Description(
        "bank", "bank of synthetic clips", tuple(s for s in sections if s.facts), tuple(findings)
    )


def _health(name: str, figures: dict[str, object]) -> Fact:
    shown = []
    for key, words, form in (
        ("requested", "heard as asked", ".1%"),
        ("batch_norm_error", "BatchNorm error", ".3f"),
        ("entropy", "teacher's entropy", ".2f"),
        ("cosine", "mean cosine", ".2f"),
        ("loudness_spread", "loudness spread", ".2f"),
    ):
        value = figures.get(key)
        if isinstance(value, (int, float)):
            shown.append(f"{words} {value:{form}}")
    return Fact(name, figures, ", ".join(shown))


def _weights(config: dict[str, object]) -> str:
    sources = config.get("sources")
    if not isinstance(sources, dict):
        return "not said"
    return "sources " + ", ".join(f"{name}={weight:g}" for name, weight in sources.items())


# --- A safetensors file: a teacher or student of ours, or somebody's weights

_CARD_KEY = "frami.card"


def describe_checkpoint(path: Path) -> Description:
    """Network, front end, what it heard, and what it costs.

    Raises:
        CheckpointError: No whole safetensors file, or a damaged checkpoint of ours.
    """
    tensors, metadata = _header(path)
    if _CARD_KEY not in metadata:
        return _foreign(path, tensors, metadata)
    loaded = load_checkpoint(path)
    kind = loaded.card.kind
    sections = (
        _checkpoint_file(path, loaded.sha256, tensors),
        _network(loaded),
        _hears(loaded),
        _origin(loaded),
    )
    findings = () if loaded.card.heard else (
        "It does not say which real clips stand behind its weights, so nobody can check that it "
        "is scored on others.",
    )  # fmt: skip
    return Description(kind, f"{kind} of frami-edge", sections, findings)


def _header(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Type and shape of each tensor, and the file's own entries; no tensor is read."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
            return found, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}.", fix="Copy it again."
        ) from None


def _checkpoint_file(
    path: Path, digest: str, tensors: dict[str, tuple[str, tuple[int, ...]]]
) -> Section:
    total = path.stat().st_size
    kinds = Counter(dtype for dtype, _ in tensors.values())
    text = ", ".join(f"{n} {dtype}" for dtype, n in kinds.most_common())
    return Section(
        "file",
        (
            Fact("path", str(path)),
            Fact("bytes", total, size_text(total)),
            Fact("sha256", digest),
            Fact("tensors", dict(kinds), f"{len(tensors)}: {text}"),
        ),
    )


def _network(loaded: Teacher | Student) -> Section:
    model, spec = loaded.model, loaded.spec
    macs = macs_per_second(model, spec)
    shipped = parameters(model.collapse()) if isinstance(model, StudentNet) else parameters(model)
    facts = [
        Fact("arch", loaded.card.arch, _pairs(loaded.card.arch)),
        Fact("parameters", parameters(model)),
        Fact("macs_per_s", macs, f"{macs / 1e6:.2f} M multiply-accumulates per second of audio"),
    ]
    if isinstance(model, StudentNet):
        reused = isinstance(model.head, ReusedHead)
        head = "the teacher's own, behind a projector" if reused else "its own"
        if shipped != parameters(model):
            facts.append(
                Fact("exported_parameters", shipped,
                     f"{thousands(shipped)}, head and projector made one matrix")
            )  # fmt: skip
        facts += [
            Fact("head", "reused" if reused else "own", head),
            *geometry_facts(spec, model.receptive_field, model.stride, model.context[1]),
        ]
    else:
        stride = model.frame_stride
        facts.append(
            Fact("stride", stride, f"{stride} mel frames, {1000 * stride * spec.hop_s:g} ms")
        )
    return Section("network", tuple(facts))


def _hears(loaded: Teacher | Student) -> Section:
    card = loaded.card
    what = "the_teacher_heard" if card.kind == "student" else "heard"
    facts = [*heard_facts(card.labels, loaded.spec)]
    if card.kind == "student":
        facts.append(Fact("heard", None, "no recording") if card.trained_on is None
                     else _heard("heard", card.trained_on))  # fmt: skip
        facts.append(_heard(what, card.teacher_trained_on))
    else:
        facts.append(_heard(what, card.trained_on))
    return Section("hears", tuple(facts))


def _heard(name: str, heard: TrainedOn | None) -> Fact:
    if heard is None:
        return Fact(name, None, "not said")
    text = f"{heard.clips} clips of {heard.data}, fold {heard.test_fold} held out"
    return Fact(name, heard.model_dump(mode="json"), text)


def _origin(loaded: Teacher | Student) -> Section:
    card = loaded.card
    metrics = {k: v for k, v in card.metrics.items() if isinstance(v, (int, float, str))}
    facts = [Fact("teacher_sha256", card.teacher_sha256)] if card.kind == "student" else []
    return Section(
        "origin",
        (
            *facts,
            Fact("recipe", card.recipe, listed([str(key) for key in card.recipe]) or "not said"),
            Fact("metrics", card.metrics, _pairs(metrics) or "none"),
            Fact("licence", card.licence or None),
            Fact("version", card.version, f"frami-edge {card.version}"),
        ),
    )


def _foreign(
    path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> Description:
    count = sum(_size(shape) for _, shape in tensors.values())
    names = [f"{name} {list(shape)}" for name, (_, shape) in tensors.items()]
    weights = Section(
        "weights",
        (
            Fact("numbers", count),
            Fact("names", {n: list(shape) for n, (_, shape) in tensors.items()}, listed(names, 8)),
            Fact("metadata", metadata, listed(list(metadata)) or "none"),
        ),
    )
    finding = (
        "It has no card of frami-edge: network, labels and front end are unknown, so it can be "
        "neither scored nor distilled as it is."
    )
    return Description(
        "safetensors", "safetensors file, not of frami-edge",
        (_checkpoint_file(path, sha256_file(path), tensors), weights), (finding,),
    )  # fmt: skip


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _pairs(values: dict[str, Any]) -> str:
    return "; ".join(f"{key} {_cell(value)}" for key, value in values.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


# --- A TensorRT engine: header and sidecar, read without TensorRT, and whether it loads here


def describe_engine(path: Path) -> Description:
    """Header, sidecar, and whether this machine could run it.

    Raises:
        EngineError: It is no TensorRT plan, or truncated within its header.
    """
    version = ".".join(map(str, read_plan_version(path)))
    total, digest = path.stat().st_size, sha256_file(path)
    findings: list[str] = []
    card: EngineCard | None = None
    try:
        card = read_sidecar(path)
    except FramiEdgeError as error:
        findings.append(str(error))
    sections = [
        Section(
            "file",
            (
                Fact("path", str(path)),
                Fact("bytes", total, size_text(total)),
                Fact("sha256", digest),
                Fact("tensorrt", version, f"built with TensorRT {version}"),
            ),
        )
    ]
    if card is not None:
        sections += [_built(card, path), *info_sections(card.info)]
        findings += _mismatch(card, version, total, digest)
    loads, why = _loads_here(path, findings)
    sections.insert(1, Section("here", (Fact("loads", loads), Fact("reason", why))))
    return Description("engine", "TensorRT engine", tuple(sections), tuple(findings))


def _built(card: EngineCard, path: Path) -> Section:
    shapes = {key: list(shape) for key, shape in card.profile.items()}
    layers = None if card.layers is None else dict(card.layers)
    return Section(
        "built",
        (
            Fact("sidecar", str(sidecar_path(path))),
            Fact("precision", card.precision),
            Fact("gpu", card.gpu, f"{card.gpu} (SM {card.sm})"),
            Fact("sm", card.sm),
            Fact("driver", card.driver),
            Fact("jetpack", card.jetpack),
            Fact("profile", shapes, "; ".join(f"{k} {tuple(s)}" for k, s in shapes.items())),
            Fact("layers", layers,
                 None if not layers else ", ".join(f"{n} {k}" for k, n in layers.items())),
            Fact("onnx", card.onnx_name),
            Fact("onnx_sha256", card.onnx_sha256),
            Fact("created", card.created or None),
        ),
    )  # fmt: skip


def _mismatch(card: EngineCard, version: str, total: int, digest: str) -> list[str]:
    if card.engine_sha256 != digest or card.engine_bytes != total:
        return [
            "The sidecar describes another engine: its size or hash differs. Copy both files "
            "again, or rebuild: frami-edge export --tensorrt."
        ]
    if card.tensorrt != version:
        return [f"The sidecar says TensorRT {card.tensorrt}, the header {version}."]
    return []


def _loads_here(path: Path, findings: list[str]) -> tuple[bool, str]:
    if findings:
        return False, findings[0]
    if find_spec("tensorrt") is None:
        return False, "TensorRT is not installed in this Python environment"
    from frami_edge_runtime.classifier import Classifier

    try:
        Classifier(path, backend="tensorrt")
    except FramiEdgeError as error:
        return False, str(error)
    return True, "it was loaded and answered a probe"


# --- The folder of an export: what its report says, and whether the files are still those

REPORT = "export_report.json"
EXPORT_FOLDER_MAX_BYTES = 64 << 20


def read_report(folder: Path) -> dict[str, Any]:
    """`export_report.json`.

    Raises:
        ModelFileError: Damaged, or of another schema.
    """
    path = folder / REPORT
    try:
        report = json.loads(read_small(path, EXPORT_FOLDER_MAX_BYTES))
    except (ValueError, RecursionError):
        report = None
    whole = isinstance(report, dict) and _is_report(report)
    if not whole:
        raise ModelFileError(
            f"{path} is damaged or of another version.",
            fix="Export the student again: frami-edge export.",
        )
    found: dict[str, Any] = report
    return found


def _is_report(report: dict[str, Any]) -> bool:
    """Of this schema, as far as it is read here."""
    artifacts, gates = report.get("artifacts"), report.get("gates", [])
    return (
        report.get("schema") == 1
        and isinstance(report.get("recommended", ""), str)
        and isinstance(report.get("notes", []), list)
        and isinstance(report.get("bench", {}), dict)
        and isinstance(artifacts, list)
        and all(_has(a, name=str, path=str, bytes=int) for a in artifacts)
        and len({a["name"] for a in artifacts}) == len(artifacts)
        and isinstance(gates, list)
        and all(_has(gate, name=str, passed=bool) for gate in gates)
    )


def _has(value: Any, **types: type) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(k), t) for k, t in types.items())


def describe_export(folder: Path) -> Description:
    """Report and files.

    Raises:
        ModelFileError: The report is damaged, or of another schema.
    """
    report = read_report(folder)
    failed = [g["name"] for g in report.get("gates", []) if not g.get("passed")]
    findings = [f"Gate failed: {name}." for name in failed]
    findings += _changed(folder, report)
    gates = len(report.get("gates", []))
    summary = Section(
        "export",
        (
            Fact("path", str(folder)),
            Fact("student", report.get("name")),
            Fact("recommended", report.get("recommended") or None,
                 report.get("recommended") or "none"),
            Fact("reason", report.get("reason")),
            Fact("gates", report.get("gates"), f"{gates - len(failed)} of {gates} passed"),
            Fact("calibration", report.get("calibration"), _calibration(report)),
            Fact("measured_on", report.get("bench", {}).get("cpu")),
        ),
    )  # fmt: skip
    files = Section(
        "files", tuple(Fact(a["name"], a, f"{a['path']}: {_artifact(a)}")
                       for a in report["artifacts"]),
    )  # fmt: skip
    findings += [str(note) for note in report.get("notes", [])]
    return Description("export", "folder of frami-edge export", (summary, files), tuple(findings))


def _artifact(a: dict[str, Any]) -> str:
    parts = [size_text(a["bytes"])]
    for key, words, form in (
        ("p50_ms", "1 s in", ".3f"), ("chunk_p50_ms", "chunk in", ".3f"),
    ):  # fmt: skip
        if isinstance(a.get(key), (int, float)):
            parts.append(f"{words} {a[key]:{form}} ms")
    for key, words in (("agreement", "agreement"), ("accuracy", "accuracy")):
        if isinstance(a.get(key), (int, float)):
            parts.append(f"{words} {a[key]:.1%}")
    return ", ".join(parts) + (f"; {a['verdict']}" if a.get("verdict") else "")


def _calibration(report: dict[str, Any]) -> str:
    used = report.get("calibration")
    if not isinstance(used, dict):
        return "none"
    return f"{used.get('samples')} clips ({used.get('source')}), {used.get('holdout')} judge"


def _changed(folder: Path, report: dict[str, Any]) -> list[str]:
    found = []
    for a in report["artifacts"]:
        file = folder / Path(a["path"]).name
        if not file.is_file():
            found.append(f"{a['path']} is missing from the folder.")
        elif a.get("sha256") and sha256_file(file) != a["sha256"]:
            found.append(
                f"{a['path']} is not the file that the report describes: its hash differs."
            )
    return found


# --- A teacher in Python code: its layers, where time disappears, and what is still missing
# Unlike everything else here it is built and run, for nobody else knows what is in it.

_SHOWN_EVENTS = 10


def describe_teacher(source: TeacherDescription) -> Description:
    """What inversion and distillation will find in it.

    Raises:
        CheckpointError: The weights are missing, damaged or do not fit.
        ConfigError: The front end is missing or has mistakes.
        TeacherError: It cannot be built, or takes no log-mels of this front end.
    """
    spec, labels, weights = mel_of(source), labels_of(source), weights_path(source)
    module = build_module(source.factory, source.arguments)
    load_weights(module, read_weights(weights), weights, source.weights_under)
    module.float().eval().requires_grad_(False)
    layout = find_layout(module, spec.n_mels, len(labels), source.layout)
    events = trace(module, spec.n_mels, layout)
    findings = []
    try:
        model = ForeignTeacher(
            module, spec.n_mels, len(labels),
            layout=source.layout, frames=source.frames, pooled=source.pooled,
        )  # fmt: skip
        states = _states(model.anatomy, spec, events)
        findings += _lacks(model)
    except TeacherError as error:
        states = Section("hidden_states", (Fact("found", False, "no"), _way(events)))
        findings.append(f"{error.message} {error.fix}")
    if source.trained_on is None:
        findings.append(
            "It does not say what it was trained on, so nobody checks that students are scored on "
            "other clips: add trained_on to its description."
        )
    return Description(
        "foreign-teacher",
        f"teacher {source.factory}",
        (
            _foreign_teacher_file(weights),
            _foreign_teacher_network(module, layout),
            states,
            Section("hears", heard_facts(labels, spec)),
        ),
        tuple(findings),
    )


def _foreign_teacher_file(weights: Path) -> Section:
    return Section("file", (Fact("weights", str(weights)), Fact("sha256", sha256_file(weights))))


def _foreign_teacher_network(module: nn.Module, layout: str) -> Section:
    kinds = Counter(type(m).__name__ for m in module.modules() if not list(m.children()))
    norms = live_batch_norms(module)
    named = [f"{name} ({layer.num_features})" for name, layer in norms]
    return Section(
        "network",
        (
            Fact("parameters", parameters(module)),
            Fact("input", layout, f"{layout}: " + _axes(layout)),
            Fact("layers", dict(kinds), ", ".join(f"{n} {k}" for k, n in kinds.most_common(8))),
            Fact(
                "batch_norms",
                {name: layer.num_features for name, layer in norms},
                f"{len(norms)} live: {listed(named, 6)}" if norms else "none live",
            ),
        ),
    )


def _axes(layout: str) -> str:
    names = {
        "B": "batch",
        "1": "channel",
        "3": "channels, all the same",
        "M": "mel bands",
        "T": "frames",
    }
    return ", ".join(names[axis] for axis in layout)


def _way(events: list[Event]) -> Fact:
    """Shapes on the way, the last ones in full: that is where the pooling is."""
    outputs = [e for e in events if not e.name.endswith("@in")][-_SHOWN_EVENTS:]
    lines, values = [], []
    for e in outputs:
        kind, shape = e.kind, list(e.tensor.shape)
        values.append({"name": e.name, "kind": kind, "shape": shape, "time_axis": e.time_axis})
        gone = "time gone" if e.time_axis is None else f"time on axis {e.time_axis}"
        lines.append(f"{e.name}: {kind} {tuple(shape)}, {gone}")
    return Fact("last_modules", values, "\n".join(lines))


def _states(anatomy: Anatomy, spec: MelSpec, events: list[Event]) -> Section:
    s, ms = anatomy.states, 1000 * spec.hop_s
    field = anatomy.receptive_field
    seen = (
        "the whole clip, or nearly" if field is None else f"{field} mel frames, {field * ms:g} ms"
    )
    stride = anatomy.stride
    return Section(
        "hidden_states",
        (
            Fact("frames", s.frames, f"{s.frames}: {s.channels} channels over time"),
            Fact("pooled", s.pooled, f"{s.pooled}: {s.pooled_size} values"),
            Fact("pooling", s.pooling),
            Fact("stride", stride, f"{stride} mel frames, {stride * ms:g} ms"),
            Fact("receptive_field", field, seen),
            Fact("head", anatomy.head or None, anatomy.head or "not affine: not reused"),
            Fact("answers", anatomy.answers),
            _way(events),
        ),
    )


def _lacks(model: ForeignTeacher) -> list[str]:
    found = list(model.doubts)
    if not live_batch_norms(model):
        found.append(
            "It has no BatchNorm with running statistics: invert with "
            "--set bank.inversion.batch_norm=0 --set bank.translator.batch_norm=0, and expect a "
            "poorer bank."
        )
    if model.head is None:
        found.append(
            "Its way from the pooled state to the logits is not affine: the student gets a head of "
            "its own instead of the teacher's."
        )
    return found


# --- Which describer knows a file: by suffix for files, by what lies inside for folders

Describer = Callable[[Path], Description]

_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def describe(path: Path) -> Description:
    """Describe a file or folder; nothing in it is executed.

    Raises:
        FramiEdgeError: It is missing, damaged, or of a kind that nobody here knows.
    """
    if path.is_dir():
        return _folder(path)(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.", fix="Check the path.")
    return _kinds_file(path)(path)


def _kinds_file(path: Path) -> Describer:
    # One import a kind: each needs libraries that take a while to load, and only its own.
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return describe_onnx
    if suffix in (".engine", ".plan", ".trt"):
        return describe_engine
    if suffix == ".safetensors":
        return describe_checkpoint
    if suffix in (".yaml", ".yml"):
        from frami_edge.teachers.opening import read_description

        return lambda file: describe_teacher(read_description(file))
    if path.name == "bank.json":
        return lambda file: _bank(file.parent)
    if path.name == "export_report.json":
        return lambda file: _export(file.parent)
    if suffix in _PICKLES:
        raise CheckpointError(
            f"{path} is named like a pickle of torch, which can run code when it is read.",
            fix="Save the weights as .safetensors, and give that file.",
        )
    raise CheckpointError(
        f"{path} is of no known kind: {suffix or 'no suffix'}.",
        fix="Give an .onnx, .engine or .safetensors file, a teacher's .yaml, a bank's folder or an "
        "export's folder.",
    )


def _folder(path: Path) -> Describer:
    if (path / "bank.json").is_file():
        return _bank
    if (path / "export_report.json").is_file():
        return _export
    inside = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.suffix in (".onnx", ".engine", ".safetensors")
        or (entry / "bank.json").is_file()
        or (entry / "export_report.json").is_file()
    )
    raise CheckpointError(
        f"{path} is a folder, but neither a bank nor an export.",
        fix=f"Inspect one of the things in it: {', '.join(inside[:8])}."
        if inside
        else "Give a model file, or the folder of a bank or an export.",
    )


def _bank(path: Path) -> Description:

    return describe_bank(path)


def _export(path: Path) -> Description:

    return describe_export(path)


# --- What a file is and what is inside: models, engines, checkpoints, banks and exports, no GPU

__all__ = ["Description", "Fact", "Section", "describe"]
