"""What can run a model: one protocol, several backends behind it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
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
from frami_edge_runtime.state import StateReader

# --- Where a model comes from: a path or bytes, ONNX or a TensorRT engine

MAX_FILE_BYTES: Final = 1 << 29
_PLAN_MAGIC: Final = b"ftrt"
_ENGINE_SUFFIXES: Final = (".engine", ".plan")


def read_model(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """Name for messages, and the bytes.

    Raises:
        ModelFileError: It is neither a path nor bytes, cannot be read, or is absurdly large.
    """
    if isinstance(source, bytes):
        return "model bytes", source
    path = _path(source)
    try:
        facts = path.stat()
        size = facts.st_size
        if not stat.S_ISREG(facts.st_mode):  # reading a device may never end
            what = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
            raise ModelFileError(
                f"Cannot read the model {path}: it is {what}.",
                fix="Give the path of an .onnx file that frami-edge export wrote.",
            )
        if size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path} takes {size} bytes; at most {MAX_FILE_BYTES} are read.",
                fix="Check that this is a model of frami-edge export.",
            )
        return path.name, path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelFileError(
            f"Cannot read the model {path}: {reason}.",
            fix="Give the path of an .onnx file that frami-edge export wrote.",
        ) from None


def is_engine(source: str | os.PathLike[str] | bytes) -> bool:
    """Whether a model is a TensorRT engine: by its first bytes, else by its name."""
    if isinstance(source, bytes):
        return source.startswith(_PLAN_MAGIC)
    path = _path(source)
    if path.suffix.lower() in _ENGINE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_PLAN_MAGIC)) == _PLAN_MAGIC
    except (OSError, ValueError):
        return False


def _path(source: object) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise ModelFileError(
            f"A model is a path or bytes, not {type(source).__name__}.", fix="Pass its path."
        )
    return Path(source)


# --- The one thing that a stream knows about what runs its model
# Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.

UNBOUNDED: Final = 1 << 30
"""A limit that nothing reaches: what a backend without limits states."""


class Backend(Protocol):
    """A loaded model: its trunk, its head and what its file says about them.

    Any thread may call `frames` and `logits` at any time; a backend that owns buffers locks them.
    Results belong to the caller: no later call changes them.
    """

    @property
    def kind(self) -> str:
        """``cpu``, ``cuda``, ``tensorrt-ep`` or ``tensorrt``."""
        ...

    @property
    def name(self) -> str:
        """The model file's name, for messages."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What the model file says about itself."""
        ...

    @property
    def sha256(self) -> str:
        """64 hex digits of the model file: a saved stream state belongs to them."""
        ...

    @property
    def max_batch(self) -> int:
        """Largest B of one call of `frames`: so many streams can be batched, >= 1."""
        ...

    @property
    def max_mel_frames(self) -> int:
        """Largest T of one call of `frames`, at least the receptive field."""
        ...

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32.

        Raises:
            ModelFileError: The model cannot be run on this shape, or failed.
        """
        ...

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head: (B, D) float32 to (B, K) float32; any B >= 1.

        Raises:
            ModelFileError: The head failed.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds outside Python; calling it twice is allowed."""
        ...


# --- The trunk on a stream: mel frames in, trunk frames out, with a short carry between runs
# Because the trunk has no padding along time, its whole state is the last receptive_field - stride
# mel frames. Runs end only where the schedule says: after every hop, and at most `LONGEST_RUN` frames
# apart. The sequence of runs therefore depends on the clip alone, never on how it was chunked, and so
# does every bit of the output, whatever the backend rounds differently for other lengths.
#
# A clip starts with ``left`` frames of context and is flushed with ``right`` of them, see
# `modelfile.Context`: in the middle of a stream there are none.
#
# Shape legend: M mel bands, T mel frames, C channels, n trunk frames of one run.

LONGEST_RUN: Final = 64
"""Trunk frames; bounds the memory of a run, and saves nearly all of the recomputed carry."""


