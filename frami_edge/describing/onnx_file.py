"""An ONNX file: which of ours it is, what it computes, and what it says about itself."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from frami_edge.describing.description import (
    Description,
    Fact,
    Section,
    listed,
    size_text,
    thousands,
)
from frami_edge.describing.onnx_parts import leaks, metadata_of, parts_of, port_text
from frami_edge.describing.words import info_sections
from frami_edge.errors import ModelFileError
from frami_edge.io import sha256_file
from frami_edge.onnx_session import external_tensors
from frami_edge_export.lint import lint_tensorrt
from frami_edge_runtime.modelfile import HEAD_KEY, METADATA_KEY, ModelInfo

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
