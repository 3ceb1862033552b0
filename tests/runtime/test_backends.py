"""Which backend runs what, and ONNX Runtime's GPU providers as far as a CPU can prove them.

The sessions of these tests are real and run on the CPU; what is faked is what they say about
providers, and what was asked of them is recorded.
"""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from stream_kit import listen

from frami_edge_runtime.backends import choose_backend, open_backend
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import BackendError, ModelFileError

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
GPU_BUILD = [TENSORRT, CUDA, CPU]
real_session = onnxruntime.InferenceSession


class Recorder:
    """Stands in for ``onnxruntime.InferenceSession`` and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.shapes = []
        self.running = None
        self.stray = None
        self.broken = ""
        self.told = True
        self.fallback_off = 0

    def __call__(self, data, options, providers, **rest):
        self.asked.append(providers)
        names = [p if isinstance(p, str) else p[0] for p in providers]
        if names != [CPU] and self.broken:
            print("EP Error: falling back")
            raise RuntimeError(self.broken)
        assert rest == {"enable_fallback": 0}
        return Session(self, real_session(data, options, providers=[CPU]), names)


class Session:
    def __init__(self, recorder, session, names):
        self.recorder, self.session, self.names = recorder, session, names
        if names != [CPU] and recorder.told:
            self.get_provider_graph_assignment_info = self.parts

    def __getattr__(self, name):
        if name == "get_provider_graph_assignment_info":
            raise AttributeError(name)
        return getattr(self.session, name)

    def get_providers(self):
        return self.recorder.running or self.names

    def parts(self):
        node = SimpleNamespace(op_type="Conv")
        stray = SimpleNamespace(op_type="Conv" if self.recorder.stray else "Squeeze")
        return [
            SimpleNamespace(ep_name=self.names[0], get_nodes=lambda: [node]),
            SimpleNamespace(ep_name=self.recorder.stray or CPU, get_nodes=lambda: [stray]),
        ]

    def disable_fallback(self):
        self.recorder.fallback_off += 1

    def run(self, outputs, feeds):
        if "mel" in feeds:
            self.recorder.shapes.append(feeds["mel"].shape)
        return self.session.run(outputs, feeds)


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    found = Recorder()
    monkeypatch.setattr(onnxruntime, "InferenceSession", found)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_BUILD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def test_auto_takes_the_cpu_for_onnx_and_tensorrt_for_engines(model_path, tiny, tmp_path):
    for source in (model_path, tiny.data, tmp_path / "none.onnx"):
        assert choose_backend(source)[0] == "cpu"
    plan = tmp_path / "plan"
    plan.write_bytes(b"ftrt" + bytes(40))
    for engine in (tmp_path / "none.engine", str(plan), b"ftrt" + bytes(40)):
        assert choose_backend(engine)[0] == "tensorrt"
    classifier = Classifier(model_path, "cpu")
    assert (classifier.backend, classifier.backend_reason) == ("cpu", "it was asked for")


def test_a_backend_that_cannot_run_the_file_is_refused(model_path, tmp_path):
    with pytest.raises(BackendError, match="'gpu' is unknown"):
        Classifier(model_path, backend="gpu")
    for backend in ("cpu", "cuda", "tensorrt-ep"):
        with pytest.raises(BackendError, match="cannot run a TensorRT engine"):
            Classifier(tmp_path / "a.engine", backend)
    with pytest.raises(BackendError, match="cannot run an ONNX file"):
        Classifier(model_path, "tensorrt")


def test_a_missing_provider_is_named_with_those_that_are_there(model_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["XyzProvider", CPU])
    for backend in ("cuda", "tensorrt-ep"):
        with pytest.raises(BackendError, match=f"has XyzProvider, {CPU}") as caught:
            Classifier(model_path, backend)
        assert "pip install onnxruntime-gpu" in caught.value.fix


def test_cuda_is_asked_for_with_its_options(model_path, recorder, classifier, clip):
    found = Classifier(model_path, "cuda", threads=2)
    (provider, options), last = recorder.asked[1]
    assert (provider, last) == (CUDA, CPU)
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert recorder.fallback_off == 1
    assert found.backend == "cuda"
    assert np.allclose(found.classify(clip).logits, classifier.classify(clip).logits, atol=1e-5)
    assert recorder.asked[0] == recorder.asked[2] == [CPU], "description and head stay on the CPU"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tensorrt_is_asked_for_with_profile_and_caches(
    build_model, recorder, tmp_path, clip, precision
):
    found = Classifier(build_model(precision=precision).data, "tensorrt-ep")
    (provider, options), (second, _), last = recorder.asked[1]
    assert [provider, second, last] == GPU_BUILD
    assert options["trt_int8_enable"] == str(precision == "int8")
    assert options["trt_profile_min_shapes"] == "mel:1x1x16x9"
    assert options["trt_profile_opt_shapes"] == "mel:1x1x16x72"
    assert options["trt_profile_max_shapes"] == "mel:32x1x16x135"
    cache = tmp_path / "cache" / "frami-edge" / f"onnxruntime-{onnxruntime.__version__}"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(cache)
    assert cache.is_dir()
    Classifier(build_model(seed=1).data, "tensorrt-ep")
    prefixes = {asked[0][1]["trt_engine_cache_prefix"] for asked in recorder.asked[1::3]}
    assert len(prefixes) == 2, "students must not share an engine"
    found.classify(clip)
    listen(found.stream(window_s=2.0), clip, [9000] * 3)
    assert {s[:3] for s in recorder.shapes} == {(1, 1, 16)}
    widths = {s[3] for s in recorder.shapes}
    assert min(widths) >= 9
    assert max(widths) == 135, "the longest run is the profile's end"


def test_shapes_outside_the_profile_are_refused(tiny, recorder):
    model = open_backend(tiny.data, "tensorrt-ep")
    for shape in ((33, 1, 16, 20), (1, 1, 16, 136)):
        with pytest.raises(ModelFileError, match="at most 32 clips of 135 mel frames"):
            model.frames(np.zeros(shape, np.float32))
    assert model.frames(np.zeros((32, 1, 16, 135), np.float32)).shape == (32, 12, 64)


def test_int8_that_tensorrt_would_misread_is_refused(build_model, recorder):
    data = build_model(precision="int8", quantisation={"flavour": "U8S8"}).data
    with pytest.raises(BackendError, match="quantised as U8S8") as caught:
        Classifier(data, "tensorrt-ep")
    assert "int8.trt" in caught.value.fix
    Classifier(data, "cuda")
    Classifier(build_model(precision="int8", quantisation={"flavour": "S8S8"}).data, "tensorrt-ep")


def test_portable_int8_is_refused_where_it_would_be_computed_in_float(build_model, monkeypatch):
    portable, other = (
        build_model(precision="int8", quantisation={"flavour": flavour}).data
        for flavour in ("S8S8 portable", "S8S8")
    )
    monkeypatch.setattr("onnxruntime.__version__", "1.21.0")
    Classifier(portable)
    monkeypatch.setattr("onnxruntime.__version__", "1.20.1")
    Classifier(other)
    with pytest.raises(BackendError, match=r"from version 1\.21 on; 1\.20\.1") as caught:
        Classifier(portable)
    assert "int8.cpu" in caught.value.fix


@pytest.mark.parametrize(("backend", "provider"), [("cuda", CUDA), ("tensorrt-ep", TENSORRT)])
def test_a_silent_fallback_is_an_error(model_path, recorder, backend, provider):
    recorder.running = [CPU]
    with pytest.raises(BackendError, match=f"could not start its {provider}") as caught:
        Classifier(model_path, backend)
    assert f"student.onnx would run on {CPU}" in caught.value.message
    recorder.running, recorder.stray = None, CPU
    with pytest.raises(BackendError, match=f"left convolutions to {CPU}"):
        Classifier(model_path, backend)
    recorder.stray = None
    Classifier(model_path, backend)
    recorder.told, recorder.running = False, [provider, CPU]  # as in ONNX Runtime 1.23
    Classifier(model_path, backend)


def test_the_real_session_reports_where_nodes_went(model_path, monkeypatch):
    """ONNX Runtime's own answer has the form that the check reads."""
    if not hasattr(real_session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not report where nodes went")

    def on_cpu(data, options, providers, **rest):
        session = real_session(data, options, providers=[CPU], **rest)
        session.get_providers = lambda: [CUDA, CPU]
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_BUILD)
    with pytest.raises(BackendError, match=f"left convolutions to {CPU}"):
        Classifier(model_path, "cuda")
