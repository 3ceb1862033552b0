"""What can run a model: ONNX Runtime on the CPU or a GPU here, a TensorRT engine in `tensorrt`.

No GPU has run this yet: tests drive the GPU providers with recorded sessions, see docs/JETPACK.md.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import BackendError, ModelFileError
from frami_edge_runtime.modelfile import (
    EXPORT_AGAIN,
    HEAD_INPUT,
    HEAD_KEY,
    HEAD_OUTPUT,
    METADATA_KEY,
    TRUNK_INPUT,
    TRUNK_OUTPUT,
    ModelInfo,
    read_head,
    read_model_info,
)
from frami_edge_runtime.state import reason

BACKENDS: Final = ("auto", "cpu", "cuda", "tensorrt-ep", "tensorrt")
PROVIDERS: Final = {"cuda": "CUDAExecutionProvider", "tensorrt-ep": "TensorrtExecutionProvider"}
UNBOUNDED: Final = 1 << 30
"""The limit that a backend without limits states."""
LONGEST_RUN: Final = 64
"""Most trunk frames of one run of a stream; bounds its memory."""
PROFILE_BATCH: Final = 32
"""Most streams that the TensorRT provider's engine takes in one run."""
EXACT: Final = 1e-3
"""Largest difference, absolute and relative, between runs of different lengths on a CPU; a trunk
that depends on more than its receptive field differs by 0.1 and more."""
ON_GPU: Final = {"fp32": 2e-3, "fp16": 2e-2, "int8": 1e-1}
"""The same on a GPU, whose kernels depend on the length; int8 rounds by whole steps."""

PORTABLE_FLAVOUR: Final = "S8S8 portable"
"""Flavour of an int8 file for ONNX Runtime and TensorRT alike."""
INTEGER_SINCE: Final = (1, 21)
"""ONNX Runtime that computes it in integers; 1.18 differed by 3e-3 on 3 of 256 clips."""

_PLAN_MAGIC: Final = b"ftrt"
_ENGINE_SUFFIXES: Final = (".engine", ".plan")
# A tensor with its data in another file: tag and length in protobuf, one or more bytes, and a key.
_REFERENCE: Final = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
_WORKSPACE_BYTES: Final = 256 << 20
_CPU: Final = "CPUExecutionProvider"
Source = str | os.PathLike[str] | bytes
Providers = Sequence[str | tuple[str, dict[str, str]]]


class Backend(Protocol):
    """A loaded model: its trunk, its head and their description.

    Any thread may call `frames` and `logits` at any time. Results belong to the caller: no later
    call changes them. Both raise a `ModelFileError` where the model cannot run on the shape, or
    fails.
    """

    kind: str
    """``cpu``, ``cuda``, ``tensorrt-ep`` or ``tensorrt``."""
    name: str
    """The model file's name, for messages."""
    info: ModelInfo
    """The description in the model file."""
    sha256: str
    """64 hex digits of the model file: a saved stream state belongs to them."""
    max_batch: int
    """Largest B of one call of `frames`, at least 1."""
    max_mel_frames: int
    """Largest T of one call of `frames`, at least the receptive field."""

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32."""
        ...

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head: (B, D) float32 to (B, K) float32; any B >= 1."""
        ...

    def close(self) -> None:
        """Free memory outside Python; calling it twice is allowed."""
        ...


