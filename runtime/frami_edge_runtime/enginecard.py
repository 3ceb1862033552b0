"""What is known about a TensorRT engine: a model's description, and what it was built with."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from frami_edge_runtime._modelparts import MAX_FRAMES
from frami_edge_runtime._strict_json import parse_object, same_keys
from frami_edge_runtime.errors import EngineError, ModelFileError
from frami_edge_runtime.modelfile import HEAD_KEY, MAX_HEAD_BYTES, ModelInfo, read_head

SCHEMA: Final = 1
REBUILD: Final = "Rebuild it on this machine: frami-edge export --tensorrt."
PLAN_HEADER_BYTES: Final = 28
MAX_ENGINE_BYTES: Final = 1 << 31
MAX_ENGINE_BATCH: Final = 1 << 16
MAX_SIDECAR_BYTES: Final = MAX_HEAD_BYTES * 4 // 3 + (4 << 20)
_MAX_TEXT: Final = 256
_MAX_LAYER_KINDS: Final = 256
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")
_SM = re.compile(r"\d{1,2}\.\d")


@dataclass(frozen=True)
class EngineCard:
    """What the sidecar says about an engine; one JSON object.

    Raises:
        EngineError: A value has the wrong type or is out of range, or the profile does not fit the
            model.
    """

    engine_sha256: str
    """64 hex digits of the engine file."""
    engine_bytes: int
    onnx_name: str
    """File name, without folders, of the ONNX file that the engine was built from."""
    onnx_sha256: str
    tensorrt: str
    """All four parts, as in the plan's header: ``10.3.0.30``."""
    precision: str
    """``fp32``, ``fp16`` or ``int8``."""
    sm: str
    """Compute capability of the GPU that it was built on: ``8.7`` is Orin."""
    gpu: str
    """Name of that GPU."""
    driver: str
    profile: Mapping[str, tuple[int, int, int, int]]
    """``min``, ``opt`` and ``max`` shape (B, 1, M, T) of the input."""
    model: str
    """The `ModelInfo` as its JSON text, exactly as in the ONNX file."""
    head_onnx: str
    """The head's ONNX file in base64, exactly as in the ONNX file."""
    jetpack: str | None = None
    """None where it is no Jetson."""
    layers: Mapping[str, int] | None = None
    """How many layers run in what, as the inspector counted; None where unknown."""
    compat: str = "none"
    """``none``: this TensorRT release and architecture; ``version``: also newer ones of its major,
    which makes TensorRT run code out of the file; ``ampere+``: also other GPUs from SM 8.0 on."""
    created: str = ""
    """ISO 8601."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check every field; lists become tuples, so that equal files give equal cards."""
        _need(self.schema == SCHEMA and _is_int(self.schema), "schema", str(SCHEMA), self.schema)
        for key in ("engine_sha256", "onnx_sha256"):
            _match(_SHA256, key, "64 lower-case hex digits", getattr(self, key))
        size = self.engine_bytes
        sized = _is_int(size) and PLAN_HEADER_BYTES <= size <= MAX_ENGINE_BYTES
        _need(sized, "engine_bytes", f"an integer of {PLAN_HEADER_BYTES}..{MAX_ENGINE_BYTES}", size)
        _match(_VERSION, "tensorrt", "a version like 10.3.0.30", self.tensorrt)
        _match(_SM, "sm", "a compute capability like 8.7", self.sm)
        known = self.precision in ("fp32", "fp16", "int8")
        _need(known, "precision", "'fp32', 'fp16' or 'int8'", self.precision)
        compats = ("none", "version", "ampere+")
        _need(self.compat in compats, "compat", f"one of {', '.join(compats)}", self.compat)
        for key in ("onnx_name", "gpu", "driver", "created", "jetpack"):
            value = getattr(self, key)
            text = (value is None and key == "jetpack") or (
                isinstance(value, str) and len(value) <= _MAX_TEXT
            )
            _need(text, key, f"a string of at most {_MAX_TEXT} characters", value)
        plain = self.onnx_name and not set(self.onnx_name) & set("/\\\0")
        _need(bool(plain), "onnx_name", "a file name without folders", self.onnx_name)
        self._check_layers()
        object.__setattr__(self, "_info", self._read_model())
        self._check_profile()

    @property
    def info(self) -> ModelInfo:
        """The model that the engine runs."""
        info: ModelInfo = self._info  # type: ignore[attr-defined]  # set in __post_init__
        return info

    @property
    def head(self) -> bytes:
        """The head's ONNX file."""
        return read_head({HEAD_KEY: self.head_onnx})

    def to_json(self) -> str:
        """One JSON object, canonical: equal cards give equal text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["profile"] = {key: list(shape) for key, shape in self.profile.items()}
        values["layers"] = None if self.layers is None else dict(self.layers)
        return json.dumps(values, sort_keys=True, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "The engine's sidecar") -> EngineCard:
        """Read what `to_json` wrote: strict (no unknown or missing key) and bounded.

        Raises:
            EngineError: Not such an object, or of another schema; ``where`` names it.
        """
        try:
            values = parse_object(text, where, most=MAX_SIDECAR_BYTES)
            if _is_int(values.get("schema")) and values["schema"] > SCHEMA:
                raise EngineError(
                    f"It is of schema {values['schema']}; this runtime reads schema {SCHEMA}.",
                    fix="Upgrade it: pip install -U frami-edge-runtime.",
                )
            same_keys(values, {f.name for f in dataclasses.fields(cls)}, where)
            return cls(**values)
        except EngineError as error:
            raise EngineError(f"{where}: {error.message}", fix=error.fix) from None
        except ModelFileError as error:
            raise EngineError(error.message, fix=REBUILD) from None

    def _read_model(self) -> ModelInfo:
        _need(isinstance(self.model, str), "model", "a string of JSON", self.model)
        _need(isinstance(self.head_onnx, str), "head_onnx", "a string of base64", self.head_onnx)
        try:
            read_head({HEAD_KEY: self.head_onnx})
            return ModelInfo.from_json(self.model)
        except ModelFileError as error:
            raise EngineError(error.message, fix=error.fix) from None

    def _check_layers(self) -> None:
        layers = self.layers
        counted = layers is None or (
            isinstance(layers, Mapping)
            and len(layers) <= _MAX_LAYER_KINDS
            and all(isinstance(k, str) and len(k) <= _MAX_TEXT for k in layers)
            and all(_is_int(n) and 0 <= n <= MAX_FRAMES for n in layers.values())
        )
        _need(counted, "layers", "an object of counts, or null", layers)

    def _check_profile(self) -> None:
        profile, info = self.profile, self.info
        keyed = isinstance(profile, Mapping) and set(profile) == {"min", "opt", "max"}
        _need(keyed, "profile", "an object with min, opt and max", profile)
        shapes = {}
        for key in ("min", "opt", "max"):
            shape = profile[key]
            right = isinstance(shape, (list, tuple)) and len(shape) == 4
            right = right and all(_is_int(n) and n >= 1 for n in shape)
            right = right and tuple(shape[1:3]) == (1, info.mel.n_mels)
            wanted = f"[B, 1, {info.mel.n_mels}, T]"
            _need(right, f"profile.{key}", wanted, shape)
            shapes[key] = (shape[0], shape[1], shape[2], shape[3])
        for axis, most in ((0, MAX_ENGINE_BATCH), (3, MAX_FRAMES)):
            low, mid, high = (shapes[key][axis] for key in ("min", "opt", "max"))
            _need(low <= mid <= high <= most, "profile", f"rising, at most {most}", profile)
        field = info.receptive_field
        smallest, largest = shapes["min"], shapes["max"]
        reach = smallest[0] == 1 and smallest[3] <= field <= largest[3]
        _need(reach, "profile", f"open to 1 clip of {field} mel frames", profile)
        object.__setattr__(self, "profile", shapes)


def _need(condition: bool, key: str, expected: str, value: Any) -> None:
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise EngineError(f"{key} must be {expected}, not {shown}.", fix=REBUILD)


def _match(pattern: re.Pattern[str], key: str, expected: str, value: Any) -> None:
    fits = isinstance(value, str) and pattern.fullmatch(value) is not None
    _need(fits, key, expected, value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
