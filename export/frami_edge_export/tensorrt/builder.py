"""ONNX bytes to a serialised engine, by one code path for TensorRT 10.3 to 11.4.

Types come from the graph: int8 is explicit Q/DQ, fp16 is fp16 tensors, and the network is strongly
typed. TensorRT 11 has nothing else; 10.x has the flag. Only names that the bindings of 10.3, 10.13,
10.16 and 11.4 share are used; the tests check each against the real ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frami_edge_export.tensorrt.available import STRONG_SINCE, no_driver, version_tuple
from frami_edge_export.tensorrt.errors import BuildError, ParseError
from frami_edge_export.tensorrt.messages import make_logger
from frami_edge_export.tensorrt.options import EngineOptions
from frami_edge_export.tensorrt.profiles import Profile
from frami_edge_export.tensorrt.timing_cache import read_cache, write_cache
from frami_edge_runtime.modelfile import TRUNK_INPUT, TRUNK_OUTPUT

MAX_PARSE_ERRORS = 8


@dataclass(frozen=True)
class Built:
    """A serialised engine and how it came about."""

    plan: bytes
    typing: str
    """``strong`` or ``weak``."""
    seconds: float
    """Time that the build took."""
    cache: str
    """``new``, ``reused``, or ``rejected``: it was of another device and has been replaced."""
    notes: tuple[str, ...]
    """Why another way than the asked one was taken."""


def build_engine(
    onnx: bytes,
    profile: Profile,
    options: EngineOptions,
    *,
    trt: Any,
    name: str = "the model",
    timing_cache: Path | None = None,
) -> Built:
    """Build one engine.

    Args:
        onnx: A trunk, its types as wanted, weights inside.
        profile: Of its input ``mel``.
        options: Typing, workspace, compatibility.
        trt: The ``tensorrt`` module, from `load_tensorrt`.
        name: Of the ONNX file, for messages.
        timing_cache: Read where it exists; written after the build.

    Raises:
        TensorRTUnavailable: There is no usable NVIDIA driver.
        ParseError: The ONNX parser refused the graph.
        BuildError: The build failed.
    """
    start = time.perf_counter()
    first = "weak" if options.typing == "weak" else "strong"
    notes: tuple[str, ...] = ()
    if first == "weak" and not _has_weak(trt):
        raise BuildError(
            f"TensorRT {trt.__version__} has no weak typing any more.", fix="Use --typing auto."
        )
    job = _Job(onnx, profile, options, trt, name, read_cache(timing_cache))
    plan, failed = b"", ""
    try:
        plan = job.run(first)
    except (ParseError, BuildError) as error:
        old = version_tuple(trt)[:2] < STRONG_SINCE
        if options.typing != "auto" or not old or not _has_weak(trt):
            raise
        failed = error.message
    if failed:
        # Out of the except block, whose traceback would keep the first network in memory.
        first, notes = "weak", (f"Strong typing failed, so weak was used: {failed}",)
        plan = job.run(first)
    write_cache(timing_cache, job.cache_out)
    return Built(plan, first, time.perf_counter() - start, job.cache_state, notes)


def _has_weak(trt: Any) -> bool:
    return hasattr(trt.BuilderFlag, "INT8") and hasattr(trt.BuilderFlag, "FP16")


class _Job:
    """One ONNX file on its way; each `run` starts from nothing."""

    def __init__(
        self,
        onnx: bytes,
        profile: Profile,
        options: EngineOptions,
        trt: Any,
        name: str,
        cache: bytes,
    ) -> None:
        self._onnx, self._profile, self._options = onnx, profile, options
        self._trt, self._name, self._cache_in = trt, name, cache
        self.cache_out = b""
        self.cache_state = "new"

    def run(self, typing: str) -> bytes:
        trt = self._trt
        logger = make_logger(trt)
        try:
            builder = trt.Builder(logger)
        except TypeError as error:
            raise no_driver(error) from None
        flags = 0
        if typing == "strong":
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        # The network's weights belong to the parser: it must live until the build is done.
        parser = trt.OnnxParser(network, logger)
        self._parse(parser, logger)
        self._check_ports(network)
        config = builder.create_builder_config()
        self._configure(config, typing)
        self._add_profile(config, builder)
        self._use_cache(config)
        blob = builder.build_serialized_network(network, config)
        if blob is None:
            raise BuildError(
                f"TensorRT {trt.__version__} could not build {self._name} ({typing} typing): "
                f"{logger.said()}",
                fix="Raise --workspace-mb, or build another precision; the ONNX file runs in "
                "ONNX Runtime as it is.",
            )
        cache = config.get_timing_cache()
        self.cache_out = b"" if cache is None else bytes(cache.serialize())
        return bytes(blob)

    def _parse(self, parser: Any, logger: Any) -> None:
        if parser.parse(self._onnx):
            return
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = [
            f"{e.node_name() or 'the graph'} ({e.node_operator() or 'no operator'}): {e.desc()}"
            for e in errors[:MAX_PARSE_ERRORS]
        ]
        if len(errors) > MAX_PARSE_ERRORS:
            lines.append(f"and {len(errors) - MAX_PARSE_ERRORS} more")
        raise ParseError(
            f"TensorRT {self._trt.__version__} cannot read {self._name}: "
            f"{'; '.join(lines) or logger.said()}",
            fix="frami-edge export lints graphs for TensorRT: export again and look at its table.",
        )

    def _check_ports(self, network: Any) -> None:
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        found = [(t.name, t.dtype) for t in (*inputs, *outputs)]
        wanted = [(n, self._trt.DataType.FLOAT) for n in (TRUNK_INPUT, TRUNK_OUTPUT)]
        if found != wanted:
            ports = ", ".join(f"{name} {dtype}" for name, dtype in found)
            raise BuildError(
                f"{self._name} has {ports or 'no ports'}, not float32 {TRUNK_INPUT} and "
                f"{TRUNK_OUTPUT}: it is no trunk.",
                fix="Give a streaming file of frami-edge export, such as student.fp16.onnx.",
            )

    def _configure(self, config: Any, typing: str) -> None:
        trt, options = self._trt, self._options
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
        verbosity = trt.ProfilingVerbosity
        config.profiling_verbosity = (
            verbosity.DETAILED if options.detailed else verbosity.LAYER_NAMES_ONLY
        )
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if typing == "weak":
            # Explicit Q/DQ needs the flag in weak mode (NVIDIA/TensorRT#4021). TensorRT 11 has
            # neither flag; `_has_weak` was asked before.
            for flag in ("FP16", "INT8"):
                config.set_flag(getattr(trt.BuilderFlag, flag, None))
        if options.compat == "version":
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        elif options.compat == "ampere+":
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def _add_profile(self, config: Any, builder: Any) -> None:
        profile = builder.create_optimization_profile()
        profile.set_shape(TRUNK_INPUT, self._profile.low, self._profile.usual, self._profile.high)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"TensorRT refused the profile {self._profile.as_dict()} of {self._name}.",
                fix="Choose other --seconds.",
            )

    def _use_cache(self, config: Any) -> None:
        """Kernel times of an earlier build; those of another device are rejected and replaced."""
        self.cache_state = "reused" if self._cache_in else "new"
        if self._cache_in:
            cache = config.create_timing_cache(self._cache_in)
            # The second argument would accept another device's times.
            if cache is not None and config.set_timing_cache(cache, False):
                return
            self.cache_state = "rejected"
        config.set_timing_cache(config.create_timing_cache(b""), False)