def choose_backend(source: Source, backend: str = "auto") -> tuple[str, str]:
    """The backend's name, and the reason in one sentence.

    ``auto`` means TensorRT for an engine and the CPU for everything else: a student has 12 k to
    350 k parameters, a run takes 0.1 to 1 ms on one core, and a GPU spends about as much on copies
    and kernel launches alone. For many streams, or larger models, measure and choose.

    Raises:
        BackendError: It is unknown, or cannot run that kind of file.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"backend {backend!r} is unknown.", fix=f"Use one of {', '.join(BACKENDS)}."
        )
    engine = _is_engine(source)
    if backend != "auto" and engine != (backend == "tensorrt"):
        raise BackendError(
            f"backend={backend!r} cannot run {'a TensorRT engine' if engine else 'an ONNX file'}.",
            fix="Engines run on 'tensorrt' and are built on the device by frami-edge export "
            "--tensorrt; .onnx files run on the other backends.",
        )
    if backend != "auto":
        return backend, "it was asked for"
    if engine:
        return "tensorrt", "the model is a TensorRT engine"
    return "cpu", "below a million parameters one CPU core beats a GPU's launch latency"


def open_backend(source: Source, backend: str = "auto", *, threads: int = 1) -> Backend:
    """Load a model into the backend that `choose_backend` names.

    Args:
        source: Path of an ``.onnx`` or ``.engine`` file, or the bytes of an ONNX file.
        backend: One of `BACKENDS`.
        threads: CPU threads of one run; small models gain nothing from more than one.

    Raises:
        ModelFileError: The file is missing, damaged, of another schema, or not such a model.
        EngineError: The same for an engine, or it was built for another machine.
        BackendError: The backend is unknown, not installed, or has no device here.
    """
    kind, _ = choose_backend(source, backend)
    if kind == "tensorrt":
        # Imported here: only an engine needs it.
        from frami_edge_runtime.tensorrt import EngineModel

        return EngineModel(source, threads=threads)  # type: ignore[arg-type]  # it refuses bytes
    return OrtModel(source, kind=kind, threads=threads)


class OrtModel:
    """A model file in ONNX Runtime: on the CPU, or on a GPU through one of its providers.

    Args:
        source: Path of a model file, or its bytes.
        kind: ``cpu``, ``cuda`` or ``tensorrt-ep``.
        threads: CPU threads of one run.

    Raises:
        ModelFileError: Not a model file, or one that contradicts its metadata.
        BackendError: The provider is not installed, or did not take the model.
    """

    def __init__(self, source: Source, *, kind: str = "cpu", threads: int = 1) -> None:
        """Load, check names and shapes, then check values on a probe."""
        self.kind = kind
        self.name, data = read_model(source)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.max_batch = self.max_mel_frames = UNBOUNDED
        try:
            self._open(data, threads)
        except UnicodeDecodeError as error:  # from every name that ONNX Runtime gives
            raise ModelFileError(f"{self.name} is damaged: {error}.", fix=EXPORT_AGAIN) from None
        check_model(self, EXACT if kind == "cpu" else ON_GPU[self.info.precision])

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32."""
        if mel_BMT.shape[0] > self.max_batch or mel_BMT.shape[-1] > self.max_mel_frames:
            raise ModelFileError(
                f"{self.name}: {mel_BMT.shape} exceeds the profile of {self.kind}: at most "
                f"{self.max_batch} clips of {self.max_mel_frames} mel frames.",
                fix="Run fewer at once, or shorter ones.",
            )
        return run_session(self._trunk, TRUNK_INPUT, TRUNK_OUTPUT, mel_BMT, self.name)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head: (B, D) float32 to (B, K) float32."""
        return self._head.logits(pooled_BD)

    def close(self) -> None:
        """Do nothing: ONNX Runtime frees its memory with the object."""

    def _open(self, data: bytes, threads: int) -> None:
        if self.kind == "cpu":
            self._trunk = open_session(data, threads, self.name)
            self.info = read_model_info(self._trunk)
            _check_kernels(self.info, self.name)
        else:
            self._open_on_gpu(data, threads)
        info, who = self.info, f"{self.name}: the trunk"
        _check_port(self._trunk.get_inputs(), TRUNK_INPUT, (None, 1, info.mel.n_mels, None), who)
        _check_port(self._trunk.get_outputs(), TRUNK_OUTPUT, (None, info.channels, None), who)
        self._head = HeadSession(read_head(self._trunk), info, threads, self.name)

    def _open_on_gpu(self, data: bytes, threads: int) -> None:
        import onnxruntime

        if PROVIDERS[self.kind] not in (present := onnxruntime.get_available_providers()):
            raise BackendError(
                f"backend={self.kind!r} needs ONNX Runtime's {PROVIDERS[self.kind]}; the installed "
                f"onnxruntime {onnxruntime.__version__} has {', '.join(present)}.",
                fix="Install the GPU build in its place: pip uninstall onnxruntime, pip install "
                "onnxruntime-gpu; on a Jetson NVIDIA's own wheel, see docs/JETPACK.md. Or use "
                "backend='cpu'.",
            )
        # A TensorRT provider must know the shapes before it loads, and only the file has them.
        self.info = read_model_info(open_session(data, threads, self.name, describe_only=True))
        if self.kind == "tensorrt-ep":
            self.max_batch = PROFILE_BATCH
            self.max_mel_frames = longest_mel_frames(self.info)
        providers = _gpu_providers(self.kind, self.info, self.sha256, self.name)
        try:
            # On a failure, ONNX Runtime prints to stdout, which may be carrying results.
            with contextlib.redirect_stdout(sys.stderr):
                self._trunk = open_session(data, threads, self.name, providers=providers)
        except ModelFileError as error:
            raise _not_started(self.kind, error.message) from None
        self._trunk.disable_fallback()
        _check_taken(self._trunk, self.kind, self.name)


class HeadSession:
    """The affine head of a model, in its own session on the CPU.

    Raises:
        ModelFileError: It is damaged, or does not fit the model.
    """

    def __init__(self, onnx: bytes, info: ModelInfo, threads: int, name: str) -> None:
        self._name = name
        self._session = open_session(onnx, threads, f"{name}, {HEAD_KEY}")
        who = f"{name}: the head"
        _check_port(self._session.get_inputs(), HEAD_INPUT, (None, info.pooled_size), who)
        _check_port(self._session.get_outputs(), HEAD_OUTPUT, (None, len(info.labels)), who)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, D) float32 to (B, K) float32."""
        return run_session(self._session, HEAD_INPUT, HEAD_OUTPUT, pooled_BD, self._name)


