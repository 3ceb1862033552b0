"""What a model file says about itself: the contract between exporter and device.

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
import binascii
import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from frami_edge_runtime.errors import MelSpecError, ModelFileError
from frami_edge_runtime.melspec import MelSpec

# --- Strict, bounded JSON: no twin keys, no NaN, no unknown or missing key

MAX_JSON_BYTES: Final = 1 << 20
EXPORT_AGAIN: Final = "Export the model again with frami-edge export."


def parse_object(text: str, where: str, *, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of at most ``most`` characters.

    Raises:
        ModelFileError: The text is too long, damaged or something else; ``where`` names it.
    """
    if len(text) > most:
        raise ModelFileError(
            f"{where} takes {len(text)} bytes; at most {most} are read.",
            fix=EXPORT_AGAIN,
        )
    try:
        values = json.loads(
            text,
            object_pairs_hook=_no_twins,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is not JSON: {error}.", fix=EXPORT_AGAIN) from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{where} is not a JSON object.", fix=EXPORT_AGAIN)
    return values


def same_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Check that an object has exactly the known keys.

    Raises:
        ModelFileError: Some are unknown or missing.
    """
    if unknown := sorted(set(values) - known):
        raise ModelFileError(
            f"{where} has unknown keys: {', '.join(unknown)[:200]}.",
            fix="Upgrade frami-edge-runtime, or export again.",
        )
    if missing := sorted(known - set(values)):
        raise ModelFileError(f"{where} lacks keys: {', '.join(missing)}.", fix=EXPORT_AGAIN)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # such as 1e999, which is no constant
        raise ValueError(f"{digits[:40]} is too large")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


# --- The small records inside a model file's description, and how any of its values is refused

METADATA_KEY: Final = "frami.model"
MAX_FRAMES: Final = 1 << 20
MAX_CONTEXT_VALUE: Final = 1e4


@dataclass(frozen=True)
class Pooling:
    """Statistics pooling over time: [mean; sqrt(max(var, 0) + eps)], population variance."""

    kind: str = "mean_std"
    """Only ``mean_std`` is known."""
    eps: float = 1e-5
    """Added to the variance, under the root."""

    def __post_init__(self) -> None:
        """Check both fields."""
        if self.kind != "mean_std":
            raise ModelFileError(
                f"pooling.kind {self.kind!r} is unknown; this runtime knows 'mean_std'.",
                fix="Upgrade frami-edge-runtime, or export again.",
            )
        if not is_number(self.eps) or not 0 < self.eps < 1:
            raise ModelFileError(
                f"pooling.eps must lie between 0 and 1, not {self.eps!r}.", fix=EXPORT_AGAIN
            )


@dataclass(frozen=True)
class Context:
    """Mel frames of one value around a clip; streams start with them and are flushed with them."""

    left: int
    """Mel frames before the start."""
    right: int
    """Mel frames after the end: the look-ahead of a stream."""
    value: float = 0.0
    """In normalised units: 0 is the training mean."""

    def __post_init__(self) -> None:
        """Check the types; `ModelInfo` checks the sizes."""
        for name in ("left", "right"):
            value = getattr(self, name)
            integer = isinstance(value, int) and not isinstance(value, bool)
            wanted = f"an integer of 0..{MAX_FRAMES}"
            require(integer and 0 <= value <= MAX_FRAMES, f"context.{name}", wanted, value)
        usable = is_number(self.value) and abs(self.value) <= MAX_CONTEXT_VALUE
        require(usable, "context.value", f"a number within +-{MAX_CONTEXT_VALUE:g}", self.value)

    @classmethod
    def around(cls, receptive_field: int) -> Context:
        """The usual one: trunk frame j is centred at mel frame j * stride."""
        left = (receptive_field - 1) // 2
        return cls(left, receptive_field - 1 - left)


def require(condition: bool, key: str, expected: str, value: Any) -> None:
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise ModelFileError(
            f"{METADATA_KEY}: {key} must be {expected}, not {shown}.", fix=EXPORT_AGAIN
        )


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- What a model file says about itself: the contract between exporter and device

SCHEMA: Final = 1
HEAD_KEY: Final = "frami.head_onnx"
TRUNK_INPUT: Final = "mel"
TRUNK_OUTPUT: Final = "frames"
HEAD_INPUT: Final = "pooled"
HEAD_OUTPUT: Final = "logits"

MAX_HEAD_BYTES: Final = 1 << 26
_MAX_FIELD_VALUES = 1 << 20  # of one trunk frame's input: 82 s of 128 bands, 10 ms apart
_MAX_LABELS = 65_536
_MAX_LABEL_LENGTH = 512
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    """Mel frames that one trunk frame sees."""
    stride: int
    """Mel frames between trunk frames; at most the receptive field, or frames would go unheard."""
    channels: int
    """C of the trunk's output."""
    context: Context = None  # type: ignore[assignment]  # filled in from the receptive field
    """Around a clip, ``left + right = receptive_field - 1``; default: `Context.around`."""
    pooling: Pooling = field(default_factory=Pooling)
    precision: str = "fp32"
    """``fp32``, ``fp16`` or ``int8``."""
    quantisation: Mapping[str, Any] | None = None
    """How it was quantised; None for fp32."""
    calibration: Mapping[str, Any] | None = None
    """What it was calibrated on; None for fp32."""
    teacher_sha256: str | None = None
    """64 hex digits, or None where unknown."""
    student_sha256: str | None = None
    """Likewise."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the tools that made the file."""
    licence: str = ""
    created: str = ""
    """ISO 8601."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check every field; lists become tuples, so that equal files give equal objects."""
        if isinstance(self.labels, list):
            object.__setattr__(self, "labels", tuple(self.labels))
        if self.schema != SCHEMA or isinstance(self.schema, bool):
            raise _wrong_schema(self.schema)
        require(isinstance(self.mel, MelSpec), "mel", "a MelSpec", self.mel)
        require(isinstance(self.pooling, Pooling), "pooling", "a Pooling", self.pooling)
        self._check_labels()
        for name in ("receptive_field", "stride", "channels"):
            value = getattr(self, name)
            integer = isinstance(value, int) and not isinstance(value, bool)
            require(
                integer and 1 <= value <= MAX_FRAMES,
                name,
                f"an integer of 1..{MAX_FRAMES}",
                value,
            )
        require(
            self.mel.n_mels * self.receptive_field <= _MAX_FIELD_VALUES,
            "receptive_field",
            f"at most {_MAX_FIELD_VALUES // self.mel.n_mels} with {self.mel.n_mels} mel bands",
            self.receptive_field,
        )
        if self.stride > self.receptive_field:
            raise ModelFileError(
                f"{METADATA_KEY}: stride {self.stride} exceeds receptive_field "
                f"{self.receptive_field}: mel frames would go unheard.",
                fix=EXPORT_AGAIN,
            )
        known = self.precision in ("fp32", "fp16", "int8")
        require(known, "precision", "'fp32', 'fp16' or 'int8'", self.precision)
        self._check_context()
        for name in ("quantisation", "calibration"):
            value = getattr(self, name)
            require(value is None or isinstance(value, Mapping), name, "an object or null", value)
        for name in ("teacher_sha256", "student_sha256"):
            value = getattr(self, name)
            known = isinstance(value, str) and _SHA256.fullmatch(value) is not None
            require(value is None or known, name, "64 lower-case hex digits or null", value)
        versions = self.versions
        strings = isinstance(versions, Mapping) and all(
            isinstance(k, str) and isinstance(v, str) for k, v in versions.items()
        )
        require(strings, "versions", "an object of strings", versions)
        for name in ("licence", "created"):
            require(isinstance(getattr(self, name), str), name, "a string", getattr(self, name))

    def _check_context(self) -> None:
        if self.context is None:
            object.__setattr__(self, "context", Context.around(self.receptive_field))
        require(isinstance(self.context, Context), "context", "a Context", self.context)
        left, right = self.context.left, self.context.right
        require(
            left + right == self.receptive_field - 1,
            "context",
            f"receptive_field - 1 = {self.receptive_field - 1} frames, left and right together",
            f"{left} + {right}",
        )

    def _check_labels(self) -> None:
        labels = self.labels
        require(isinstance(labels, tuple) and len(labels) > 0, "labels", "a list of names", labels)
        require(
            len(labels) <= _MAX_LABELS,
            "labels",
            f"at most {_MAX_LABELS} names",
            f"{len(labels)} names",
        )
        for label in labels:
            named = isinstance(label, str) and 0 < len(label) <= _MAX_LABEL_LENGTH
            require(named, "labels", f"names of 1..{_MAX_LABEL_LENGTH} characters", label)
        if len(set(labels)) != len(labels):
            twice = Counter(labels).most_common(1)[0][0]
            raise ModelFileError(
                f"{METADATA_KEY}: labels has {twice!r} twice.", fix="Give every class its own name."
            )

    @property
    def pooled_size(self) -> int:
        """D = 2 C."""
        return 2 * self.channels

    @property
    def frame_s(self) -> float:
        """Seconds between trunk frames."""
        return self.stride * self.mel.hop_s

    def trunk_frames(self, mel_frames: int) -> int:
        """T' that a clip of T >= 1 mel frames gives, its context included."""
        return (mel_frames - 1) // self.stride + 1

    def replace(self, **changes: Any) -> ModelInfo:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """One JSON object, canonical: equal infos give equal text.

        Raises:
            ModelFileError: ``quantisation`` or ``calibration`` holds what JSON cannot say.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["mel"] = self.mel.to_dict()
        values["pooling"] = dataclasses.asdict(self.pooling)
        values["labels"] = list(self.labels)
        values["context"] = dataclasses.asdict(self.context)
        for name in ("quantisation", "calibration", "versions"):
            values[name] = None if values[name] is None else dict(values[name])
        try:
            text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelFileError(
                f"The model's metadata cannot be written as JSON: {error}.",
                fix="Use plain numbers, strings, lists and dictionaries; no NaN.",
            ) from None
        if len(text) > MAX_JSON_BYTES:
            raise ModelFileError(
                f"The model's metadata takes {len(text)} bytes; at most {MAX_JSON_BYTES} are read.",
                fix="Keep tables out of quantisation and calibration: store their hash.",
            )
        return text

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Read what `to_json` wrote: strict (no unknown or missing key) and bounded.

        Raises:
            ModelFileError: Not such an object, or of another schema; the message says which key.
        """
        values = parse_object(text, METADATA_KEY)
        if values.get("schema") != SCHEMA or isinstance(values.get("schema"), bool):
            raise _wrong_schema(values.get("schema"))
        known = {f.name for f in dataclasses.fields(cls)}
        same_keys(values, known, METADATA_KEY)
        pooling = values["pooling"]
        require(isinstance(pooling, dict), "pooling", "an object", pooling)
        same_keys(pooling, {f.name for f in dataclasses.fields(Pooling)}, f"{METADATA_KEY}.pooling")
        require(isinstance(values["mel"], dict), "mel", "an object", values["mel"])
        context = values["context"]
        require(isinstance(context, dict), "context", "an object", context)
        same_keys(context, {f.name for f in dataclasses.fields(Context)}, f"{METADATA_KEY}.context")
        require(isinstance(values["labels"], list), "labels", "a list of names", values["labels"])
        try:
            mel = MelSpec.from_dict(values["mel"])
        except MelSpecError as error:
            raise ModelFileError(f"{METADATA_KEY}.mel: {error.message}", fix=EXPORT_AGAIN) from None
        built = {"mel": mel, "pooling": Pooling(**pooling), "context": Context(**context)}
        return cls(**{**values, **built})


