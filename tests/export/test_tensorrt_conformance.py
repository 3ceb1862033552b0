"""Every TensorRT name that we use, against NVIDIA's real bindings of 10.3, 10.13, 10.16 and 11.4.

The bindings (1.2 MB each) import without TensorRT or a GPU once a stub library gives them their
nine symbols. ``python tests/export/tensorrt_stub/fetch.py`` fetches them once; without them, or
without a C compiler, these tests are skipped and say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorrt_stub.build import build_stub, compiler, environment
from tensorrt_stub.fetch import RELEASES, binding_folder

ROOT = Path(__file__).parents[2]
USES = Path(__file__).parent / "tensorrt_stub" / "uses.py"
SOURCES = sorted(
    path
    for folder in (
        "export/frami_edge_export/tensorrt",
        "runtime/frami_edge_runtime/backends",
    )
    for path in (ROOT / folder).glob("*.py")
)
MUST_BE_SEEN = {
    "Builder.build_serialized_network",
    "Builder.create_network",
    "EngineInspector.get_engine_information",
    "IBuilderConfig.get_timing_cache",
    "IBuilderConfig.set_timing_cache",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_input_shape",
    "ILogger.Severity.WARNING",
    "INetworkDefinition.get_input",
    "IOptimizationProfile.set_shape",
    "ITensor.dtype",
    "ITimingCache.serialize",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser.get_error",
    "ParserError.node_name",
    "Runtime.deserialize_cuda_engine",
}
"""Proof that the reader of our source does find what it should."""
NO_GPU = """
import sys, types
sys.modules["tensorrt"] = __import__("tensorrt_bindings")
package = types.ModuleType("frami_edge_export")  # stands in for what needs torch
package.__path__ = [sys.argv[1]]
sys.modules["frami_edge_export"] = package
from frami_edge_export.tensorrt import EngineOptions, Profile, TensorRTUnavailable, build_engine
from frami_edge_export.tensorrt.available import load_tensorrt
from frami_edge_export.tensorrt.inspection import inspect_plan
from frami_edge_export.tensorrt.messages import make_logger
trt = load_tensorrt()
logger = make_logger(trt)
logger.log(trt.ILogger.Severity.ERROR, "one\\ntwo")
assert logger.said() == "one two", logger.said()
shape = (1, 1, 32, 11)
for act in (
    lambda: build_engine(b"", Profile(shape, shape, shape), EngineOptions(), trt=trt),
    lambda: inspect_plan(trt, b"ftrt"),
):
    try:
        act()
    except TensorRTUnavailable as error:
        assert "no usable NVIDIA driver" in error.message
    else:
        raise SystemExit("a stub was taken for a driver")
import frami_edge_export.tensorrt.__main__
heavy = {"torch", "onnx", "onnxscript"} & set(sys.modules)
assert not heavy, heavy
print("refused")
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if sys.platform != "linux" or compiler() is None:
        pytest.skip("needs Linux and a C compiler for the stub library")
    folder = tmp_path_factory.mktemp("stub")
    return {major: build_stub(folder, major) for major in ("10", "11")}


@pytest.fixture(params=list(RELEASES))
def bindings(request: pytest.FixtureRequest, stubs: dict[str, Path]) -> dict[str, str]:
    """The environment of a subprocess in which one release's bindings can be imported."""
    folder = binding_folder(request.param)
    if not (folder / "tensorrt_bindings").is_dir():
        pytest.skip(
            f"TensorRT's bindings {request.param} are not in {folder.parent}: "
            "run python tests/export/tensorrt_stub/fetch.py"
        )
    stub = stubs[request.param.split(".")[0]]
    return environment(stub, folder, ROOT / "export", ROOT / "runtime")


def check(env: dict[str, str], *files: Path) -> dict[str, Any]:
    command = [sys.executable, str(USES), *map(str, files)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_name_and_call_exists(bindings: dict[str, str]) -> None:
    found = check(bindings, *SOURCES)
    assert found["missing"] == []
    assert set(found["used"]) >= MUST_BE_SEEN


def test_wrong_names_and_arguments_are_found(bindings: dict[str, str], tmp_path: Path) -> None:
    """The test of the test: each line but the last two is wrong in all releases."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "def f(self, engine: Any):\n"
        "    trt = self._trt\n"
        "    trt.EngineBuilder\n"
        "    builder = trt.Builder(None)\n"
        "    network = builder.create_network(0)\n"
        "    config = builder.create_builder_config()\n"
        "    config.max_workspace_size = 1\n"
        "    config.set_flag(trt.BuilderFlag.INT9)\n"
        "    cache = config.create_timing_cache(b'')\n"
        "    cache.save()\n"
        "    self._config = config\n"
        "    engine.binding_is_input(0)\n"
        "    [t.layout for t in [network.get_input(i) for i in range(2)]]\n"
        "    builder.build_serialized_network(network)\n"
        "    config.set_timing_cache(cache, ignore=False)\n"
        "    self.g(builder.create_optimization_profile().shapes)\n"
        "    builder.build_serialized_network(network, config)\n"
        "    getattr(trt.BuilderFlag, 'FP16', None)\n"
    )
    lines = {int(item.split(":")[1]) for item in check(bindings, wrong)["missing"]}
    assert lines == {3, 7, 8, 10, 12, 13, 14, 15, 16}


def test_what_tensorrt_11_removed_is_found(bindings: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / "old.py"
    old.write_text("def f(config: Any):\n    config.set_flag(trt.BuilderFlag.INT8)\n")
    found = check(bindings, old)
    assert bool(found["missing"]) == found["version"].startswith("11.")


def test_the_fake_of_our_tests_has_no_name_of_its_own(
    bindings: dict[str, str], tmp_path: Path
) -> None:
    names = [
        "Builder.create_network",
        "Builder.create_builder_config",
        "Builder.create_optimization_profile",
        "IBuilderConfig.add_optimization_profile",
        "IBuilderConfig.clear_flag",
        "IBuilderConfig.set_flag",
        "OnnxParser.parse",
        "OnnxParser.num_errors",
        "ParserError.desc",
        "ParserError.node_operator",
        "ICudaEngine.create_engine_inspector",
        "BuilderFlag.VERSION_COMPATIBLE",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "ProfilingVerbosity.LAYER_NAMES_ONLY",
    ]
    listed = tmp_path / "names.py"
    listed.write_text("".join(f"trt.{name}\n" for name in names))
    found = check(bindings, listed)
    assert found["missing"] == []
    assert set(names) <= set(found["used"])


def test_without_a_driver_the_real_bindings_give_our_sentence(bindings: dict[str, str]) -> None:
    """And the device's half of the export runs without torch and onnx."""
    package = ROOT / "export" / "frami_edge_export"
    done = subprocess.run(
        [sys.executable, "-c", NO_GPU, str(package)],
        env=bindings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "refused", done.stderr
