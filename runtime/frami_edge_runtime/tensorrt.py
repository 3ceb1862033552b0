"""TensorRT engines on a device: the sidecar, the version check, and the runner.

An engine (a *plan*) is opaque and tied to one TensorRT release and one GPU architecture. So
`frami-edge export --tensorrt` writes a sidecar beside it, ``student.int8.engine.json``: an
`EngineCard` with the model's description, for which an engine has no place, and with the machine
that built it, so that a wrong one is refused before TensorRT reads it. The sidecar guards against
mix-ups, not against malice: an engine is code, so load only those that you built.

No GPU has run this yet. The tests check every name against NVIDIA's real bindings of TensorRT 10.3
to 11.4, the files and the refusals; see docs/JETPACK.md.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2C, K classes.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.backends import ON_GPU, HeadSession, check_model, read_model
from frami_edge_runtime.errors import BackendError, EngineError, ModelFileError
from frami_edge_runtime.modelfile import (
    HEAD_KEY,
    TRUNK_INPUT,
    TRUNK_OUTPUT,
    ModelInfo,
    parse_object,
    read_head,
    same_keys,
)
from frami_edge_runtime.state import reason, write_whole

SCHEMA: Final = 1
REBUILD: Final = "Rebuild it on this machine: frami-edge export --tensorrt."
COPY_BOTH: Final = "Copy both files again, or rebuild: frami-edge export --tensorrt."
PLAN_HEADER_BYTES: Final = 28
_PATTERNS: Final = {
    "engine_sha256": "[0-9a-f]{64}",
    "onnx_name": r"[^/\\\0]{1,256}",
    "onnx_sha256": "[0-9a-f]{64}",
    "tensorrt": r"\d{1,3}(\.\d{1,3}){3}",
    "precision": "fp32|fp16|int8",
    "sm": r"\d{1,2}\.\d",
    "gpu": ".{0,256}",
    "driver": ".{0,256}",
    "model": r"(?s:.+)",
    "head_onnx": ".+",
    "created": ".{0,64}",
}

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class EngineCard:
    """Contents of an engine's sidecar; one JSON object.

    Raises:
        EngineError: A value has the wrong type or form, or the profile does not fit the model.
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
    profile: Mapping[str, Shape]
    """``min``, ``opt`` and ``max`` shape (B, 1, M, T) of the input."""
    model: str
    """The `ModelInfo` as its JSON text, exactly as in the ONNX file."""
    head_onnx: str
    """The head's ONNX file in base64, exactly as in the ONNX file."""
    jetpack: str | None = None
    """L4T release of a Jetson, such as ``L4T 36.4.3``; None elsewhere."""
    layers: Mapping[str, int] | None = None
    """Number of layers per precision, as TensorRT's inspector counts them; None where unknown."""
    created: str = ""
    """ISO 8601."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check every field; shapes become tuples, so that equal files give equal cards."""
        wrong = [
            key
            for key, pattern in _PATTERNS.items()
            if not isinstance(value := getattr(self, key), str) or not re.fullmatch(pattern, value)
        ]
        layers = self.layers
        checks = {
            "schema": type(self.schema) is int and self.schema == SCHEMA,
            "engine_bytes": type(self.engine_bytes) is int
            and self.engine_bytes >= PLAN_HEADER_BYTES,
            "jetpack": self.jetpack is None or isinstance(self.jetpack, str),
            "layers": layers is None
            or (isinstance(layers, Mapping) and all(type(n) is int for n in layers.values())),
        }
        wrong += [key for key, holds in checks.items() if not holds]
        if wrong:
            shown = repr(getattr(self, wrong[0]))[:80]
            raise EngineError(f"{wrong[0]} is damaged: {shown}.", fix=REBUILD)
        try:
            read_head({HEAD_KEY: self.head_onnx})
            info = ModelInfo.from_json(self.model)
        except ModelFileError as error:
            raise EngineError(error.message, fix=error.fix) from None
        object.__setattr__(self, "_info", info)
        object.__setattr__(self, "profile", self._checked_profile(info))

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
        return (
            json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1, allow_nan=False) + "\n"
        )

    @classmethod
    def from_json(cls, text: str, where: str = "The engine's sidecar") -> EngineCard:
        """Read the result of `to_json`; unknown and missing keys are refused.

        Raises:
            EngineError: The text is not such an object, or has another schema; ``where`` names it.
        """
        try:
            values = parse_object(text, where)
            if values.get("schema", SCHEMA) != SCHEMA:
                raise EngineError(
                    f"Its schema is {values['schema']}; this runtime reads schema {SCHEMA}.",
                    fix="Upgrade it: pip install -U frami-edge-runtime; or rebuild the engine.",
                )
            same_keys(values, {f.name for f in dataclasses.fields(cls)}, where)
            return cls(**values)
        except ModelFileError as error:  # EngineError is one
            ours = isinstance(error, EngineError)
            message = f"{where}: {error.message}" if ours else error.message
            raise EngineError(message, fix=error.fix if ours else REBUILD) from None

    def _checked_profile(self, info: ModelInfo) -> dict[str, Shape]:
        """The profile, rising from one clip of a receptive field in each axis."""
        field = info.receptive_field
        try:
            low, mid, high = (tuple(self.profile[key]) for key in ("min", "opt", "max"))
            whole = all(type(n) is int for n in (*low, *mid, *high))
            rising = all(1 <= a <= b <= c for a, b, c in zip(low, mid, high, strict=True))
            fixed = {(1, info.mel.n_mels)} == {low[1:3], mid[1:3], high[1:3]}
            fits = len(low) == 4 and len(self.profile) == 3 and whole and rising and fixed
            fits = fits and low[0] == 1 and low[3] <= field <= high[3]
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise EngineError(
                f"profile is {str(self.profile)[:200]}, which does not rise from 1 clip of "
                f"{info.mel.n_mels} bands and {field} mel frames.",
                fix=REBUILD,
            )
        return {"min": low, "opt": mid, "max": high}  # type: ignore[dict-item]  # checked above