class TrunkStream:
    """Trunk frames out of mel frames that arrive in any chunking.

    Args:
        model: What runs the trunk.
        hop: Trunk frames between results: no run crosses a multiple of it. None: no results.
    """

    def __init__(self, model: Backend, *, hop: int | None = None) -> None:
        """Allocate the input of the longest run."""
        info = model.info
        self._model = model
        self._hop = hop
        self._field = info.receptive_field
        self._stride = info.stride
        self._context = info.context
        within = (model.max_mel_frames - self._field) // self._stride + 1
        self._longest = min(LONGEST_RUN, hop or LONGEST_RUN, within)
        width = self._field + (self._longest - 1) * self._stride
        self._mel = np.zeros((1, 1, info.mel.n_mels, width), np.float32)
        self.reset()

    def reset(self, phase: int = 0) -> None:
        """Forget everything; a clip starts with its context.

        Args:
            phase: Frame periods from the last result to the first frame.
        """
        self._held = self._context.left
        self._mel[..., : self._held] = self._context.value
        self._offered = self._mel[0, 0, :, :0].T
        self._phase = phase
        self._ending = False
        self.frames_out = 0

    @property
    def mel_frames_in(self) -> int:
        """Mel frames of the clip that have been taken."""
        return self.frames_out * self._stride + self._held - self._context.left

    def offer(self, mel_TM: npt.NDArray[np.float32]) -> None:
        """Take (T, M) float32 mel frames; call `due` until it gives 0 before offering more."""
        self._offered = mel_TM

    def end(self, mel_TM: npt.NDArray[np.float32]) -> None:
        """As `offer` for the last frames of the clip, and the context after them.

        A clip of at least one mel frame gives at least one trunk frame.
        """
        end = (self._context.right, self._mel.shape[2])
        after = np.full(end, self._context.value, np.float32)
        self._offered = np.concatenate([mel_TM, after])
        self._ending = True

    def due(self) -> int:
        """Trunk frames of the run that is due now; 0: more mel frames are needed."""
        run = self._next_run()
        needed = self._field + (run - 1) * self._stride
        step = min(needed - self._held, len(self._offered))
        if step > 0:
            self._mel[0, 0, :, self._held : self._held + step] = self._offered[:step].T
            self._held += step
            self._offered = self._offered[step:]
        if self._held >= needed:
            return run
        return max(0, (self._held - self._field) // self._stride + 1) if self._ending else 0

    def input(self, run: int) -> npt.NDArray[np.float32]:
        """(1, 1, M, T) float32 for the run of `due`: a view, valid until `advance`."""
        return self._mel[..., : self._field + (run - 1) * self._stride]

    def advance(self, run: int) -> None:
        """The run has been made: keep only what the next one needs of it."""
        kept = self._held - run * self._stride
        self._mel[..., :kept] = self._mel[..., self._held - kept : self._held]
        self._held = kept
        self.frames_out += run

    def in_phase(self, slot: int) -> bool:
        """Whether the first frame may lie in this slot, that is, `reset` was told so."""
        return self._hop is None or slot % self._hop == self._phase

    def state(self) -> dict[str, Any]:
        """What the next frames depend on, as plain integers and arrays."""
        mel = self._mel[0, 0, :, : self._held].copy()
        return {"mel": mel, "frames_out": self.frames_out, "phase": self._phase}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave for the same model and hop.

        Raises:
            StreamError: The state does not fit; the stream is unchanged then.
        """
        read = StateReader(state, "TrunkStream")
        frames_out = read.integer("frames_out", 0)
        phase = read.integer("phase", 0, (self._hop or 1) - 1)
        bands, width = self._mel.shape[2:]
        mel = read.array("mel", np.float32, (bands, None), most=width)
        read.done()
        carry = self._field - self._stride if frames_out else self._context.left
        read.require(mel.shape[1] >= carry, "mel")
        before = self._phase, self.frames_out
        self._phase, self.frames_out = phase, frames_out
        needed = self._field + (self._next_run() - 1) * self._stride
        self._phase, self.frames_out = before
        read.require(mel.shape[1] < needed, "mel")
        self.reset(phase)
        self.frames_out = frames_out
        self._held = mel.shape[1]
        self._mel[0, 0, :, : self._held] = mel

    def _next_run(self) -> int:
        if self._hop is None:
            return self._longest
        return min(self._longest, self._hop - (self._phase + self.frames_out) % self._hop)


# --- What every backend proves of a model before its first stream
# Shape legend: B batch, M mel bands, T mel frames, C channels, D = 2 C, K classes.

EXACT: Final = 1e-3
"""Largest difference, absolute and relative, where runs of other lengths must give the same bits or
nearly so; a trunk that looks beyond its receptive field differs by 0.1 and more."""
ON_GPU: Final = {"fp32": 2e-3, "fp16": 2e-2, "int8": 1e-1}
"""Likewise on a GPU, which may run other lengths with other kernels that round differently: int8 by
whole steps."""


def check_threads(threads: int) -> int:
    """``threads``, if it is a sane number of them.

    Raises:
        ModelFileError: It is not in 1..256.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256:
        raise ModelFileError(f"threads must lie in 1..256, not {threads!r}.", fix="Use 1.")
    return threads


def check_port(ports: Sequence[Any], name: str, shape: tuple[int | None, ...], who: str) -> None:
    """Check that a session has exactly one such input or output; None is a dynamic dimension.

    Raises:
        ModelFileError: It has others.
    """
    try:
        found = ", ".join(f"{p.name} {p.type} {list(p.shape)}" for p in ports)[:300]
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{who} has damaged names: {error}.", fix=EXPORT_AGAIN) from None
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
            f"{who} must have {name} as float32 {dims}, not {found or 'nothing'}.",
            fix=EXPORT_AGAIN,
        )


