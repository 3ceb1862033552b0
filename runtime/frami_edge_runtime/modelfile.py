"""The description inside a model file: the contract between exporter and device.

A model is ONE ``.onnx`` file. Its graph is the trunk:

    mel (B, 1, M, T) float32, normalised log-mel  ->  frames (B, C, T') float32
    T' = (T - receptive_field) // stride + 1, no padding along time, B and T dynamic

The clip as a whole gets context: ``left`` frames of a constant before its start and ``right`` after
its end, receptive_field - 1 in all. The runtime adds them, the graph does not. So a clip of T >= 1
mel frames gives (T - 1) // stride + 1 trunk frames.

The affine head over the pooled statistics travels in the metadata as a second, tiny ONNX file:

    pooled (B, D) float32, [mean; std] over T', D = 2 C  ->  logits (B, K) float32

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from frami_edge_runtime.errors import MelSpecError, ModelFileError
from frami_edge_runtime.melspec import MelSpec

SCHEMA: Final = 1
METADATA_KEY: Final = "frami.model"
HEAD_KEY: Final = "frami.head_onnx"
CLASSIFIER_KEY: Final = "frami.classifier"
"""Only in ``model.onnx``: log-mels of a whole clip to logits."""
WAVEFORM_KEY: Final = "frami.waveform"
"""Only in ``wave.onnx``: samples of a whole clip to logits."""
THRESHOLDS_KEY: Final = "frami.thresholds"
"""Thresholds that were tuned after the export; they win over those in the description."""
TRUNK_INPUT: Final = "mel"
TRUNK_OUTPUT: Final = "frames"
HEAD_INPUT: Final = "pooled"
HEAD_OUTPUT: Final = "logits"
EXPORT_AGAIN: Final = "Export the model again with frami-edge export."

MAX_FRAMES: Final = 1 << 20
SCORES: Final = ("softmax", "sigmoid")
_OPTIONAL: Final = ("golden", "thresholds")
_LATER: Final = {"output", *_OPTIONAL}
"""Keys that files of earlier versions lack; left out at their default, which describes those."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object; ``where`` names the text in the `ModelFileError` for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is not JSON: {error}.", fix=EXPORT_AGAIN) from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{where} is not a JSON object.", fix=EXPORT_AGAIN)
    return values


def same_keys(values: Any, known: set[str], where: str) -> None:
    """Check that a value is an object with exactly the known keys, or raise a `ModelFileError`."""
    if not isinstance(values, dict):
        raise ModelFileError(f"{where} must be an object.", fix=EXPORT_AGAIN)
    if unknown := sorted(set(values) - known):
        raise ModelFileError(
            f"{where} has unknown keys: {', '.join(unknown)[:200]}.",
            fix="Upgrade frami-edge-runtime, or export again.",
        )
    if missing := sorted(known - set(values)):
        raise ModelFileError(f"{where} lacks keys: {', '.join(missing)}.", fix=EXPORT_AGAIN)


