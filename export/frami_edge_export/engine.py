"""One TensorRT engine: the ONNX file it is built from, the shapes it accepts, and its build.

Only what TensorRT 10.3 to 11.4 share is used. Types come from the graph: int8 is explicit Q/DQ,
fp16 is fp16 tensors, the network is strongly typed. TensorRT 11 has nothing else, and 10.x has the
flag.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from frami_edge_export.errors import ExportError
from frami_edge_export.parity import cpu_session
from frami_edge_runtime.backends import LONGEST_RUN
from frami_edge_runtime.errors import BackendError, FramiEdgeError
from frami_edge_runtime.modelfile import HEAD_KEY, TRUNK_INPUT, ModelInfo, read_model_info
from frami_edge_runtime.tensorrt import Cudart, Shape, create, import_tensorrt, make_logger

OLDEST: Final = (10, 3)
"""JetPack 6.1 and 6.2 have it; older ones lack strong typing."""
SOURCES: Final = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "int8": ("int8.trt.fp16", "int8.trt", "int8.portable"),
}
"""Artefacts that can become an engine of a precision, best first. TensorRT refuses the unsigned
activations and int32 biases of ``int8.cpu``."""
PRECISIONS: Final = tuple(SOURCES)
REPORT: Final = "export_report.json"
WORKSPACE_BYTES: Final = 256 << 20
"""Scratch memory that a tactic may use; students need a fraction of it."""
_EXPORT_AGAIN = "Export again, or copy the whole folder of the export to the device."
ON_THE_DEVICE: Final = (
    "The ONNX files are complete: copy their folder to the device and run "
    "frami-edge export --tensorrt FOLDER there, or without torch "
    "python -m frami_edge_export.tensorrt FOLDER."
)


class TensorRTUnavailable(ExportError):  # noqa: N818  # names what is missing
    """TensorRT is missing or too old, or there is no usable NVIDIA driver."""


class BuildError(ExportError):
    """TensorRT refused a graph or could not build its engine; the message has its last words."""


@dataclass(frozen=True)
class Seconds:
    """Shortest, usual and longest audio of one call of the trunk."""

    low: float
    usual: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Seconds:
        """Read ``MIN:OPT:MAX`` in seconds; one number stands for all three.

        Raises:
            ExportError: It has another form, or does not rise from 0 to at most 3600.
        """
        try:
            numbers = [float(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        low, usual, high = numbers * 3 if len(numbers) == 1 else [*numbers, -1, -1, -1][:3]
        rising = 0 <= low <= usual <= high <= 3600 and high > 0
        if len(numbers) not in (1, 3) or not rising:
            raise ExportError(
                f"--seconds {text!r} is not MIN:OPT:MAX, rising from 0 to at most 3600.",
                fix="Write shortest:usual:longest, such as --seconds 0.1:1:10.",
            )
        return cls(low, usual, high)


@dataclass(frozen=True)
class EngineOptions:
    """What to build.

    Raises:
        ExportError: A value is out of range.
    """

    seconds: Seconds | None = None
    """Audio of one call; None: all calls of the runtime, one frame to its longest run."""
    batch: int = 8
    """Largest number of streams in one call; the engine is made for one."""
    precisions: tuple[str, ...] = PRECISIONS
    """fp32 is the reference against which the others are timed."""

    def __post_init__(self) -> None:
        """Check batch and precisions."""
        known = self.precisions and set(self.precisions) <= set(PRECISIONS)
        if not known or not 1 <= self.batch <= 1024:
            raise ExportError(
                f"batch {self.batch} must be 1 to 1024, and precisions {self.precisions} of "
                f"{', '.join(PRECISIONS)}.",
                fix="Leave both out to use the defaults.",
            )


def profile_for(info: ModelInfo, options: EngineOptions) -> dict[str, Shape]:
    """``min``, ``opt`` and ``max`` shapes (B, 1, M, T) that hold every call of a stream.

    The least T is one receptive field, because a stream ends with runs of a single trunk frame;
    the largest is at least two trunk frames, which the runtime probes.
    """
    low = info.receptive_field
    if options.seconds is None:
        high = low + (LONGEST_RUN - 1) * info.stride
        usual = mel_frames(info, 1.0)
    else:
        high = max(mel_frames(info, options.seconds.high), low + info.stride)
        usual = mel_frames(info, options.seconds.usual)
    frames = (low, min(usual, high), high)
    shapes = [
        (b, 1, info.mel.n_mels, t) for b, t in zip((1, 1, options.batch), frames, strict=True)
    ]
    return dict(zip(("min", "opt", "max"), shapes, strict=True))


def mel_frames(info: ModelInfo, seconds: float) -> int:
    """T of one call on so many seconds of audio, with the context around the clip."""
    frames = info.mel.frames(round(seconds * info.mel.sample_rate))
    return max(1, frames) + info.receptive_field - 1


@dataclass(frozen=True)
class EngineSource:
    """One streaming ONNX file that an engine is built from."""

    precision: str
    """``fp32``, ``fp16`` or ``int8``, the precision of the engine."""
    name: str
    data: bytes
    info: ModelInfo
    model: str
    """The description's JSON text, as it is in the file."""
    head_onnx: str
    """The head in base64, as it is in the file."""