def check_model(model: Backend, tolerance: float = EXACT) -> None:
    """Two frames at once must equal the same two one by one: else nothing could be streamed.

    Args:
        model: Loaded and ready to run.
        tolerance: Largest difference, absolute and relative.

    Raises:
        ModelFileError: The model does not do what its metadata says.
    """
    info = model.info
    if model.max_mel_frames >= info.receptive_field + info.stride:
        _check_frames(model, tolerance)
    else:
        shortest = np.zeros((1, 1, info.mel.n_mels, info.receptive_field), np.float32)
        _check_shape(model, shortest.shape[3], model.frames(shortest).shape, 1)
    if model.logits(np.zeros((1, info.pooled_size), np.float32)).shape != (1, len(info.labels)):
        raise ModelFileError(
            f"{model.name}: the head does not give {len(info.labels)} logits.", fix=EXPORT_AGAIN
        )


def _check_frames(model: Backend, tolerance: float) -> None:
    info = model.info
    shape = (1, 1, info.mel.n_mels, info.receptive_field + info.stride)
    # As good as noise here, and a device need not load numpy.random, 7 ms, for it.
    mel_BMT = np.sin(np.square(np.arange(np.prod(shape)))).astype(np.float32).reshape(shape)
    both = model.frames(mel_BMT)
    _check_shape(model, mel_BMT.shape[3], both.shape, 2)
    # One mel frame less than two trunk frames need: an overstated receptive field shows here.
    first = model.frames(np.ascontiguousarray(mel_BMT[..., :-1]))
    _check_shape(model, mel_BMT.shape[3] - 1, first.shape, 1)
    second = model.frames(np.ascontiguousarray(mel_BMT[..., info.stride :]))
    one_by_one = np.concatenate([first, second], axis=2)
    if not np.allclose(both, one_by_one, rtol=tolerance, atol=tolerance):
        raise ModelFileError(
            f"{model.name}: a trunk frame is not a function of its {info.receptive_field} mel "
            f"frames, so a stream could not equal the whole clip.",
            fix="Train the student without padding, normalisation or attention along time.",
        )


def _check_shape(model: Backend, mel_frames: int, shape: tuple[int, ...], frames: int) -> None:
    info = model.info
    if shape != (1, info.channels, frames):
        raise ModelFileError(
            f"{model.name}: {METADATA_KEY} says receptive_field {info.receptive_field}, stride "
            f"{info.stride}, channels {info.channels}, but {mel_frames} mel frames give {shape}.",
            fix=EXPORT_AGAIN,
        )


# --- ONNX Runtime's GPU providers: their options, and the proof that they took the model
# ONNX Runtime falls back to the CPU without an error when a provider cannot start. A session that
# was asked for a GPU is therefore asked afterwards where its nodes went.
# No GPU has run this yet: tests drive it with recorded sessions, see docs/JETPACK.md.

PROVIDERS: Final = {"cuda": "CUDAExecutionProvider", "tensorrt-ep": "TensorrtExecutionProvider"}
PROFILE_BATCH: Final = 32
"""Most streams that the TensorRT provider's engine takes in one run."""
_WORKSPACE_BYTES: Final = 256 << 20
_GPU_FIX: Final = (
    "Install the GPU build in its place: pip uninstall onnxruntime, pip install onnxruntime-gpu; "
    "on a Jetson NVIDIA's own wheel, see docs/JETPACK.md. Or use backend='cpu'."
)


