"""A GPU that is not there: a compiled libcudart, and TensorRT's bindings on top of it.

The fake CUDA runtime is C; the fake bindings keep an ONNX file in the plan and run it on the
pointers that they are given. So the whole path is real but for the GPU.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frami_edge_runtime.modelfile import HEAD_KEY, TRUNK_INPUT, TRUNK_OUTPUT
from frami_edge_runtime.tensorrt import EngineCard, write_sidecar

HEADER = b"ftrt" + bytes(20) + bytes([10, 3, 0, 30])
Shape = tuple[int, ...]


class Gpu:
    """The compiled fake, as tests steer it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)

    def reset(self) -> None:
        self._library.fake_reset()

    def fail(self, name: str, call: int = 1, code: int = 700) -> None:
        self._library.fake_fail(name.encode(), call, code)

    def calls(self, name: str) -> int:
        return int(self._library.fake_calls(name.encode()))

    def machine(self, count: int, major: int, minor: int) -> None:
        self._library.fake_gpu(count, major, minor)

    def live(self) -> int:
        return int(self._library.fake_live())

    def sweep(self) -> None:
        """Free what a test made the runner lose."""
        self._library.fake_sweep()


class FakeEngine:
    def __init__(self, trt: Any, onnx: bytes, shapes: list[Shape]) -> None:
        import onnxruntime

        self.trt, self.shapes, self.num_io_tensors = trt, shapes, 2
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, index: int) -> str:
        return (TRUNK_INPUT, self.trt.output_name)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType.HALF if name == self.trt.half else self.trt.DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        assert (name, profile_index) == (TRUNK_INPUT, 0)
        return self.shapes

    def create_execution_context(self) -> Any:
        return None if "create_execution_context" in self.trt.refused else FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.addresses, self.shape = engine, dict[str, int](), Shape()
        engine.trt.contexts.append(self)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return "set_tensor_address" not in self.engine.trt.refused

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        assert name == TRUNK_INPUT
        low, _, high = self.engine.shapes
        inside = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        if "set_input_shape" in self.engine.trt.refused or not inside:
            return False
        self.shape = tuple(shape)
        self.engine.trt.shapes_set += 1
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        assert name == TRUNK_OUTPUT
        shape = [1 if isinstance(n, str) else n for n in self.engine.session.get_outputs()[0].shape]
        stride, field = self.engine.trt.stride, self.engine.trt.field
        return [self.shape[0], shape[1], (self.shape[3] - field) // stride + 1]

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle
        trt = self.engine.trt
        if "execute_async_v3" in trt.refused:
            trt.log(trt.ILogger.Severity.ERROR, "Cask convolution execution failed")
            return False
        time.sleep(trt.run_s)
        size = int(np.prod(self.shape))
        memory = (ctypes.c_float * size).from_address(self.addresses[TRUNK_INPUT])
        mel = np.ctypeslib.as_array(memory).reshape(self.shape).copy()
        frames = self.engine.session.run(None, {TRUNK_INPUT: mel})[0] + trt.error
        ctypes.memmove(self.addresses[TRUNK_OUTPUT], frames.ctypes.data, frames.nbytes)
        return True


class FakeTensorRT(types.ModuleType):
    """As much of the bindings as the runner may use, with switches for each way to fail."""

    def __init__(self, tiny: Any, shapes: list[Shape]) -> None:
        super().__init__("tensorrt")
        self.__version__ = "10.3.0"
        self.refused: set[str] = set()
        self.contexts: list[FakeContext] = []
        self.shapes_set, self.error, self.half, self.output_name = 0, 0.0, "", TRUNK_OUTPUT
        self.run_s, self.host_code = 0.0, False
        self.stride, self.field = tiny.info.stride, tiny.info.receptive_field
        self.log: Callable[[Any, str], None] = lambda severity, message: None
        trt = self

        class Severity(enum.Enum):
            INTERNAL_ERROR, ERROR, WARNING = range(3)

        class ILogger:
            pass

        ILogger.Severity = Severity  # type: ignore[attr-defined]

        class DataType(enum.Enum):
            FLOAT, HALF = range(2)

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger: Any) -> None:
                if "Runtime" in trt.refused:
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                trt.log = logger.log

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                trt.log(Severity.WARNING, "a mere warning")
                if trt.host_code and not self.engine_host_code_allowed:
                    trt.log(Severity.ERROR, "host code is not allowed")
                    return None
                if "deserialize_cuda_engine" in trt.refused:
                    trt.log(Severity.ERROR, "Serialization assertion failed.")
                    return None
                return FakeEngine(trt, plan[len(HEADER) :], shapes)

        self.ILogger, self.DataType, self.Runtime = ILogger, DataType, Runtime


def save_engine(folder: Path, tiny: Any, shapes: list[Shape], **changes: Any) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(tiny.data)
    head = next(p.value for p in model.metadata_props if p.key == HEAD_KEY)
    plan = HEADER + tiny.data
    path = folder / "student.fp32.engine"
    path.write_bytes(plan)
    values: dict[str, Any] = {
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "engine_bytes": len(plan),
        "onnx_name": "student.fp32.onnx",
        "onnx_sha256": hashlib.sha256(tiny.data).hexdigest(),
        "tensorrt": "10.3.0.30",
        "precision": "fp32",
        "sm": "8.7",
        "gpu": "Orin",
        "driver": "540.4.0",
        "profile": dict(zip(("min", "opt", "max"), shapes, strict=True)),
        "model": tiny.info.to_json(),
        "head_onnx": head,
    }
    write_sidecar(path, EngineCard(**{**values, **changes}))
    return path
