"""Fetch NVIDIA's Python bindings of TensorRT 10.3 to 11.4 for the conformance test.

    python tests/export/tensorrt_stub/fetch.py

About 1.2 MB each, from PyPI, by pip; TensorRT itself is neither needed nor fetched. They go to
$FRAMI_EDGE_TRT_BINDINGS, or .cache/tensorrt-bindings in the repository.
"""

import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RELEASES = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
"""JetPack 6; the last of 10.x with weak typing in wide use; the last 10.x; the current 11.x."""
_GLIBC = range(17, 40)


def cache_folder():
    """Where the bindings are kept."""
    chosen = os.environ.get("FRAMI_EDGE_TRT_BINDINGS")
    root = Path(__file__).resolve().parents[3]
    return Path(chosen) if chosen else root / ".cache" / "tensorrt-bindings"


def python_tag():
    """The wheels hold one compiled module for one Python."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"


def binding_folder(release):
    """Where ``import tensorrt_bindings`` finds this release."""
    return cache_folder() / python_tag() / release


def fetch(release):
    """Download and unpack one release; nothing is done where it is there already."""
    target = binding_folder(release)
    if (target / "tensorrt_bindings").is_dir():
        return
    machine = platform.machine()
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        command += [scratch, "--only-binary=:all:", "--implementation", "cp", "--python-version"]
        command += [f"{sys.version_info.major}.{sys.version_info.minor}"]
        for minor in _GLIBC:
            command += ["--platform", f"manylinux_2_{minor}_{machine}"]
        subprocess.run([*command, f"{RELEASES[release]}=={release}"], check=True, cwd=scratch)
        wheel = next(Path(scratch).glob("*.whl"))
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)


if __name__ == "__main__":
    for wanted in RELEASES:
        fetch(wanted)
        print(f"{wanted}: {binding_folder(wanted)}")