def model_metadata(info: ModelInfo, head_onnx: bytes) -> dict[str, str]:
    """The two metadata entries that a model file must carry.

    Raises:
        ModelFileError: The head is empty or larger than `MAX_HEAD_BYTES`.
    """
    if not 0 < len(head_onnx) <= MAX_HEAD_BYTES:
        raise ModelFileError(
            f"The head takes {len(head_onnx)} bytes; 1..{MAX_HEAD_BYTES} are accepted.",
            fix="Check that the affine head, not the whole model, is passed as head_onnx.",
        )
    return {METADATA_KEY: info.to_json(), HEAD_KEY: base64.b64encode(head_onnx).decode("ascii")}


def read_model_info(source: Any) -> ModelInfo:
    """The `ModelInfo` of a loaded model.

    Args:
        source: An ``onnxruntime.InferenceSession``, or its metadata as a mapping of strings.

    Raises:
        ModelFileError: The metadata is missing, damaged or of another schema.
    """
    return ModelInfo.from_json(_entry(source, METADATA_KEY))


def read_head(source: Any) -> bytes:
    """The head's ONNX file out of a loaded model's metadata; arguments as `read_model_info`.

    Raises:
        ModelFileError: It is missing, too large or not base64.
    """
    text = _entry(source, HEAD_KEY)
    if len(text) > MAX_HEAD_BYTES * 4 // 3 + 4:
        raise ModelFileError(f"{HEAD_KEY} is larger than {MAX_HEAD_BYTES} bytes.", fix=EXPORT_AGAIN)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ModelFileError(f"{HEAD_KEY} is not base64.", fix=EXPORT_AGAIN) from None


def _entry(source: Any, key: str) -> str:
    metadata = source
    if not isinstance(source, Mapping):
        try:
            metadata = source.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"The model's metadata is damaged: {error}.", fix=EXPORT_AGAIN
            ) from None
    value = metadata.get(key)
    if not isinstance(value, str) or not value:
        raise ModelFileError(
            f"The model has no metadata entry {key}: it was not made by frami-edge export.",
            fix="Export the student with frami-edge export; plain ONNX files cannot be used.",
        )
    return value


def _wrong_schema(found: Any) -> ModelFileError:
    if isinstance(found, int) and not isinstance(found, bool) and found > SCHEMA:
        return ModelFileError(
            f"The model file is of schema {found}; this runtime reads schema {SCHEMA}.",
            fix="Upgrade it: pip install -U frami-edge-runtime.",
        )
    return ModelFileError(
        f"{METADATA_KEY}: schema must be {SCHEMA}, not {str(found)[:40]!r}.", fix=EXPORT_AGAIN
    )