def sidecar_path(engine_path: str | os.PathLike[str]) -> Path:
    """``student.int8.engine`` -> ``student.int8.engine.json``."""
    path = Path(engine_path)
    return path.with_name(path.name + ".json")


def write_sidecar(engine_path: str | os.PathLike[str], card: EngineCard) -> Path:
    """Write the card beside the engine, whole or not at all, and return its path.

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
    """Read the card beside an engine.

    Raises:
        EngineError: There is none, or it is damaged.
    """
    path = sidecar_path(engine_path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EngineError(
            f"{Path(engine_path).name} has no {path.name} beside it: an engine alone does not "
            "describe its input and its classes.",
            fix="Copy both files of frami-edge export --tensorrt, or rebuild.",
        ) from None
    except (OSError, ValueError) as error:
        raise EngineError(f"Cannot read {path}: {reason(error)}.", fix=REBUILD) from None
    return EngineCard.from_json(text, path.name)


def read_plan_version(plan: str | os.PathLike[str] | bytes) -> tuple[int, int, int, int]:
    """The TensorRT version that built a plan, from its first 28 bytes.

    Bytes 0..3 are ``ftrt``, 4..7 the header's version 0, and 24..27 the TensorRT version.
    Source: printPlanVersion in samples/common/sampleEngines.cpp of NVIDIA/TensorRT.

    Args:
        plan: Path of an engine file, or its bytes.

    Raises:
        EngineError: It cannot be read, is truncated, or is not a TensorRT plan.
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
    if len(head) < PLAN_HEADER_BYTES or head[:8] != b"ftrt\0\0\0\0":
        raise EngineError(
            f"{name} is no TensorRT engine: it does not start with the {PLAN_HEADER_BYTES} bytes "
            "of a plan's header.",
            fix="Give a whole .engine file of frami-edge export --tensorrt; others prepend data.",
        )
    return head[24], head[25], head[26], head[27]


def check_content(card: EngineCard, plan: bytes, name: str = "The engine") -> None:
    """Check that a plan is the one that its card describes.

    Raises:
        EngineError: It is truncated, damaged or another one.
    """
    if len(plan) != card.engine_bytes or hashlib.sha256(plan).hexdigest() != card.engine_sha256:
        raise EngineError(
            f"{name} is not the engine that its sidecar describes: it was cut off or replaced "
            f"({len(plan)} bytes for {card.engine_bytes}, or another sha256).",
            fix=COPY_BOTH,
        )


