"""TensorRT engines on a fake GPU: same answers as ONNX, nothing leaked, every failure in words.

The fake CUDA runtime is C, compiled here; the fake bindings keep an ONNX file in the plan and run
it on the pointers that they are given. So the whole path is real but for the GPU.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import gc
import hashlib
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frami_edge_runtime import BackendError, Classifier, EngineError, ModelFileError
from frami_edge_runtime.backends import cudart
from frami_edge_runtime.enginefile import EngineCard, write_sidecar
from frami_edge_runtime.modelfile import HEAD_KEY, TRUNK_INPUT, TRUNK_OUTPUT

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
        self.run_s = 0.0
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
            def __init__(self, logger: Any) -> None:
                if "Runtime" in trt.refused:
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                trt.log = logger.log

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                trt.log(Severity.WARNING, "a mere warning")
                if "deserialize_cuda_engine" in trt.refused:
                    trt.log(Severity.ERROR, "Serialization assertion failed.")
                    return None
                return FakeEngine(trt, plan[len(HEADER) :], shapes)

        self.ILogger, self.DataType, self.Runtime = ILogger, DataType, Runtime


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: THE TENSORRT RUNNER IS NOT TESTED HERE")
    library = tmp_path_factory.mktemp("cuda") / "libcudart.so.12"
    source = Path(__file__).with_name("fake_cudart.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True, timeout=60)
    return Gpu(library)


@pytest.fixture
def gpu(compiled: Gpu, monkeypatch: pytest.MonkeyPatch) -> Any:
    gc.collect()
    assert compiled.live() == 0, "an earlier test leaked GPU memory"
    compiled.reset()
    monkeypatch.setattr(cudart, "_candidates", lambda: [compiled.path])
    yield compiled
    gc.collect()
    assert compiled.live() == 0, "GPU memory was leaked"


@pytest.fixture
def shapes(tiny: Any) -> list[Shape]:
    field, stride = tiny.info.receptive_field, tiny.info.stride
    return [(1, 1, 16, field), (1, 1, 16, 60), (4, 1, 16, field + 63 * stride)]


@pytest.fixture
def trt(gpu: Gpu, tiny: Any, shapes: list[Shape], monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    module = FakeTensorRT(tiny, shapes)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


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


@pytest.fixture
def engine(trt: FakeTensorRT, tiny: Any, shapes: list[Shape], tmp_path: Path) -> Path:
    return save_engine(tmp_path, tiny, shapes)


def test_an_engine_gives_the_scores_of_its_onnx_file(
    engine: Path, classifier: Classifier, clip: np.ndarray, gpu: Gpu, trt: FakeTensorRT
) -> None:
    found = Classifier(engine)
    assert (found.backend, found.backend_reason) == ("tensorrt", "the model is a TensorRT engine")
    assert found.labels == classifier.labels
    for x in (clip, clip[:1000], clip[:50], clip[:20_000]):
        expected = classifier.classify(x)
        assert np.abs(found.classify(x).logits - expected.logits).max() < 1e-5
        assert found.classify(x).label == expected.label
    for options in ({"window_s": 0.5}, {"forget_s": 0.3, "hop_s": 0.1}):
        streams = [c.stream(**options) for c in (found, classifier)]  # type: ignore[arg-type]
        for start in range(0, len(clip), 700):
            mine, other = (s.push(clip[start : start + 700]) for s in streams)
            assert [r.t1 for r in mine] == [r.t1 for r in other]
            for a, b in zip(mine, other, strict=True):
                assert np.abs(a.logits - b.logits).max() < 1e-5
    assert gpu.calls("cudaMalloc") == gpu.calls("cudaHostAlloc") == 2, "allocated once, for ever"
    assert gpu.calls("cudaStreamCreate") == 1
    assert len(trt.contexts) == 1


def test_results_stay_and_shapes_are_set_only_when_they_change(
    engine: Path, trt: FakeTensorRT
) -> None:
    model = Classifier(engine)._model
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((4, 1, 16, 30)).astype(np.float32)
    before = trt.shapes_set
    first = model.frames(mel)
    kept = first.copy()
    model.frames(mel[::-1])  # not contiguous
    assert trt.shapes_set == before + 1
    assert np.array_equal(first, kept)
    assert np.array_equal(model.frames(mel[::-1]), kept[::-1])
    assert (model.max_batch, model.max_mel_frames) == (4, 135)


def test_a_short_profile_bounds_the_runs(
    trt: FakeTensorRT,
    tiny: Any,
    shapes: list[Shape],
    tmp_path: Path,
    classifier: Classifier,
    clip: np.ndarray,
) -> None:
    field = tiny.info.receptive_field
    for frames in (field, field + 1, field + 2, field + 9):
        shapes[1:] = [(1, 1, 16, field), (1, 1, 16, frames)]
        found = Classifier(save_engine(tmp_path, tiny, shapes))
        x = clip[:5000]
        assert np.abs(found.classify(x).logits - classifier.classify(x).logits).max() < 1e-5


def test_threads_share_one_engine(
    engine: Path, trt: FakeTensorRT, classifier: Classifier, clip: np.ndarray
) -> None:
    found = Classifier(engine)
    trt.run_s = 0.002  # long enough for another thread to come between
    parts = [clip[i * 3000 : (i + 1) * 3000 + 500 * i] for i in range(6)]
    answers: dict[int, np.ndarray] = {}
    workers = [
        threading.Thread(target=lambda i=i: answers.update({i: found.classify(parts[i]).logits}))
        for i in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, part in enumerate(parts):
        assert np.abs(answers[i] - classifier.classify(part).logits).max() < 1e-5


def test_closing_frees_the_gpu(engine: Path, gpu: Gpu, clip: np.ndarray) -> None:
    model = Classifier(engine)
    assert gpu.live() == 5  # two buffers on each side, one stream
    model.close()
    model.close()
    assert gpu.live() == 0
    with pytest.raises(EngineError, match="was closed"):
        model.classify(clip)
    with Classifier(engine) as again:
        again.classify(clip)
    assert gpu.live() == 0


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        ("cudaStreamCreate", 1),
        ("cudaMalloc", 1),
        ("cudaMalloc", 2),
        ("cudaHostAlloc", 1),
        ("cudaHostAlloc", 2),
        ("cudaMemcpyAsync", 1),
        ("cudaMemcpyAsync", 4),
        ("cudaStreamSynchronize", 2),
    ],
)
def test_a_failing_cuda_call_is_named_and_leaks_nothing(
    engine: Path, gpu: Gpu, call: str, nth: int
) -> None:
    gpu.fail(call, nth, 2)
    with pytest.raises(EngineError) as caught:
        Classifier(engine)
    said = caught.value.message
    assert said.startswith("student.fp32.engine: " + call)
    assert "cudaErrorMemoryAllocation (2), out of memory" in said
    assert caught.value.fix
    if call == "cudaMalloc":
        assert " bytes failed" in said
    gc.collect()
    assert gpu.live() == 0


def test_a_gpu_that_dies_later_is_reported_and_closed(
    engine: Path, gpu: Gpu, clip: np.ndarray
) -> None:
    model = Classifier(engine)
    for call in ("cudaMemcpyAsync", "cudaStreamSynchronize"):
        gpu.fail(call, 1, 700)
        with pytest.raises(EngineError, match=r"cudaErrorIllegalAddress \(700\)"):
            model.classify(clip)
    for call in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy"):
        gpu.fail(call, 1, 700)
    model.close()  # must not raise, though each of its calls fails once
    assert gpu.live() == 3
    gpu.sweep()


@pytest.mark.parametrize(
    ("refused", "words", "kind"),
    [
        ("Runtime", "no usable NVIDIA driver", BackendError),
        ("deserialize_cuda_engine", "could not load it: Serialization assertion", EngineError),
        ("create_execution_context", "no execution context", EngineError),
        ("set_tensor_address", "refused the buffer of mel", EngineError),
        ("set_input_shape", r"refused the shape \(1, 1, 16, 11\)", EngineError),
        ("execute_async_v3", "could not run it: Cask convolution", EngineError),
    ],
)
def test_what_tensorrt_refuses_is_said(
    engine: Path, trt: FakeTensorRT, refused: str, words: str, kind: type[Exception]
) -> None:
    trt.refused.add(refused)
    with pytest.raises(kind, match=words) as caught:
        Classifier(engine)
    assert type(caught.value) is kind
    assert "warning" not in str(caught.value)


def test_shapes_outside_the_profile_never_reach_tensorrt(engine: Path, trt: FakeTensorRT) -> None:
    model = Classifier(engine)._model
    before = trt.shapes_set
    for shape in ((5, 1, 16, 20), (1, 1, 16, 8), (1, 1, 16, 136), (1, 1, 15, 20), (16, 20)):
        with pytest.raises(EngineError, match="outside the profile"):
            model.frames(np.zeros(shape, np.float32))
    assert trt.shapes_set == before
    trt.refused.add("set_input_shape")
    with pytest.raises(EngineError, match="refused the shape"):
        model.frames(np.zeros((1, 1, 16, 40), np.float32))
    trt.refused.clear()
    assert model.frames(np.zeros((1, 1, 16, 40), np.float32)).shape == (1, 12, 16)
    trt.refused.add("set_input_shape")
    with pytest.raises(EngineError, match="refused the shape"):
        model.frames(np.zeros((1, 1, 16, 50), np.float32))
    with pytest.raises(EngineError, match="refused the shape"):
        model.frames(np.zeros((1, 1, 16, 40), np.float32))  # what TensorRT now holds is unknown


def test_an_engine_of_another_machine_is_never_deserialised(
    engine: Path, trt: FakeTensorRT, gpu: Gpu
) -> None:
    trt.refused.update(("Runtime", "deserialize_cuda_engine"))  # would be another message
    trt.__version__ = "11.4.0.106"
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0\.30 .* TensorRT 11\.4\.0\.106"):
        Classifier(engine)
    trt.__version__ = "10.3.0"
    gpu.machine(1, 11, 0)
    with pytest.raises(EngineError, match=r"SM 8\.7 \(Orin\); .* SM 11\.0"):
        Classifier(engine)
    assert gpu.calls("cudaMalloc") == 0


def test_damaged_files_are_refused_before_the_gpu_is_touched(
    engine: Path, tiny: Any, gpu: Gpu, tmp_path: Path
) -> None:
    plan = engine.read_bytes()
    cases = [
        (plan[:20], "cut off after 20"),
        (plan[:-1], "cut off or replaced"),
        (plan[:-1] + bytes([plan[-1] ^ 1]), "sha256 differs"),
        (plan[:24] + bytes([11]) + plan[25:], "sha256 differs"),
        (b"", "no TensorRT engine"),
        (tiny.data, "no TensorRT engine"),
    ]
    for data, words in cases:
        engine.write_bytes(data)
        with pytest.raises(EngineError, match=words):
            Classifier(engine)
    engine.write_bytes(plan)
    (tmp_path / "student.fp32.engine.json").unlink()
    with pytest.raises(EngineError, match=r"no student\.fp32\.engine\.json beside it"):
        Classifier(engine)
    engine.unlink()
    with pytest.raises(EngineError, match="Cannot read the engine"):
        Classifier(engine)
    with pytest.raises(EngineError, match="bytes"):
        Classifier(plan)
    assert gpu.calls("cudaGetDeviceCount") == 0


def test_a_sidecar_that_the_engine_contradicts_is_refused(
    engine: Path,
    trt: FakeTensorRT,
    tiny: Any,
    shapes: list[Shape],
    tmp_path: Path,
    build_model: Any,
) -> None:
    trt.output_name = "logits"
    with pytest.raises(EngineError, match="has logits, mel; wanted are mel and frames"):
        Classifier(engine)
    trt.output_name, trt.half = TRUNK_OUTPUT, TRUNK_INPUT
    with pytest.raises(EngineError, match="both float32"):
        Classifier(engine)
    trt.half = ""
    save_engine(tmp_path, tiny, [*shapes[:2], (4, 1, 16, 130)])
    with pytest.raises(EngineError, match=r"built for max \(4, 1, 16, 135\)"):
        Classifier(engine)
    save_engine(tmp_path, tiny, shapes, head_onnx=base64.b64encode(b"junk").decode())
    with pytest.raises(ModelFileError, match=r"student\.fp32\.engine, frami\.head_onnx"):
        Classifier(engine)
    save_engine(tmp_path, tiny, shapes)
    trt.stride = 3
    with pytest.raises(EngineError, match="its sidecar says"):
        Classifier(engine)


def test_an_engine_that_looks_beyond_its_field_is_refused(
    engine: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeContext.execute_async_v3

    def clipwise(self: FakeContext, stream_handle: int) -> bool:
        self.engine.trt.error = 0.01 * self.shape[3]
        return run(self, stream_handle)

    monkeypatch.setattr(FakeContext, "execute_async_v3", clipwise)
    with pytest.raises(ModelFileError, match="not a function of its 9 mel frames"):
        Classifier(engine)


def test_without_a_gpu_the_reason_is_said(
    engine: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu.machine(0, 8, 7)
    with pytest.raises(BackendError, match="it counts no GPU"):
        Classifier(engine)
    gpu.machine(1, 8, 7)
    gpu.fail("cudaGetDeviceCount", 1, 35)
    with pytest.raises(BackendError, match=r"cudaErrorInsufficientDriver \(35\)"):
        Classifier(engine)
    gpu.fail("cudaGetDeviceCount", 1, 35)
    monkeypatch.setattr(cudart, "_candidates", lambda: ["/none.so", gpu.path, gpu.path])
    Classifier(engine)  # the second libcudart fits the driver
    monkeypatch.setattr(cudart, "_candidates", lambda: [str(tmp_path / "libcudart.so.12")])
    with pytest.raises(BackendError, match="libcudart is not installed") as caught:
        Classifier(engine)
    assert "backend='cpu'" in caught.value.fix
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="Python bindings") as caught:
        Classifier(engine)
    assert "never pip install tensorrt" in caught.value.fix


def test_the_usual_places_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.13").touch()
    monkeypatch.setattr(cudart, "_FOLDERS", (str(tmp_path / "nvidia" / "*" / "lib"),))
    found = cudart._candidates()
    assert found[:3] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so"]
    assert found[3:] == [str(folder / "libcudart.so.13")]


def test_a_real_libcudart_has_every_call() -> None:
    """Without a driver its first call fails, by name: as far as a CPU can go with NVIDIA's own."""
    for candidate in cudart._candidates():
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        try:
            capability = cudart.Cudart(candidate).sm()
        except BackendError as error:
            assert "cudaGetDeviceCount failed: cudaError" in error.message
        else:
            assert float(capability) > 1
        return
    pytest.skip("no libcudart here: ITS SYMBOLS ARE NOT CHECKED")