def read_model(source: Source) -> tuple[str, bytes]:
    """Name for messages, and the bytes.

    Raises:
        ModelFileError: It cannot be read.
    """
    if isinstance(source, bytes):
        return "model bytes", source
    try:
        return Path(source).name, Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"Cannot read the model {source}: {reason(error)}.",
            fix="Give the path of a model file that frami-edge export wrote.",
        ) from None


def _is_engine(source: Source) -> bool:
    if isinstance(source, bytes):
        return source.startswith(_PLAN_MAGIC)
    if Path(source).suffix.lower() in _ENGINE_SUFFIXES:
        return True
    try:
        with open(source, "rb") as file:
            return file.read(len(_PLAN_MAGIC)) == _PLAN_MAGIC
    except (OSError, ValueError):
        return False


def check_model(model: Backend, tolerance: float = EXACT) -> None:
    """Two frames at once must equal the same two one by one: otherwise nothing could be streamed.

    Raises:
        ModelFileError: They differ by more than the tolerance, absolute and relative, or shapes
            contradict the metadata.
    """
    info, field = model.info, model.info.receptive_field

    def run(mel_BMT: npt.NDArray[np.float32], frames: int) -> npt.NDArray[np.float32]:
        found = model.frames(np.ascontiguousarray(mel_BMT))
        if found.shape != (1, info.channels, frames):
            raise ModelFileError(
                f"{model.name}: {METADATA_KEY} has receptive_field {field}, stride {info.stride}, "
                f"channels {info.channels}, but {mel_BMT.shape[3]} mel frames give {found.shape}.",
                fix=EXPORT_AGAIN,
            )
        return found

    shape = (1, 1, info.mel.n_mels, field + info.stride)
    # As good as noise here, and a device need not load numpy.random, 7 ms, for it.
    mel_BMT = np.sin(np.square(np.arange(np.prod(shape)))).astype(np.float32).reshape(shape)
    if model.max_mel_frames < shape[3]:
        run(mel_BMT[..., :field], 1)
    else:
        both = run(mel_BMT, 2)
        # One mel frame less than two trunk frames need: an overstated receptive field shows here.
        one_by_one = [run(mel_BMT[..., :-1], 1), run(mel_BMT[..., info.stride :], 1)]
        if not np.allclose(both, np.concatenate(one_by_one, 2), rtol=tolerance, atol=tolerance):
            raise ModelFileError(
                f"{model.name}: a trunk frame is not a function of its {field} mel frames, so a "
                "stream could not equal the whole clip.",
                fix="Train the student without padding, normalisation or attention along time.",
            )
    if model.logits(np.zeros((1, info.pooled_size), np.float32)).shape != (1, len(info.labels)):
        raise ModelFileError(
            f"{model.name}: the head does not give {len(info.labels)} logits.", fix=EXPORT_AGAIN
        )


