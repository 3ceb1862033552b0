"""A TensorRT engine without ONNX Runtime's provider: the bindings and libcudart, no more.

No GPU has run this yet: tests drive it with fakes of libcudart and of the bindings, and the names
that it uses are compared with the real bindings; see docs/JETPACK.md.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import hashlib
import importlib
import json
import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.backends import ON_GPU, Head, check_model, check_threads, read_model
from frami_edge_runtime.errors import BackendError, EngineError, ModelFileError
from frami_edge_runtime.modelfile import (
    HEAD_KEY,
    MAX_FRAMES,
    MAX_HEAD_BYTES,
    TRUNK_INPUT,
    TRUNK_OUTPUT,
    ModelInfo,
    parse_object,
    read_head,
    same_keys,
)
from frami_edge_runtime.state import reason, write_whole

# --- What is known about a TensorRT engine: a model's description, and what it was built with

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


# --- What lies beside a TensorRT engine, and whether the engine can be loaded here
# An engine (a *plan*) is opaque and tied to one TensorRT version, one GPU architecture and one
# platform. So `frami-edge export --tensorrt` writes a sidecar, ``student.int8.engine`` +
# ``student.int8.engine.json``: an `EngineCard` with the model's own description, which an engine has
# no place for, and what the engine was built with, so that a wrong one is refused in plain words
# before TensorRT sees it. The sidecar guards against mix-ups, not against malice: an engine is code,
# so load only those that you built.
#
# The plan's header, as ``trtexec --getPlanVersionOnly`` reads it (NVIDIA/TensorRT,
# samples/common/sampleEngines.cpp, printPlanVersion): bytes 0..3 are ``ftrt``, 4..7 the header's
# version 0, and 24..27 the TensorRT version, one byte a part.


def sidecar_path(engine_path: str | os.PathLike[str]) -> Path:
    """``student.int8.engine`` -> ``student.int8.engine.json``."""
    path = Path(engine_path)
    return path.with_name(path.name + ".json")


def write_sidecar(engine_path: str | os.PathLike[str], card: EngineCard) -> Path:
    """Write the card beside the engine, whole or not at all; gives the sidecar's path.

    Raises:
        EngineError: The folder cannot be written to.
    """
    target = sidecar_path(engine_path)
    try:
        write_whole(target, lambda file: file.write(card.to_json().encode()))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"Cannot write {target}: {reason(error)}.", fix="Give a folder with space and access."
        ) from None
    return target


def read_sidecar(engine_path: str | os.PathLike[str]) -> EngineCard:
    """The card beside an engine.

    Raises:
        EngineError: There is none, or it is damaged.
    """
    path = sidecar_path(engine_path)
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            raise EngineError(f"{path} is larger than {MAX_SIDECAR_BYTES} bytes.", fix=REBUILD)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EngineError(
            f"{Path(engine_path).name} has no {path.name} beside it: an engine alone does not say "
            "what it hears.",
            fix="Copy both files of frami-edge export --tensorrt, or rebuild.",
        ) from None
    except (OSError, ValueError) as error:
        raise EngineError(f"Cannot read {path}: {reason(error)}.", fix=REBUILD) from None
    return EngineCard.from_json(text, path.name)


def read_plan_version(plan: str | os.PathLike[str] | bytes) -> tuple[int, int, int, int]:
    """The TensorRT version that built a plan, out of its first 28 bytes.

    Args:
        plan: Path of an engine file, or its bytes.

    Raises:
        EngineError: It cannot be read, is truncated, or is no TensorRT plan.
    """
    if isinstance(plan, bytes):
        name, head = "engine bytes", plan[:PLAN_HEADER_BYTES]
    else:
        name = Path(plan).name
        try:
            with open(plan, "rb") as file:
                head = file.read(PLAN_HEADER_BYTES)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"Cannot read the engine {plan}: {reason(error)}.",
                fix="Give the path of an .engine file that frami-edge export --tensorrt wrote.",
            ) from None
    if head[:4] != b"ftrt"[: len(head)] or not head:
        raise EngineError(
            f"{name} is no TensorRT engine: it does not start with 'ftrt'.",
            fix="Give an .engine file of frami-edge export --tensorrt; other tools prepend data.",
        )
    if len(head) < PLAN_HEADER_BYTES:
        raise EngineError(f"{name} is cut off after {len(head)} bytes.", fix=REBUILD)
    if head[4:8] != b"\0\0\0\0":
        version = int.from_bytes(head[4:8], "little")
        raise EngineError(f"{name} has an unknown plan header, version {version}.", fix=REBUILD)
    return head[24], head[25], head[26], head[27]


def check_content(card: EngineCard, plan: bytes, name: str = "The engine") -> None:
    """Check that a plan is the one that its card describes.

    Raises:
        EngineError: It is truncated, damaged or another one.
    """
    if len(plan) != card.engine_bytes:
        raise EngineError(
            f"{name} has {len(plan)} bytes, its sidecar says {card.engine_bytes}: it was cut off "
            "or replaced.",
            fix="Copy both files again, or rebuild: frami-edge export --tensorrt.",
        )
    if hashlib.sha256(plan).hexdigest() != card.engine_sha256:
        raise EngineError(
            f"{name} is not the engine that its sidecar describes: the sha256 differs.",
            fix="Copy both files again, or rebuild: frami-edge export --tensorrt.",
        )


def check_loadable(
    card: EngineCard,
    plan_version: tuple[int, int, int, int],
    running_tensorrt_version: str,
    running_sm: str,
    name: str = "The engine",
) -> None:
    """Check that this machine can load an engine: same TensorRT release, same architecture.

    `EngineCard.compat` widens one of the two. The fourth part of the version is not compared:
    system packages of TensorRT do not tell it.

    Args:
        card: The engine's sidecar.
        plan_version: From `read_plan_version`.
        running_tensorrt_version: ``tensorrt.__version__``, such as ``10.3.0`` or ``10.3.0.30``.
        running_sm: Compute capability of this machine's GPU, such as ``8.7``.
        name: The engine's file name, for the message.

    Raises:
        EngineError: It cannot; the message names both sides.
    """
    built = ".".join(map(str, plan_version))
    if built != card.tensorrt:
        raise EngineError(
            f"{name} was built with TensorRT {built}, its sidecar says {card.tensorrt}: they are "
            "not of one build.",
            fix="Copy both files again, or rebuild: frami-edge export --tensorrt.",
        )
    running = tuple(int(n) for n in running_tensorrt_version.split(".")[:3] if n.isdigit())
    release = running == plan_version[:3]
    if card.compat == "version":
        release = release or (running[:1] == plan_version[:1] and running > plan_version[:3])
    architecture = running_sm == card.sm
    if card.compat == "ampere+":
        architecture = architecture or min(_sm(running_sm), _sm(card.sm)) >= (8, 0)
    if not release or not architecture:
        gpu = f" ({card.gpu})" if card.gpu else ""
        raise EngineError(
            f"{name} was built with TensorRT {built} for SM {card.sm}{gpu}; this machine runs "
            f"TensorRT {running_tensorrt_version} on SM {running_sm}: engines do not carry over.",
            fix=f"Rebuild it here from {card.onnx_name}: frami-edge export --tensorrt.",
        )


def _sm(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(".") if n.isdigit())


# --- The dozen CUDA runtime calls that an engine needs, through ctypes: no pycuda, no torch
# Signatures: CUDA Runtime API, modules Memory, Stream, Device and Error Handling; all of them are the
# same in CUDA 12 and 13. Only a call's returned code tells that it failed, so every one is checked.

TO_DEVICE: Final = 1
TO_HOST: Final = 2
_MAJOR: Final = 75
"""cudaDevAttrComputeCapabilityMajor; the minor is next."""
_LIBRARIES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_FOLDERS: Final = (
    "/usr/local/cuda/lib64",
    *(os.path.join(path, "nvidia", "*", "lib") for path in sys.path if path),  # pip's CUDA
)
_HANDLE = ctypes.c_void_p
_OUT = ctypes.POINTER(ctypes.c_void_p)
_INT_OUT = ctypes.POINTER(ctypes.c_int)
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cudaGetDeviceCount": (_INT_OUT,),
    "cudaDeviceGetAttribute": (_INT_OUT, ctypes.c_int, ctypes.c_int),
    "cudaMalloc": (_OUT, ctypes.c_size_t),
    "cudaFree": (_HANDLE,),
    "cudaHostAlloc": (_OUT, ctypes.c_size_t, ctypes.c_uint),
    "cudaFreeHost": (_HANDLE,),
    "cudaMemcpyAsync": (_HANDLE, _HANDLE, ctypes.c_size_t, ctypes.c_int, _HANDLE),
    "cudaStreamCreate": (_OUT,),
    "cudaStreamSynchronize": (_HANDLE,),
    "cudaStreamDestroy": (_HANDLE,),
}


class Cudart:
    """A loaded CUDA runtime with at least one GPU; calls work on device 0.

    Args:
        path: Of a libcudart; None searches where JetPack, CUDA's packages and pip put it.

    Raises:
        BackendError: There is no CUDA runtime, or no GPU that it can use.
    """

    def __init__(self, path: str | None = None) -> None:
        """Load the library and count the GPUs."""
        refusals = []
        for candidate in [path] if path else _candidates():
            try:
                self._library = _load(candidate)
                count = ctypes.c_int()
                self._call("cudaGetDeviceCount", ctypes.byref(count))
            except OSError:
                continue  # it is not there
            except AttributeError as error:
                refusals.append(str(error))
            except EngineError as error:
                # A newer libcudart than the driver says so; an older one may fit.
                refusals.append(f"{candidate}: {error.message.rstrip('.')}")
            else:
                if count.value > 0:
                    return
                refusals.append(f"{candidate}: it counts no GPU")
        reason = refusals[0] if refusals else f"{path or 'libcudart'} is not installed"
        raise BackendError(
            f"No usable CUDA runtime: {reason}.",
            fix="On a Jetson install nvidia-jetpack, elsewhere CUDA 12 or 13 and its driver; or "
            "run the .onnx file with backend='cpu'.",
        )

    def sm(self) -> str:
        """Compute capability of the GPU: ``8.7`` is Orin, ``11.0`` Thor."""
        values = []
        for attribute in (_MAJOR, _MAJOR + 1):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            values.append(value.value)
        return f"{values[0]}.{values[1]}"

    def malloc(self, size: int) -> int:
        """``size`` bytes on the device."""
        return self._make("cudaMalloc", size)

    def free(self, pointer: int) -> None:
        """Free what `malloc` gave."""
        self._call("cudaFree", pointer)

    def host_alloc(self, size: int) -> int:
        """``size`` bytes of page-locked host memory, which copies need to be asynchronous."""
        return self._make("cudaHostAlloc", size, 0)

    def free_host(self, pointer: int) -> None:
        """Free what `host_alloc` gave."""
        self._call("cudaFreeHost", pointer)

    def copy(self, target: int, source: int, size: int, direction: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes, `TO_DEVICE` or `TO_HOST`."""
        self._call("cudaMemcpyAsync", target, source, size, direction, stream)

    def stream(self) -> int:
        """A new stream."""
        return self._make("cudaStreamCreate")

    def synchronise(self, stream: int) -> None:
        """Wait for all that was queued."""
        self._call("cudaStreamSynchronize", stream)

    def destroy(self, stream: int) -> None:
        """End a stream."""
        self._call("cudaStreamDestroy", stream)

    def _make(self, name: str, *args: Any) -> int:
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *args)
        return made.value or 0

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self._library, name)(*args)
        if code:
            label, said = self._library.cudaGetErrorName(code), _text(self._library, code)
            shown = [a for a in args if isinstance(a, int)] if name.endswith("lloc") else []
            size = f" of {shown[0]} bytes" if shown else ""
            raise EngineError(
                f"{name}{size} failed: {(label or b'unknown').decode(errors='replace')} "
                f"({code}), {said.rstrip('.')}.",
                fix="Free GPU memory, or restart the process; nvidia-smi shows the driver.",
            )


