"""Fixtures of the engine tests: a fake GPU that counts, fake bindings, an engine file."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frami_edge_runtime import tensorrt as cudart

# pytest's importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from fake_gpu import FakeTensorRT, Gpu, Shape, save_engine


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


@pytest.fixture
def engine(trt: FakeTensorRT, tiny: Any, shapes: list[Shape], tmp_path: Path) -> Path:
    return save_engine(tmp_path, tiny, shapes)