def longest_mel_frames(info: ModelInfo) -> int:
    """Mel frames of the longest run of a stream: the end of an engine's profile."""
    return info.receptive_field + (LONGEST_RUN - 1) * info.stride


def _check_port(ports: Sequence[Any], name: str, shape: tuple[int | None, ...], who: str) -> None:
    """Check that a session has exactly this input or output; None is a dynamic dimension."""
    found = ", ".join(f"{p.name} {p.type} {list(p.shape)}" for p in ports)
    fits = len(ports) == 1 and ports[0].name == name and ports[0].type == "tensor(float)"
    fits = fits and len(ports[0].shape) == len(shape)
    # A dimension without a fixed size is a name or None; where it must be dynamic it has to be one.
    fits = fits and all(
        not isinstance(n, int) if wanted is None else n == wanted or not isinstance(n, int)
        for n, wanted in zip(ports[0].shape, shape, strict=True)
    )
    if not fits:
        dims = ["dynamic" if n is None else n for n in shape]
        raise ModelFileError(
            f"{who} must have {name} as float32 {dims}, not {found or 'nothing'}.", fix=EXPORT_AGAIN
        )


def open_session(
    data: bytes,
    threads: int,
    name: str,
    *,
    providers: Providers = (_CPU,),
    describe_only: bool = False,
) -> Any:
    """An ``onnxruntime.InferenceSession`` for a small device.

    Args:
        data: The ONNX file.
        threads: CPU threads of one run.
        name: The model's name, for messages.
        providers: Execution providers, as ONNX Runtime takes them.
        describe_only: Skip all optimisation: only the metadata is needed.

    Raises:
        ModelFileError: It cannot be loaded.
    """
    if _REFERENCE.search(data):
        # ONNX Runtime would look in the working folder, older versions anywhere.
        raise ModelFileError(f"{name} keeps weights in another file.", fix=EXPORT_AGAIN)
    # Imported here: reading a MelSpec must not cost the 80 ms that ONNX Runtime takes to load.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A spinning thread burns a core between two chunks of audio.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if len(providers) > 1:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if describe_only:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # the error repeats what it would print
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        if name.endswith(".safetensors"):
            raise ModelFileError(
                f"{name} is a checkpoint, which does not run on a device.",
                fix="Give an ONNX file that `frami-edge export` makes of it.",
            ) from None
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {name}: {reason(error)}",
            fix="The file is damaged, or needs a newer onnxruntime: pip install -U onnxruntime.",
        ) from None


def run_session(
    session: Any, feed: str, output: str, x: npt.NDArray[np.float32], name: str
) -> npt.NDArray[np.float32]:
    """One output of a session for one input.

    Raises:
        ModelFileError: ONNX Runtime failed; ``name`` is the model's.
    """
    try:
        return session.run([output], {feed: x})[0]  # type: ignore[no-any-return]
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise ModelFileError(
            f"{name}: ONNX Runtime could not run it on {feed} {x.shape}: {reason(error)}",
            fix=EXPORT_AGAIN,
        ) from None