def _candidates() -> list[str]:
    found = [*_LIBRARIES]
    for folder in _FOLDERS:
        found += sorted(glob.glob(os.path.join(folder, "libcudart.so*")), reverse=True)
    return found


def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    for name in ("cudaGetErrorName", "cudaGetErrorString"):
        function = getattr(library, name)
        function.argtypes, function.restype = (ctypes.c_int,), ctypes.c_char_p
    return library


def _text(library: ctypes.CDLL, code: int) -> str:
    said: bytes | None = library.cudaGetErrorString(code)
    return (said or b"no description").decode(errors="replace")


# --- One deserialised TensorRT engine with its buffers: shapes in, bytes out
# Only API that TensorRT 10.3 to 11.4 all have is used. All buffers are allocated once, at the
# profile's maximum, and serve every shape.
#
# Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames.

_FLOAT32: Final = 4


class EngineRunner:
    """Runs a plan that was checked to fit this machine.

    Args:
        trt: The ``tensorrt`` module.
        cudart: Of the same process.
        plan: The engine file's bytes.
        card: What the sidecar says about it.
        name: The engine's file name, for messages.

    Raises:
        EngineError: TensorRT does not take it, it is not what its card says, or memory is short.
        BackendError: There is no usable driver.
    """

    def __init__(self, trt: Any, cudart: Cudart, plan: bytes, card: EngineCard, name: str) -> None:
        """Deserialise, check names and shapes, allocate."""
        self._trt, self._cudart, self._card, self._name = trt, cudart, card, name
        self._lock = threading.Lock()
        self._open = True
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._device: list[int] = []
        self._host: list[int] = []
        self._arrays: list[npt.NDArray[np.float32]] = []
        self._stream = 0
        self._shape: tuple[int, ...] = ()
        self._frames_shape = (0, 0, 0)
        try:
            self._load(plan)
            self._check_ports()
            self._allocate()
        except BaseException:
            self.close()
            raise

    def run(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, 1, M, T) float32 within the profile to (B, C, T') float32; calls wait in line.

        Raises:
            EngineError: The shape is outside the profile, the engine failed, or it was closed.
        """
        with self._lock:
            if not self._open:
                raise EngineError(f"{self._name} was closed.", fix="Load it again.")
            if mel_BMT.shape != self._shape:
                self._set_shape(mel_BMT.shape)
            mel_in, frames_out = self._arrays
            frames_BCT = frames_out[: int(np.prod(self._frames_shape))].reshape(self._frames_shape)
            np.copyto(mel_in[: mel_BMT.size].reshape(mel_BMT.shape), mel_BMT)
            with self._named():
                self._transfer_and_run(mel_BMT.size * _FLOAT32, frames_BCT.nbytes)
            return frames_BCT.copy()

    def close(self) -> None:
        """Free the GPU's memory; calling it twice is allowed."""
        with self._lock:
            self._open = False
            self._shape, self._arrays = (), []
            # Each needs the one after it to be alive.
            self._context = None
            self._engine = None
            self._runtime = None
            streams = [self._stream] if self._stream else []
            self._stream = 0
            # A GPU that failed refuses these calls too; its memory then goes with the process.
            for free, handles in (
                (self._cudart.destroy, streams),
                (self._cudart.free, self._device),
                (self._cudart.free_host, self._host),
            ):
                while handles:
                    with contextlib.suppress(EngineError):
                        free(handles.pop())

    def _load(self, plan: bytes) -> None:
        trt = self._trt
        self._log = _log_into(trt)
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError:  # pybind11::init(): factory function returned nullptr
            raise BackendError(
                "TensorRT could not start: no usable NVIDIA driver or GPU.",
                fix="Check nvidia-smi, on a Jetson the JetPack version; or run the .onnx file "
                "with backend='cpu'.",
            ) from None
        if self._card.compat == "version":
            # Such a plan carries the code that runs it, and TensorRT wants to be told.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._failed("TensorRT could not load it")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed("TensorRT made no execution context, for want of memory or driver")

    def _check_ports(self) -> None:
        engine, card = self._engine, self._card
        ports = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        float32 = self._trt.DataType.FLOAT
        named = ports == {TRUNK_INPUT, TRUNK_OUTPUT}
        if not named or any(engine.get_tensor_dtype(port) != float32 for port in ports):
            raise EngineError(
                f"{self._name} has {', '.join(sorted(ports))[:200]}; wanted are {TRUNK_INPUT} and "
                f"{TRUNK_OUTPUT}, both float32.",
                fix=REBUILD,
            )
        shapes = engine.get_tensor_profile_shape(TRUNK_INPUT, 0)
        for key, shape in zip(("min", "opt", "max"), shapes, strict=True):
            if tuple(shape) != card.profile[key]:
                raise EngineError(
                    f"{self._name} was built for {key} {tuple(shape)}, its sidecar says "
                    f"{card.profile[key]}.",
                    fix=REBUILD,
                )

    def _allocate(self) -> None:
        largest = self._card.profile["max"]
        sizes = {
            TRUNK_INPUT: int(np.prod(largest)),
            TRUNK_OUTPUT: int(np.prod(self._output_of(largest))),
        }
        with self._named():
            self._stream = self._cudart.stream()
            for name, size in sizes.items():
                self._device.append(self._cudart.malloc(size * _FLOAT32))
                self._host.append(self._cudart.host_alloc(size * _FLOAT32))
                memory = (ctypes.c_float * size).from_address(self._host[-1])
                self._arrays.append(np.ctypeslib.as_array(memory))
                if not self._context.set_tensor_address(name, self._device[-1]):
                    raise self._failed(f"TensorRT refused the buffer of {name}")

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        low, high = self._card.profile["min"], self._card.profile["max"]
        within = len(shape) == 4 and all(
            a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
        )
        if not within or shape[3] < self._card.info.receptive_field:
            raise EngineError(
                f"{self._name}: {shape} is outside the profile that it was built for, {low} to "
                f"{high}.",
                fix="Push shorter runs or fewer streams, or build it with a larger profile.",
            )
        self._shape = ()
        if not self._context.set_input_shape(TRUNK_INPUT, shape):
            raise self._failed(f"TensorRT refused the shape {shape}")
        expected = self._output_of(shape)
        given = tuple(self._context.get_tensor_shape(TRUNK_OUTPUT))
        if given != expected:
            raise EngineError(
                f"{self._name} turns {shape} into {given}; its sidecar says {expected}.",
                fix=REBUILD,
            )
        self._shape, self._frames_shape = shape, expected

    def _output_of(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        info = self._card.info
        return shape[0], info.channels, (shape[3] - info.receptive_field) // info.stride + 1

    def _transfer_and_run(self, in_bytes: int, out_bytes: int) -> None:
        cudart, stream = self._cudart, self._stream
        cudart.copy(self._device[0], self._host[0], in_bytes, TO_DEVICE, stream)
        if not self._context.execute_async_v3(stream):
            raise self._failed("TensorRT could not run it")
        cudart.copy(self._host[1], self._device[1], out_bytes, TO_HOST, stream)
        cudart.synchronise(stream)

    @contextlib.contextmanager
    def _named(self) -> Any:
        """Put the engine's name before what a CUDA call says."""
        try:
            yield
        except EngineError as error:
            if error.message.startswith(self._name):
                raise
            raise EngineError(f"{self._name}: {error.message}", fix=error.fix) from None

    def _failed(self, what: str) -> EngineError:
        said = self._log.said()
        return EngineError(f"{self._name}: {what}{f': {said}' if said else ''}.", fix=REBUILD)


def _log_into(trt: Any) -> Any:
    """A TensorRT logger that keeps the last errors, to be told in ours, and prints nothing."""
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]  # the bindings are not there to be checked
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                self._errors = [*self._errors[-2:], message.strip()]

        def said(self) -> str:
            return "; ".join(self._errors)[:400].rstrip(".")

    return Log()


# --- A TensorRT engine without ONNX Runtime's provider: the bindings and libcudart, no more


class EngineModel:
    """An engine file with its sidecar, on GPU 0.

    Any thread may call it: runs wait for each other, since they share their buffers.

    Args:
        path: The engine file; its sidecar lies beside it.
        threads: CPU threads of the head.

    Raises:
        EngineError: The engine or its sidecar is missing, damaged, or built for another machine.
        BackendError: TensorRT, CUDA or a GPU is missing here.
    """

    kind = "tensorrt"

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        """Check the files, then the machine; only then load, allocate and probe."""
        check_threads(threads)
        if isinstance(path, bytes):
            raise EngineError(
                "An engine cannot be given as bytes: what it hears is said in its sidecar.",
                fix="Pass the path of the .engine file, its .engine.json beside it.",
            )
        self.name = Path(path).name
        plan_version = read_plan_version(path)
        self.card = card = read_sidecar(path)
        _, plan = read_model(path)
        check_content(card, plan, self.name)
        self.info = card.info
        self.sha256 = card.engine_sha256
        self.max_batch, _, _, self.max_mel_frames = card.profile["max"]
        trt, cudart = _import_tensorrt(), Cudart()
        check_loadable(card, plan_version, trt.__version__, cudart.sm(), self.name)
        self._head = Head(card.head, self.info, threads, self.name)
        self._runner = EngineRunner(trt, cudart, plan, card, self.name)
        try:
            check_model(self, ON_GPU[card.precision])
        except BaseException:
            self.close()
            raise

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32.

        Raises:
            EngineError: The shape is outside the profile, the engine failed, or it was closed.
        """
        return self._runner.run(mel_BMT)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head on the CPU: (B, D) float32 to (B, K) float32."""
        return self._head.logits(pooled_BD)

    def close(self) -> None:
        """Free the GPU's memory; the model cannot be run any more."""
        self._runner.close()

    def __del__(self) -> None:
        """Free what nobody closed."""
        if hasattr(self, "_runner"):
            self.close()


def _import_tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendError(
            f"backend='tensorrt' needs TensorRT's Python bindings: {error}.",
            fix="On a Jetson they come with JetPack: make the venv with --system-site-packages and "
            "never pip install tensorrt there. Elsewhere install NVIDIA's tensorrt package.",
        ) from None