def require(kind: str) -> None:
    """Check that the installed ONNX Runtime has the provider.

    Raises:
        BackendError: It has not; the message lists those that it has.
    """
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if PROVIDERS[kind] not in present:
        raise BackendError(
            f"backend={kind!r} needs ONNX Runtime's {PROVIDERS[kind]}; the installed onnxruntime "
            f"{onnxruntime.__version__} has {', '.join(present)}.",
            fix=_GPU_FIX,
        )


def profile_mel_frames(info: ModelInfo) -> int:
    """Mel frames of the longest run of a stream: the end of the engine's profile."""
    return info.receptive_field + (LONGEST_RUN - 1) * info.stride


def wanted(kind: str, info: ModelInfo, sha256: str, name: str) -> Providers:
    """The providers to ask for, every option that matters stated.

    Raises:
        BackendError: The model's int8 is not TensorRT's, or there is no place for its engine cache.
    """
    cuda = (PROVIDERS["cuda"], _cuda_options())
    if kind == "cuda":
        return (cuda, "CPUExecutionProvider")
    flavour = str((info.quantisation or {}).get("flavour", ""))
    if flavour.startswith("U8"):
        raise BackendError(
            f"{name} is quantised as {flavour}, which TensorRT would read as other numbers.",
            fix="Use the int8.trt file of the same export, or the fp32 one.",
        )
    return ((PROVIDERS[kind], _tensorrt_options(info, sha256)), cuda, "CPUExecutionProvider")


def check_taken(session: Any, kind: str, name: str) -> None:
    """Check that the provider really runs the model.

    Raises:
        BackendError: ONNX Runtime fell back, or left convolutions to another provider.
    """
    provider, running = PROVIDERS[kind], list(session.get_providers())
    if provider not in running:
        raise failed(kind, f"{name} would run on {', '.join(running)}")
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return  # older ones, such as 1.23, do not tell more
    strays = {
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != provider and node.op_type == "Conv"
    }
    if strays:
        where = ", ".join(sorted({ep for ep, _ in strays}))
        raise BackendError(
            f"{name}: {provider} left convolutions to {where}: it cannot run this model.",
            fix="Use the fp32 file of the same export, or backend='cpu'.",
        )


def failed(kind: str, what: str) -> BackendError:
    """The error for a provider that is installed and did not start."""
    return BackendError(
        f"ONNX Runtime could not start its {PROVIDERS[kind]}: {what.rstrip('.')}.",
        fix="CUDA, cuDNN or TensorRT is missing or of another version than this onnxruntime was "
        "built for, or there is no GPU: see docs/JETPACK.md, or use backend='cpu'.",
    )


def _cuda_options() -> dict[str, str]:
    return {
        "device_id": "0",
        # The default tries every algorithm for each new length: seconds, and other bits each time.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",  # 10 bits of mantissa would break the parity that the export proved
        "arena_extend_strategy": "kSameAsRequested",  # a Jetson's GPU shares its memory
    }


def _tensorrt_options(info: ModelInfo, sha256: str) -> dict[str, str]:
    bands, field = info.mel.n_mels, info.receptive_field
    longest = profile_mel_frames(info)
    usual = (field + longest) // 2
    cache = str(_cache_folder())
    return {
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
        "trt_profile_opt_shapes": f"{TRUNK_INPUT}:1x1x{bands}x{usual}",
        "trt_profile_max_shapes": f"{TRUNK_INPUT}:{PROFILE_BATCH}x1x{bands}x{longest}",
    }


def _cache_folder() -> Path:
    import onnxruntime

    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # An engine of another TensorRT must not be found, and ONNX Runtime's version decides that one.
    folder = Path(base) / "frami-edge" / f"onnxruntime-{onnxruntime.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"Cannot make the engine cache {folder}: {error.strerror}.",
            fix="Set XDG_CACHE_HOME to a folder that can be written to.",
        ) from None
    return folder


# --- ONNX Runtime, set up for small devices, with its errors in plain words
# Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.

Providers = Sequence[str | tuple[str, dict[str, str]]]
CPU: Providers = ("CPUExecutionProvider",)
_LOCATION: Final = b"location"
_LOCATION_KEY: Final = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)\Z")