def _not_started(kind: str, what: str) -> BackendError:
    return BackendError(
        f"ONNX Runtime could not start its {PROVIDERS[kind]}: {what.rstrip('.')}.",
        fix="CUDA, cuDNN or TensorRT is missing or of another version than this onnxruntime was "
        "built for, or there is no GPU: see docs/JETPACK.md, or use backend='cpu'.",
    )


def _check_kernels(info: ModelInfo, name: str) -> None:
    """Refuse a portable int8 file on an ONNX Runtime that computes its layers in float."""
    import onnxruntime

    found: str = onnxruntime.__version__
    portable = (info.quantisation or {}).get("flavour") == PORTABLE_FLAVOUR
    if portable and tuple(int(part) for part in found.split(".")[:2]) < INTEGER_SINCE:
        raise BackendError(
            f"{name} is portable int8, which ONNX Runtime computes in integers from version "
            f"{INTEGER_SINCE[0]}.{INTEGER_SINCE[1]} on; {found} would give other logits.",
            fix="Use the int8.cpu file of the same export, or pip install -U onnxruntime.",
        )


def _check_taken(session: Any, kind: str, name: str) -> None:
    """Check that the provider really runs the model: ONNX Runtime falls back without an error."""
    provider, running = PROVIDERS[kind], list(session.get_providers())
    if provider not in running:
        raise _not_started(kind, f"{name} would run on {', '.join(running)}")
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return  # older versions, such as 1.23, report providers only
    strays = {
        part.ep_name
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != provider and node.op_type == "Conv"
    }
    if strays:
        raise BackendError(
            f"{name}: {provider} left convolutions to {', '.join(sorted(strays))}: it cannot run "
            "this model.",
            fix="Use the fp32 file of the same export, or backend='cpu'.",
        )


def _gpu_providers(kind: str, info: ModelInfo, sha256: str, name: str) -> Providers:
    cuda_options = {
        "device_id": "0",
        # The default tries every algorithm for each new length: seconds, and other bits each time.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",  # 10 bits of mantissa would break the parity that the export proved
        "arena_extend_strategy": "kSameAsRequested",  # a Jetson's GPU shares its memory
    }
    cuda = (PROVIDERS["cuda"], cuda_options)
    if kind == "cuda":
        return (cuda, _CPU)
    flavour = str((info.quantisation or {}).get("flavour", ""))
    if flavour.startswith("U8"):
        raise BackendError(
            f"{name} is quantised as {flavour}, which TensorRT would read as other numbers.",
            fix="Use the int8.trt file of the same export, or the fp32 one.",
        )
    bands, field, longest = info.mel.n_mels, info.receptive_field, longest_mel_frames(info)
    cache = str(_cache_folder())
    options = {
        "device_id": "0",
        "trt_max_workspace_size": str(_WORKSPACE_BYTES),
        "trt_fp16_enable": "False",
        # Explicit Q/DQ still needs the flag where networks are weakly typed, up to TensorRT 10.
        "trt_int8_enable": str(info.precision == "int8"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": cache,
        # The provider's own key leaves the weights out: two students would share an engine.
        "trt_engine_cache_prefix": f"frami_{sha256[:16]}",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": cache,
        "trt_profile_min_shapes": f"{TRUNK_INPUT}:1x1x{bands}x{field}",
        "trt_profile_opt_shapes": f"{TRUNK_INPUT}:1x1x{bands}x{(field + longest) // 2}",
        "trt_profile_max_shapes": f"{TRUNK_INPUT}:{PROFILE_BATCH}x1x{bands}x{longest}",
    }
    return ((PROVIDERS[kind], options), cuda, _CPU)


def _cache_folder() -> Path:
    import onnxruntime

    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # An engine of another TensorRT must not be found, and ONNX Runtime's version decides that one.
    folder = base / "frami-edge" / f"onnxruntime-{onnxruntime.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"Cannot make the engine cache {folder}: {reason(error)}.",
            fix="Set XDG_CACHE_HOME to a folder that can be written to.",
        ) from None
    return folder
