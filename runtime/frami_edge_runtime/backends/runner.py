"""One deserialised TensorRT engine with its buffers: shapes in, bytes out.

Only API that TensorRT 10.3 to 11.4 all have is used. All buffers are allocated once, at the
profile's maximum, and serve every shape.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.backends.cudart import TO_DEVICE, TO_HOST, Cudart
from frami_edge_runtime.enginecard import REBUILD, EngineCard
from frami_edge_runtime.errors import BackendError, EngineError
from frami_edge_runtime.modelfile import TRUNK_INPUT, TRUNK_OUTPUT

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
