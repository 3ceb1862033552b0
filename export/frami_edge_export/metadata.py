"""What a model file says about itself, and the tools that made it."""

from __future__ import annotations

import copy
import datetime
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import onnx

from frami_edge_export.protocol import ExportableStudent, StudentFacts
from frami_edge_runtime.modelfile import Context, ModelInfo, Pooling, model_metadata

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