def _require(condition: bool, key: str, expected: str, value: Any) -> None:
    if not condition:
        raise ModelFileError(
            f"{METADATA_KEY}: {key} must be {expected}, not {repr(value)[:80]}.", fix=EXPORT_AGAIN
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


@dataclass(frozen=True)
class Pooling:
    """Statistics pooling over time: [mean; sqrt(max(var, 0) + eps)], population variance."""

    kind: str = "mean_std"
    """Only ``mean_std`` is known."""
    eps: float = 1e-5
    """Added to the variance, under the root."""

    def __post_init__(self) -> None:
        _require(self.kind == "mean_std", "pooling.kind", "'mean_std'", self.kind)
        inside = _is_number(self.eps) and 0 < self.eps < 1
        _require(inside, "pooling.eps", "between 0 and 1", self.eps)


@dataclass(frozen=True)
class Context:
    """Mel frames of one value around a clip; streams start and are flushed with them."""

    left: int
    """Mel frames before the start."""
    right: int
    """Mel frames after the end: the look-ahead of a stream."""
    value: float = 0.0
    """In normalised units: 0 is the training mean."""

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            value = getattr(self, name)
            integer = _is_integer(value, 0, MAX_FRAMES)
            _require(integer, f"context.{name}", f"an integer in 0..{MAX_FRAMES}", value)
        finite = _is_number(self.value) and math.isfinite(self.value)
        _require(finite, "context.value", "a finite number", self.value)

    @classmethod
    def around(cls, receptive_field: int) -> Context:
        """The default: trunk frame j is centred at mel frame j * stride."""
        left = (receptive_field - 1) // 2
        return cls(left, receptive_field - 1 - left)


@dataclass(frozen=True)
class ModelInfo:
    """Everything a device needs to know about a model; stored as one JSON object.

    Raises:
        ModelFileError: A value has the wrong type or is out of range.
    """

    mel: MelSpec
    """The front end that the trunk was trained on."""
    labels: tuple[str, ...]
    """(K,) class names, in the order of the logits."""
    receptive_field: int
    """Mel frames that one trunk frame depends on."""
    stride: int
    """Mel frames between trunk frames; at most the receptive field, or frames would be skipped."""
    channels: int
    """C of the trunk's output."""
    context: Context = None  # type: ignore[assignment]  # filled in from the receptive field
    """Around a clip, ``left + right = receptive_field - 1``; default: `Context.around`."""
    pooling: Pooling = field(default_factory=Pooling)
    precision: str = "fp32"
    """``fp32``, ``fp16`` or ``int8``."""
    quantisation: Mapping[str, Any] | None = None
    """How the model was quantised; None for fp32."""
    calibration: Mapping[str, Any] | None = None
    """What the model was calibrated on; None for fp32."""
    teacher_sha256: str | None = None
    """64 hex digits of the teacher's file, or None where unknown."""
    student_sha256: str | None = None
    """64 hex digits of the student's file, or None where unknown."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the tools that made the file."""
    output: str = "softmax"
    """How logits become scores: ``softmax`` for one of K, ``sigmoid`` for K detectors."""
    licence: str = ""
    created: str = ""
    """ISO 8601."""
    golden: Mapping[str, Any] | None = None
    """Answers of this file to a fixed clip; see `frami_edge_runtime.selftest`."""
    thresholds: Mapping[str, Any] | None = None
    """When each label's events start and end; see `frami_edge_runtime.thresholds`."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check every field; lists become tuples, so that equal files give equal objects."""

        def check(name: str, holds: bool, expected: str) -> None:
            _require(holds, name, expected, getattr(self, name))

        _check_schema(self.schema)
        check("mel", isinstance(self.mel, MelSpec), "a MelSpec")
        check("pooling", isinstance(self.pooling, Pooling), "a Pooling")
        named = isinstance(self.labels, (list, tuple)) and (
            all(isinstance(label, str) and label for label in self.labels)
            and 0 < len(self.labels) == len(set(self.labels))
        )
        check("labels", named, "a list of different names, none empty")
        object.__setattr__(self, "labels", tuple(self.labels))
        for name in ("receptive_field", "stride", "channels"):
            inside = _is_integer(getattr(self, name), 1, MAX_FRAMES)
            check(name, inside, f"an integer in 1..{MAX_FRAMES}")
        field = self.receptive_field
        check("stride", self.stride <= field, f"at most the receptive_field {field}")
        if self.context is None:
            object.__setattr__(self, "context", Context.around(field))
        around = isinstance(self.context, Context) and (
            self.context.left + self.context.right == field - 1
        )
        check("context", around, f"receptive_field - 1 = {field - 1} frames in all")
        known = ("fp32", "fp16", "int8")
        check("precision", self.precision in known, f"one of {', '.join(known)}")
        for name in ("quantisation", "calibration", *_OPTIONAL):
            check(name, isinstance(getattr(self, name), (Mapping, type(None))), "an object or null")
        for name in ("teacher_sha256", "student_sha256"):
            value = getattr(self, name)
            digits = isinstance(value, str) and _SHA256.fullmatch(value) is not None
            check(name, value is None or digits, "64 lower-case hex digits or null")
        strings = isinstance(self.versions, Mapping) and all(
            isinstance(version, str) for version in self.versions.values()
        )
        check("versions", strings, "an object of strings")
        check("output", self.output in SCORES, f"one of {', '.join(SCORES)}")
        for name in ("licence", "created"):
            check(name, isinstance(getattr(self, name), str), "a string")

    @property
    def pooled_size(self) -> int:
        """D = 2 C."""
        return 2 * self.channels

    @property
    def frame_s(self) -> float:
        """Seconds between trunk frames."""
        return self.stride * self.mel.hop_s

    def trunk_frames(self, mel_frames: int) -> int:
        """T' of a clip of T >= 1 mel frames, its context included."""
        return (mel_frames - 1) // self.stride + 1

    def replace(self, **changes: Any) -> ModelInfo:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """One JSON object, canonical: equal infos give equal text.

        Raises:
            ModelFileError: ``quantisation`` or ``calibration`` has a value that JSON lacks.
        """
        values = {name: getattr(self, name) for name in _names(ModelInfo)}
        values["mel"] = self.mel.to_dict()
        values["pooling"] = dataclasses.asdict(self.pooling)
        values["context"] = dataclasses.asdict(self.context)
        for name in ("quantisation", "calibration", "versions", *_OPTIONAL):
            values[name] = None if values[name] is None else dict(values[name])
        for f in dataclasses.fields(ModelInfo):
            if f.name in _LATER and values[f.name] == f.default:
                del values[f.name]
        try:
            return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ModelFileError(
                f"The model's metadata cannot be written as JSON: {error}.",
                fix="Use plain numbers, strings, lists and dictionaries; no NaN.",
            ) from None

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Read the output of `to_json`: no unknown key, and none missing but the optional ones.

        Raises:
            ModelFileError: Not such an object, or of another schema; the message names the key.
        """
        values = parse_object(text, METADATA_KEY)
        _check_schema(values.get("schema"))
        same_keys(values, _names(cls) - (_LATER - set(values)), METADATA_KEY)
        same_keys(values["pooling"], _names(Pooling), f"{METADATA_KEY}: pooling")
        same_keys(values["context"], _names(Context), f"{METADATA_KEY}: context")
        _require(isinstance(values["mel"], dict), "mel", "an object", values["mel"])
        try:
            mel = MelSpec.from_dict(values["mel"])
        except MelSpecError as error:
            raise ModelFileError(f"{METADATA_KEY}.mel: {error.message}", fix=EXPORT_AGAIN) from None
        pooling, context = Pooling(**values["pooling"]), Context(**values["context"])
        return cls(**{**values, "mel": mel, "pooling": pooling, "context": context})


def model_metadata(info: ModelInfo, head_onnx: bytes) -> dict[str, str]:
    """The two metadata entries that a model file must carry."""
    return {METADATA_KEY: info.to_json(), HEAD_KEY: base64.b64encode(head_onnx).decode("ascii")}


def read_model_info(source: Any) -> ModelInfo:
    """The `ModelInfo` of a loaded model.

    Args:
        source: An ``onnxruntime.InferenceSession``, or its metadata as a mapping of strings.

    Raises:
        ModelFileError: The metadata is missing, damaged or of another schema.
    """
    entries = source if isinstance(source, Mapping) else source.get_modelmeta().custom_metadata_map
    info = ModelInfo.from_json(_entry(entries, METADATA_KEY))
    if tuned := entries.get(THRESHOLDS_KEY):
        return info.replace(thresholds=parse_object(tuned, THRESHOLDS_KEY))
    return info


def metadata_entry(model: bytes, key: str, value: str) -> bytes:
    """An ONNX file with one more metadata entry, written without the ``onnx`` package.

    The entry goes to the end of the file: a protobuf message may be continued there. An entry of
    the same key at the end, from an earlier call, is replaced.
    """

    def field(tag: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 0x7F:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([tag]) + length + bytes([size]) + content

    name = field(0x0A, key.encode())  # StringStringEntryProto.key
    if (found := model.rfind(name)) >= 0:
        for start in range(found - 1, max(0, found - 8), -1):
            if model[start] == 0x72 and model[start:] == field(0x72, model[found:]):
                model = model[:start]
                break
    return model + field(0x72, name + field(0x12, value.encode()))  # ModelProto.metadata_props


def read_head(source: Any) -> bytes:
    """The head's ONNX file from a loaded model's metadata; arguments as for `read_model_info`.

    Raises:
        ModelFileError: It is missing or not base64.
    """
    try:
        return base64.b64decode(_entry(source, HEAD_KEY), validate=True)
    except ValueError:
        raise ModelFileError(f"{HEAD_KEY} is not base64.", fix=EXPORT_AGAIN) from None


def _entry(source: Any, key: str) -> str:
    metadata = source if isinstance(source, Mapping) else source.get_modelmeta().custom_metadata_map
    if not (value := metadata.get(key)):
        if CLASSIFIER_KEY in metadata or WAVEFORM_KEY in metadata:
            raise ModelFileError(
                "The model answers for whole clips, in your own code; it cannot stream.",
                fix="Use the .fp32.onnx or .int8.cpu.onnx file of the same export; docs/CPP.md "
                "shows how to run this one.",
            )
        raise ModelFileError(
            f"The model has no metadata entry {key}: it was not made by frami-edge export.",
            fix="Export the student with frami-edge export; plain ONNX files cannot be used.",
        )
    return str(value)


def _names(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def _check_schema(found: Any) -> None:
    if _is_integer(found, SCHEMA + 1, 1 << 62):
        raise ModelFileError(
            f"The model file is of schema {found}; this runtime reads schema {SCHEMA}.",
            fix="Upgrade it: pip install -U frami-edge-runtime.",
        )
    _require(_is_integer(found, SCHEMA, SCHEMA), "schema", str(SCHEMA), found)
