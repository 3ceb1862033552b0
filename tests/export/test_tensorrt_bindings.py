"""Every TensorRT name that we use, against NVIDIA's real bindings of 10.3, 10.13, 10.16 and 11.4.

The bindings (1.2 MB each) import without TensorRT or a GPU once a stub library gives them their
nine symbols. ``python tests/export/tensorrt_stub/fetch.py`` fetches them once; without them, or
without a C compiler, these tests are skipped and say so.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_stub.fetch import RELEASES, binding_folder

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).with_name("tensorrt_stub")
SOURCES = [
    ROOT / "export/frami_edge_export/engine.py",
    ROOT / "runtime/frami_edge_runtime/tensorrt.py",
]
NO_DRIVER = """
import sys
sys.modules["tensorrt"] = __import__("tensorrt_bindings")
from pathlib import Path
from frami_edge_export.engine import EngineSource, TensorRTUnavailable, build_engine
from frami_edge_runtime.errors import BackendError
from frami_edge_runtime.tensorrt import create, import_tensorrt, make_logger
trt = import_tensorrt()
logger = make_logger(trt)
logger.log(trt.ILogger.Severity.WARNING, "a mere warning")
logger.log(trt.ILogger.Severity.ERROR, "one\\ntwo")
assert logger.last() == "one two", logger.last()
source = EngineSource("fp32", "s.onnx", b"", None, "", "")
for act in (lambda: build_engine(source, {}, trt, Path("x")), lambda: create(trt.Runtime, logger)):
    try:
        act()
    except (TensorRTUnavailable, BackendError) as error:
        assert "no usable NVIDIA driver" in error.message
    else:
        raise SystemExit("a stub was taken for a driver")
heavy = {"torch", "onnx", "onnxscript"} & set(sys.modules)
assert not heavy, heavy
print("refused")
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Folders ``10`` and ``11`` with the three libraries that the bindings load."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler for the stub library")
    folder = tmp_path_factory.mktemp("stub")
    for major in ("10", "11"):
        (folder / major).mkdir()
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            target = folder / major / f"lib{library}.so.{major}"
            command = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{target.name}"]
            subprocess.run([*command, "-o", target, STUB / "stub.c"], check=True)
    return folder


@pytest.fixture(params=list(RELEASES))
def bindings(request, stubs):
    """Environment of a subprocess that can import one release's bindings."""
    folder = binding_folder(request.param)
    if not (folder / "tensorrt_bindings").is_dir():
        pytest.skip(
            f"TensorRT's bindings {request.param} are not in {folder.parent}: "
            "run python tests/export/tensorrt_stub/fetch.py"
        )
    path = os.pathsep.join(map(str, (folder, ROOT / "export", ROOT / "runtime")))
    stub = str(stubs / request.param.split(".")[0])
    return {**os.environ, "LD_LIBRARY_PATH": stub, "PYTHONPATH": path}


def check(env, *sources):
    command = [sys.executable, STUB / "names.py", *sources]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found


def test_every_name_exists(bindings):
    found = check(bindings, *SOURCES)
    assert found["missing"] == []
    assert set(found["used"]) >= {
        "Builder.build_serialized_network", "BuilderFlag.TF32", "IBuilderConfig.set_timing_cache",
        "ICudaEngine.get_tensor_profile_shape", "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_input_shape", "ILogger.Severity.WARNING",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ParserError.node_name",
        "Runtime.deserialize_cuda_engine",
    }  # fmt: skip


def test_a_wrong_name_is_found(bindings, tmp_path):
    """The check itself: two names that no release has, and one that TensorRT 11 removed."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "def build_engine(trt, builder, config):\n"
        "    config.max_workspace_size = 1\n"
        "    trt.EngineBuilder\n"
        "    config.set_flag(trt.BuilderFlag.INT8)\n"
    )
    found = check(bindings, wrong)
    removed = ["BuilderFlag.INT8"] if found["version"].startswith("11.") else []
    assert found["missing"] == [*removed, "EngineBuilder", "IBuilderConfig.max_workspace_size"]


def test_without_a_driver_the_real_bindings_give_our_sentence(bindings):
    command = [sys.executable, "-c", NO_DRIVER]
    done = subprocess.run(command, env=bindings, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "refused", done.stderr
