"""What a result was made with: versions, commit, machine; never user, host or folders."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("frami-edge", "frami-edge-runtime", "torch", "torchaudio", "numpy", "onnxruntime")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide numbers; None for what is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit(package: Path = Path(__file__).parent) -> dict[str, str | bool] | None:
    """The commit of the checkout that `package` lies in, and whether tracked files differ from it.

    None for an installed wheel, also where the user's own repository surrounds it.
    """
    root = package.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def machine() -> dict[str, str | int]:
    """Operating system, processor and the number of cores that this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"system": system, "cpu": _cpu_model(), "cores": cores}


def command_line() -> list[str]:
    """What the user typed, with the program by its name alone."""
    return ["frami-edge", *sys.argv[1:]]


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
