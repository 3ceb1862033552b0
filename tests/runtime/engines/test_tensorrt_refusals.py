"""TensorRT engines that cannot run: every failure in words, before harm, with nothing leaked."""

from __future__ import annotations

import base64
import ctypes
import gc
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeContext, FakeTensorRT, Gpu, Shape, save_engine

from frami_edge_runtime import tensorrt as cudart
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import BackendError, EngineError, ModelFileError
from frami_edge_runtime.modelfile import TRUNK_INPUT, TRUNK_OUTPUT


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


def test_code_in_a_plan_runs_only_where_the_sidecar_says_so(
    engine: Path, trt: FakeTensorRT, tiny: Any, shapes: list[Shape], tmp_path: Path
) -> None:
    trt.host_code = True
    with pytest.raises(EngineError, match="host code is not allowed"):
        Classifier(engine)
    save_engine(tmp_path, tiny, shapes, compat="version")
    trt.__version__ = "10.13.3.9"
    Classifier(engine)


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
            found = cudart.Cudart(candidate).sm()
        except BackendError as error:
            found = error.message
        assert re.search(r"^\d+\.\d$|cudaGetDeviceCount failed: cudaError", found)
        return
    pytest.skip("no libcudart here: ITS SYMBOLS ARE NOT CHECKED")