class Head:
    """The affine head of a model, in its own session on the CPU.

    Args:
        onnx: Its ONNX file.
        info: What the model says about itself.
        threads: CPU threads of one run.
        name: The model's file name, for messages.

    Raises:
        ModelFileError: It is damaged, or does not fit the model.
    """

    def __init__(self, onnx: bytes, info: ModelInfo, threads: int, name: str) -> None:
        """Load it and check names and shapes."""
        self._name = name
        self._session = open_session(onnx, threads, f"{name}, {HEAD_KEY}")
        who, size, classes = f"{name}: the head", info.pooled_size, len(info.labels)
        check_port(self._session.get_inputs(), HEAD_INPUT, (None, size), who)
        check_port(self._session.get_outputs(), HEAD_OUTPUT, (None, classes), who)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, D) float32 to (B, K) float32."""
        return run_session(self._session, HEAD_INPUT, HEAD_OUTPUT, pooled_BD, self._name)


class OrtModel:
    """A model file in ONNX Runtime: on the CPU, or on a GPU through one of its providers.

    Any thread may call it at any time: ONNX Runtime's sessions allow it.

    Args:
        source: Path of a model file, or its bytes.
        kind: ``cpu``, ``cuda`` or ``tensorrt-ep``.
        threads: CPU threads of one run; small models gain nothing from more than one.

    Raises:
        ModelFileError: Not a model file, or one that does not do what its metadata says.
        BackendError: The provider is not installed, or did not take the model.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        kind: str = "cpu",
        threads: int = 1,
    ) -> None:
        """Load, check names and shapes, then check values on a probe."""
        check_threads(threads)
        self.kind = kind
        self.name, data = read_model(source)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.max_batch = self.max_mel_frames = UNBOUNDED
        if kind == "cpu":
            self._trunk = open_session(data, threads, self.name)
            self.info = read_model_info(self._trunk)
        else:
            self._open_on_gpu(data, threads)
        info = self.info
        who = f"{self.name}: the trunk"
        mel_shape = (None, 1, info.mel.n_mels, None)
        check_port(self._trunk.get_inputs(), TRUNK_INPUT, mel_shape, who)
        check_port(self._trunk.get_outputs(), TRUNK_OUTPUT, (None, info.channels, None), who)
        self._head = Head(read_head(self._trunk), info, threads, self.name)
        check_model(self, EXACT if kind == "cpu" else ON_GPU[info.precision])

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32."""
        if mel_BMT.shape[0] > self.max_batch or mel_BMT.shape[-1] > self.max_mel_frames:
            raise ModelFileError(
                f"{self.name}: {mel_BMT.shape} is outside what was asked of {self.kind}: at most "
                f"{self.max_batch} clips of {self.max_mel_frames} mel frames.",
                fix="Run fewer at once, or shorter ones.",
            )
        return run_session(self._trunk, TRUNK_INPUT, TRUNK_OUTPUT, mel_BMT, self.name)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head: (B, D) float32 to (B, K) float32."""
        return self._head.logits(pooled_BD)

    def close(self) -> None:
        """Nothing to free: ONNX Runtime does it with the object."""

    def _open_on_gpu(self, data: bytes, threads: int) -> None:
        # Imported here: what only a GPU needs must not cost a CPU its start-up time.

        require(self.kind)
        # A TensorRT provider must know the shapes before it loads, and only the file tells them.
        self.info = read_model_info(open_session(data, threads, self.name, describe_only=True))
        if self.kind == "tensorrt-ep":
            self.max_batch = PROFILE_BATCH
            self.max_mel_frames = profile_mel_frames(self.info)
        providers = wanted(self.kind, self.info, self.sha256, self.name)
        try:
            # On a failure, ONNX Runtime prints to stdout, which may be carrying results.
            with contextlib.redirect_stdout(sys.stderr):
                self._trunk = open_session(data, threads, self.name, providers=providers)
        except ModelFileError as error:
            raise failed(self.kind, error.message) from None
        self._trunk.disable_fallback()
        check_taken(self._trunk, self.kind, self.name)