def check_loadable(
    card: EngineCard,
    plan_version: tuple[int, int, int, int],
    running_tensorrt_version: str,
    running_sm: str,
    name: str = "The engine",
) -> None:
    """Check that this machine can load an engine: same TensorRT release, same architecture.

    The fourth part of the version is not compared: TensorRT's system packages do not report it.

    Args:
        card: The engine's sidecar.
        plan_version: Result of `read_plan_version`.
        running_tensorrt_version: ``tensorrt.__version__``, such as ``10.3.0`` or ``10.3.0.30``.
        running_sm: Compute capability of this machine's GPU, such as ``8.7``.
        name: The engine's file name, for the message.

    Raises:
        EngineError: It cannot; the message names both sides.
    """
    built = ".".join(map(str, plan_version))
    if built != card.tensorrt:
        raise EngineError(
            f"{name} was built with TensorRT {built}, its sidecar names {card.tensorrt}: they are "
            "not of one build.",
            fix=COPY_BOTH,
        )
    if running_tensorrt_version.split(".")[:3] != built.split(".")[:3] or running_sm != card.sm:
        gpu = f" ({card.gpu})" if card.gpu else ""
        raise EngineError(
            f"{name} was built with TensorRT {built} for SM {card.sm}{gpu}; this machine runs "
            f"TensorRT {running_tensorrt_version} on SM {running_sm}: engines do not carry over.",
            fix=f"Rebuild it here from {card.onnx_name}: frami-edge export --tensorrt.",
        )


def import_tensorrt() -> Any:
    """The ``tensorrt`` module.

    Raises:
        BackendError: It is not installed, or its libraries cannot be loaded.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"TensorRT's Python bindings cannot be imported: {error}.",
            fix="On a Jetson they come with JetPack: make the venv with --system-site-packages and "
            "never pip install tensorrt there. On a PC with an NVIDIA GPU: pip install "
            "'frami-edge-export[tensorrt]'.",
        ) from None


def make_logger(trt: Any) -> Any:
    """A ``trt.ILogger`` that prints nothing; ``last()`` returns its last errors or warnings."""

    class Recorder(trt.ILogger):  # type: ignore[misc]  # the bindings are not there to be checked
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: dict[int, list[str]] = {}

        def log(self, severity: Any, message: str) -> None:
            """TensorRT calls this from any thread; it must not raise."""
            level = int(severity)  # INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4
            if level <= int(trt.ILogger.Severity.WARNING):
                line = " ".join(str(message).split())
                self.kept[level] = [*self.kept.get(level, [])[-5:], line]

        def last(self) -> str:
            """One line, at most 400 characters."""
            errors = self.kept.get(0, []) + self.kept.get(1, [])
            return " | ".join(errors or self.kept.get(2, []))[-400:] or "it gave no reason"

    return Recorder()


def create(factory: Any, *args: Any) -> Any:
    """Call a constructor of the bindings.

    Raises:
        BackendError: CUDA cannot be initialised; the bindings then raise TypeError, "factory
            function returned nullptr" (NVIDIA/TensorRT#308, #2913).
    """
    try:
        return factory(*args)
    except TypeError as error:
        raise BackendError(
            f"TensorRT found no usable NVIDIA driver or GPU ({error}).",
            fix="Check nvidia-smi (on a PC) or that the user is in the groups video and render (on "
            "a Jetson); start a container with --gpus all or --runtime nvidia. The .onnx file runs "
            "with backend='cpu'.",
        ) from None


_LIBRARIES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_FOLDERS: Final = (
    "/usr/local/cuda/lib64",
    *(os.path.join(path, "nvidia", "*", "lib") for path in sys.path if path),  # pip's CUDA
)
_COMPUTE_CAPABILITY: Final = (75, 76)
"""cudaDevAttrComputeCapabilityMajor and Minor."""
_TO_DEVICE, _TO_HOST = 1, 2
_HANDLE, _OUT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
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
"""CUDA Runtime API, the same in CUDA 12 and 13."""


class Cudart:
    """The CUDA runtime through ctypes, with at least one GPU; calls work on device 0.

    Raises:
        BackendError: There is no CUDA runtime, or no GPU that it can use.
    """

    def __init__(self) -> None:
        """Load the first library that counts a GPU, where JetPack, CUDA and pip put it."""
        refusals = []
        found = [path for f in _FOLDERS for path in sorted(glob.glob(f"{f}/libcudart.so*"))[::-1]]
        for candidate in [*_LIBRARIES, *found]:
            try:
                self._library = ctypes.CDLL(candidate)
                for name, arguments in _SIGNATURES.items():
                    getattr(self._library, name).argtypes = arguments
                self._library.cudaGetErrorString.restype = ctypes.c_char_p
                count = ctypes.c_int()
                self.call("cudaGetDeviceCount", ctypes.byref(count))
            except OSError:
                continue  # it is not there
            except (AttributeError, EngineError) as error:
                # A newer libcudart than the driver fails; an older one may fit.
                refusals.append(f"{candidate}: {error}")
            else:
                if count.value > 0:
                    return
                refusals.append(f"{candidate}: it counts no GPU")
        raise BackendError(
            f"No usable CUDA runtime: {refusals[0] if refusals else 'libcudart is not installed'}.",
            fix="On a Jetson install nvidia-jetpack, elsewhere CUDA 12 or 13 and its driver; or "
            "run the .onnx file with backend='cpu'.",
        )

    def sm(self) -> str:
        """Compute capability of the GPU: ``8.7`` is Orin, ``11.0`` Thor."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        for value, attribute in zip((major, minor), _COMPUTE_CAPABILITY, strict=True):
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
        return f"{major.value}.{minor.value}"

    def make(self, name: str, *args: int) -> int:
        """Call a function whose first argument receives a handle, and return the handle."""
        made = ctypes.c_void_p()
        self.call(name, ctypes.byref(made), *args)
        return made.value or 0

    def call(self, name: str, *args: Any) -> None:
        """Call a function and check its code.

        Raises:
            EngineError: It failed.
        """
        if code := getattr(self._library, name)(*args):
            text = (self._library.cudaGetErrorString(code) or b"").decode(errors="replace")
            raise EngineError(
                f"{name} failed with code {code}: {text.rstrip('.')}.",
                fix="Free GPU memory, or restart the process; nvidia-smi shows the driver.",
            )