def read_bundle(
    folder: Path, precisions: Sequence[str] = PRECISIONS
) -> tuple[str, list[EngineSource], list[str]]:
    """Read a folder of ``frami-edge export`` as far as the wanted precisions need it.

    Returns:
        The export's name, the files (several of one precision best first), and a note on each
        precision without a file.

    Raises:
        ExportError: It is no such folder, a file is missing or was changed, or none fits.
    """
    try:
        report = json.loads((folder / REPORT).read_bytes())
        name = Path(report["name"]).name
        known = {a["name"]: (Path(a["path"]).name, a["sha256"]) for a in report["artifacts"]}
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"Cannot read {folder / REPORT}: {reason}.", fix=_EXPORT_AGAIN) from None
    except (ValueError, KeyError, TypeError):
        raise ExportError(
            f"{folder / REPORT} is no report of frami-edge export.", fix=_EXPORT_AGAIN
        ) from None
    sources, missing = [], []
    for precision in precisions:
        found = [known[artifact] for artifact in SOURCES[precision] if artifact in known]
        sources += [_read_source(folder / file, sha256, precision) for file, sha256 in found]
        if not found:
            first = SOURCES[precision][0]
            missing.append(f"The export has no {first} file, so no {precision} engine is built.")
    if not sources:
        raise ExportError(
            f"{folder} holds nothing to build from. {' '.join(missing)}", fix=_EXPORT_AGAIN
        )
    return name, sources, missing


def _read_source(path: Path, sha256: str, precision: str) -> EngineSource:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"it is not the file that {REPORT} describes")
        entries = cpu_session(data).get_modelmeta().custom_metadata_map
        info = read_model_info(entries)
        return EngineSource(precision, path.name, data, info, info.to_json(), entries[HEAD_KEY])
    except FramiEdgeError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ExportError(f"Cannot use {path}: {reason}.", fix=_EXPORT_AGAIN) from None


def load_tensorrt() -> tuple[Any, str]:
    """The ``tensorrt`` module and the GPU's compute capability.

    Raises:
        TensorRTUnavailable: TensorRT or CUDA is missing, or TensorRT is older than 10.3.
    """
    try:
        trt, sm = import_tensorrt(), Cudart().sm()
    except FramiEdgeError as error:
        raise TensorRTUnavailable(error.message, fix=f"{error.fix} {ON_THE_DEVICE}") from None
    if tuple(int(n) for n in trt.__version__.split(".")[:2]) < OLDEST:
        raise TensorRTUnavailable(
            f"TensorRT {trt.__version__} is too old; 10.3 is the oldest supported.",
            fix="JetPack 6.1 or newer brings it. The ONNX files run in ONNX Runtime as they are.",
        )
    return trt, sm


def build_engine(
    source: EngineSource, profile: dict[str, Shape], trt: Any, cache: Path
) -> tuple[bytes, str]:
    """Build one engine; only names that the bindings of 10.3 to 11.4 share are used.

    The timing cache of this TensorRT and GPU is read where it exists, and replaced: the second
    build on a device takes a fraction of the time.

    Returns:
        The serialised engine, and the state of the cache: ``new``, ``reused`` or ``rejected``.

    Raises:
        TensorRTUnavailable: There is no usable NVIDIA driver.
        BuildError: The parser refused the graph, or the build failed.
    """
    logger = make_logger(trt)
    try:
        builder = create(trt.Builder, logger)
    except BackendError as error:
        raise TensorRTUnavailable(error.message, fix=f"{error.fix} {ON_THE_DEVICE}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # The network's weights belong to the parser: it must live until the build is done.
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.data):
        errors = [parser.get_error(i) for i in range(min(parser.num_errors, 8))]
        lines = [f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors]
        raise BuildError(
            f"TensorRT {trt.__version__} cannot read {source.name}: "
            f"{'; '.join(lines) or logger.last()}",
            fix="frami-edge export lints graphs for TensorRT: export again and look at its table.",
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or no layer reports its type
    config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa would be no fp32 reference
    shapes = builder.create_optimization_profile()
    shapes.set_shape(TRUNK_INPUT, profile["min"], profile["opt"], profile["max"])
    config.add_optimization_profile(shapes)
    try:
        known = cache.read_bytes()
    except OSError:
        known = b""
    state = "reused" if known else "new"
    # The second argument would accept another device's times.
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        state = "rejected"
        config.set_timing_cache(config.create_timing_cache(b""), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(
            f"TensorRT {trt.__version__} could not build {source.name}: {logger.last()}",
            fix="Build another precision; the ONNX file runs in ONNX Runtime as it is.",
        )
    times = config.get_timing_cache()
    if times is not None:
        cache.write_bytes(bytes(times.serialize()))
    return bytes(plan), state


def count_layers(trt: Any, plan: bytes) -> dict[str, int] | None:
    """Layers and convolutions of an engine that read int8, from TensorRT's inspector."""
    engine = create(trt.Runtime, make_logger(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    return count_inspected(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def count_inspected(text: str) -> dict[str, int] | None:
    """Count the layers in an engine inspector's JSON; None where it is no such JSON.

    TensorRT 10 describes the type of a tensor by one key, ``Format/Datatype``, 11 by another; both
    contain the word "type".
    """
    try:
        layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    except (ValueError, KeyError, TypeError):
        return None
    counts = dict.fromkeys(("total", "int8", "reformat", "convolutions", "int8_convolutions"), 0)
    for layer in layers:
        kind = f"{layer.get('LayerType')} {layer.get('ParameterType')}".lower()
        inputs = layer.get("Inputs") or [{}]
        types = [v for k, v in inputs[0].items() if "type" in k.lower()]
        int8 = "reformat" not in kind and "int8" in str(types).lower()
        convolution = "conv" in kind
        counts["total"] += 1
        counts["int8"] += int8
        counts["reformat"] += "reformat" in kind
        counts["convolutions"] += convolution
        counts["int8_convolutions"] += int8 and convolution
    return counts