def open_session(
    data: bytes,
    threads: int,
    name: str,
    *,
    providers: Providers = CPU,
    describe_only: bool = False,
) -> Any:
    """An ``onnxruntime.InferenceSession`` for a small device.

    Args:
        data: The ONNX file.
        threads: CPU threads of one run.
        name: For messages.
        providers: As ONNX Runtime takes them.
        describe_only: Skip all optimisation: the session is only asked for its metadata.

    Raises:
        ModelFileError: It cannot be loaded.
    """
    if _refers_elsewhere(data):
        # ONNX Runtime would look in the working folder, older ones anywhere.
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
    if providers is not CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if describe_only:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it would print, the error says
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {name}: {first_line(error)}",
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
        result: npt.NDArray[np.float32] = session.run([output], {feed: x})[0]
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise ModelFileError(
            f"{name}: ONNX Runtime could not run it on {feed} {x.shape}: {first_line(error)}",
            fix=EXPORT_AGAIN,
        ) from None
    return result


def _refers_elsewhere(data: bytes) -> bool:
    """Whether a tensor has its data in another file: such a one has the key ``location``.

    In the wire format of protobuf a key is preceded by its tag, field 1, and its length, 8; both
    may be written in more bytes than they need.
    """
    at = data.find(_LOCATION)
    while at >= 0:
        if _LOCATION_KEY.search(data, max(0, at - 20), at):
            return True
        at = data.find(_LOCATION, at + 1)
    return False


def first_line(error: Exception) -> str:
    """What an exception says, cut to one short line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


# --- Which backend runs a model, and why
# A further backend is one file in this folder: ``NAME.py`` with ``open_model(source, *, threads)``
# that gives a `Backend`. It is chosen by its name alone, never by ``auto``.

BACKENDS: Final = ("auto", "cpu", "cuda", "tensorrt-ep", "tensorrt")
"""Those that come with the runtime."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def choose_backend(
    source: str | os.PathLike[str] | bytes, backend: str = "auto"
) -> tuple[str, str]:
    """The backend's name, and the reason in one sentence.

    ``auto`` means an engine for TensorRT and everything else for the CPU: a student has 12 k to
    350 k parameters, a run takes 0.1 to 1 ms on one core, and a GPU spends about as much on copies
    and kernel launches alone. What serves many streams, or larger models, should measure and say.

    Raises:
        BackendError: It is unknown, or cannot run that kind of file.
        ModelFileError: The source is neither a path nor bytes.
    """
    if backend not in BACKENDS and _further(backend) is None:
        raise BackendError(
            f"backend {backend!r} is unknown.", fix=f"Use one of {', '.join(BACKENDS)}."
        )
    if backend not in BACKENDS:
        return backend, "it was asked for"
    engine = is_engine(source)
    if engine and backend not in ("auto", "tensorrt"):
        raise BackendError(
            f"A TensorRT engine cannot run on backend={backend!r}.",
            fix="Give the .onnx file, or use backend='tensorrt'.",
        )
    if not engine and backend == "tensorrt":
        raise BackendError(
            "backend='tensorrt' runs engine files, and this is none.",
            fix="Build one on the device: frami-edge export --tensorrt; or use 'tensorrt-ep'.",
        )
    if backend != "auto":
        return backend, "it was asked for"
    if engine:
        return "tensorrt", "the model is a TensorRT engine"
    return "cpu", "below a million parameters one CPU core beats a GPU's launch latency"


def open_backend(
    source: str | os.PathLike[str] | bytes, backend: str = "auto", *, threads: int = 1
) -> Backend:
    """Load a model into the backend that `choose_backend` names.

    Args:
        source: Path of an ``.onnx`` or ``.engine`` file, or the bytes of an ONNX file.
        backend: One of `BACKENDS`, or a further one by the name of its file.
        threads: CPU threads of one run; small models gain nothing from more than one.

    Raises:
        ModelFileError: The file is missing, damaged, of another schema, or not such a model.
        EngineError: Likewise for an engine, or it was built for another machine.
        BackendError: The backend is unknown, not installed, or has no device here.
    """
    kind, _ = choose_backend(source, backend)
    further = None if kind in BACKENDS else _further(kind)
    if further is not None:
        return further(source, threads=threads)
    # Imported here: a device pays start-up time only for what it uses.
    if kind == "tensorrt":
        from frami_edge_runtime.tensorrt import EngineModel

        return EngineModel(source, threads=threads)  # type: ignore[arg-type]  # it refuses bytes

    return OrtModel(source, kind=kind, threads=threads)


def _further(name: str) -> Callable[..., Backend] | None:
    """`open_model` of a backend that is a file in this folder, or None."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    module = f"{__package__}.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    found: Callable[..., Backend] | None = getattr(
        importlib.import_module(module), "open_model", None
    )
    return found