class EngineModel:
    """An engine file with its sidecar, on GPU 0.

    Any thread may call it: runs wait for each other, since they share their buffers, which are
    allocated once at the profile's maximum. Only API that TensorRT 10.3 to 11.4 all have is used.

    Args:
        path: The engine file, with its sidecar beside it.
        threads: CPU threads of the head.

    Raises:
        EngineError: The engine or its sidecar is missing, damaged, or built for another machine.
        BackendError: TensorRT, CUDA or a GPU is missing here.
    """

    kind = "tensorrt"

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        """Check the files, then the machine; only then load, allocate and probe."""
        if isinstance(path, bytes):
            raise EngineError(
                "An engine cannot be given as bytes: its description is in its sidecar.",
                fix="Pass the path of the .engine file, with its .engine.json beside it.",
            )
        self.name = Path(path).name
        plan_version = read_plan_version(path)
        self.card = card = read_sidecar(path)
        _, plan = read_model(path)
        check_content(card, plan, self.name)
        self.info, self.sha256 = card.info, card.engine_sha256
        self.max_batch, _, _, self.max_mel_frames = card.profile["max"]
        self._trt, self._cudart = import_tensorrt(), Cudart()
        check_loadable(card, plan_version, self._trt.__version__, self._cudart.sm(), self.name)
        self._head = HeadSession(card.head, self.info, threads, self.name)
        self._lock = threading.Lock()
        self._shape: tuple[int, ...] = ()
        self._handles: list[tuple[str, int]] = []
        """CUDA's function that frees a handle, and the handle."""
        try:
            with self._named():
                self._load(plan)
            check_model(self, ON_GPU[card.precision])
        except BaseException:
            self.close()
            raise

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32 within the profile, to (B, C, T') float32.

        Raises:
            EngineError: The shape is outside the profile, the engine failed, or it was closed.
        """
        with self._lock, self._named():
            if not self._handles:
                raise EngineError("It was closed.", fix="Load it again.")
            if mel_BMT.shape != self._shape:
                self._set_shape(mel_BMT.shape)
            mel_in, frames_out = self._host
            shape = self._output_of(mel_BMT.shape)
            frames_BCT = frames_out[: int(np.prod(shape))].reshape(shape)
            np.copyto(mel_in[: mel_BMT.size].reshape(mel_BMT.shape), mel_BMT)
            cudart, stream, (mel_device, frames_device) = self._cudart, self._stream, self._device
            sent = (mel_device, mel_in.ctypes.data, mel_BMT.size * 4, _TO_DEVICE, stream)
            received = (frames_out.ctypes.data, frames_device, frames_BCT.nbytes, _TO_HOST, stream)
            cudart.call("cudaMemcpyAsync", *sent)
            if not self._context.execute_async_v3(stream):
                raise self._failed("could not run it")
            cudart.call("cudaMemcpyAsync", *received)
            cudart.call("cudaStreamSynchronize", stream)
            return frames_BCT.copy()

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head on the CPU: (B, D) float32 to (B, K) float32."""
        return self._head.logits(pooled_BD)

    def close(self) -> None:
        """Free the GPU's memory; a second call does nothing."""
        with self._lock:
            # Each needs the one after it to be alive.
            self._context: Any = None
            self._engine: Any = None
            self._runtime: Any = None
            while self._handles:
                free, handle = self._handles.pop()
                # A GPU that failed refuses these calls too; its memory is freed with the process.
                with contextlib.suppress(EngineError):
                    self._cudart.call(free, handle)

    def __del__(self) -> None:
        """Free what was not closed."""
        if hasattr(self, "_handles"):
            self.close()

    def _load(self, plan: bytes) -> None:
        trt, cudart, card = self._trt, self._cudart, self.card
        self._log = make_logger(trt)
        self._runtime = runtime = create(trt.Runtime, self._log)
        self._engine = engine = runtime.deserialize_cuda_engine(plan)
        self._context = context = None if engine is None else engine.create_execution_context()
        if context is None:
            raise self._failed("could not load it")
        ports = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        types = {engine.get_tensor_dtype(port) for port in ports}
        if ports != {TRUNK_INPUT, TRUNK_OUTPUT} or types != {trt.DataType.FLOAT}:
            raise EngineError(
                f"It does not map float32 {TRUNK_INPUT} to {TRUNK_OUTPUT}.", fix=REBUILD
            )
        shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(TRUNK_INPUT, 0)]
        if shapes != [card.profile[key] for key in ("min", "opt", "max")]:
            raise EngineError(
                f"It was built for {shapes}, not for its sidecar's profile.", fix=REBUILD
            )
        self._stream = cudart.make("cudaStreamCreate")
        self._handles.append(("cudaStreamDestroy", self._stream))
        self._device: list[int] = []
        self._host: list[npt.NDArray[np.float32]] = []
        largest = card.profile["max"]
        for port, shape in ((TRUNK_INPUT, largest), (TRUNK_OUTPUT, self._output_of(largest))):
            size = int(np.prod(shape))
            self._device.append(cudart.make("cudaMalloc", size * 4))
            self._handles.append(("cudaFree", self._device[-1]))
            # Page-locked, which copies need to be asynchronous.
            host = cudart.make("cudaHostAlloc", size * 4, 0)
            self._handles.append(("cudaFreeHost", host))
            self._host.append(np.ctypeslib.as_array((ctypes.c_float * size).from_address(host)))
            if not context.set_tensor_address(port, self._device[-1]):
                raise self._failed(f"refused the buffer of {port}")

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        low, high = self.card.profile["min"], self.card.profile["max"]
        inside = len(shape) == 4 and all(
            a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
        )
        if not inside or shape[3] < self.info.receptive_field:
            raise EngineError(
                f"{shape} is outside the profile that it was built for, {low} to {high}.",
                fix="Push shorter runs or fewer streams, or build it with a larger profile.",
            )
        self._shape = ()
        if not self._context.set_input_shape(TRUNK_INPUT, shape):
            raise self._failed(f"refused the shape {shape}")
        given = tuple(self._context.get_tensor_shape(TRUNK_OUTPUT))
        if given != self._output_of(shape):
            expected = self._output_of(shape)
            raise EngineError(f"It maps {shape} to {given}, not to {expected}.", fix=REBUILD)
        self._shape = shape

    def _output_of(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        info = self.info
        return shape[0], info.channels, (shape[3] - info.receptive_field) // info.stride + 1

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Put the engine's name before every error."""
        try:
            yield
        except EngineError as error:
            raise EngineError(f"{self.name}: {error.message}", fix=error.fix) from None

    def _failed(self, what: str) -> EngineError:
        return EngineError(f"TensorRT {what}: {self._log.last().rstrip('.')}.", fix=REBUILD)
