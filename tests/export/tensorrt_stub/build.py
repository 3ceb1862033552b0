"""Build the stub libraries that let NVIDIA's bindings be imported without TensorRT."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
SOURCE = Path(__file__).with_name("stub.c")


def compiler() -> str | None:
    """gcc or whatever ``cc`` is; None where there is none."""
    return shutil.which("gcc") or shutil.which("cc")


def build_stub(folder: Path, major: str) -> Path:
    """The three libraries of one TensorRT major, as ``libnvinfer.so.10``; gives their folder."""
    target = folder / major
    target.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        command = [compiler() or "gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}"]
        subprocess.run([*command, "-o", str(target / soname), str(SOURCE)], check=True)
    return target


def environment(stub: Path, binding: Path, *more: Path) -> dict[str, str]:
    """For a subprocess that imports ``tensorrt_bindings``, and ``tensorrt`` as the same."""
    path = os.pathsep.join(str(p) for p in (binding, *more))
    return {**os.environ, "LD_LIBRARY_PATH": str(stub), "PYTHONPATH": path}
