"""What an engine is tied to: TensorRT, GPU architecture, driver and JetPack of this machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from frami_edge_runtime.doctor.jetpack import read_release

TEGRA_RELEASE: Final = Path("/etc/nv_tegra_release")
BOARD_MODEL: Final = Path("/proc/device-tree/model")
DRIVER_VERSION: Final = Path("/proc/driver/nvidia/version")

Run = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class DeviceFacts:
    """As `EngineCard` wants them; empty where the machine does not say."""

    tensorrt: str
    sm: str
    """Compute capability, such as ``8.7``."""
    gpu: str
    driver: str
    jetpack: str | None
    """Such as ``6 (L4T 36.4.3)``; None where it is no Jetson."""


def device_facts(
    trt: Any,
    sm: str = "",
    *,
    tegra_release: Path = TEGRA_RELEASE,
    board_model: Path = BOARD_MODEL,
    driver_version: Path = DRIVER_VERSION,
    run: Run | None = None,
) -> DeviceFacts:
    """Ask the machine.

    Args:
        trt: The ``tensorrt`` module.
        sm: Compute capability where CUDA told it already; else nvidia-smi is asked.
        tegra_release: What a Jetson says about its L4T release.
        board_model: What a Jetson is called.
        driver_version: Of the kernel module.
        run: Runs a command and gives its standard output; empty where it fails.
    """
    gpu, driver, capability = _smi(run or _output)
    board = _text(board_model).strip("\0 \n")
    kernel = re.search(r"(?:Kernel Module|Module for \w+)\s+([\d.]+)", _text(driver_version))
    return DeviceFacts(
        tensorrt=str(trt.__version__),
        sm=sm or capability,
        gpu=(board if board and "nvgpu" in gpu.lower() else gpu) or board,
        driver=driver or (kernel.group(1) if kernel else ""),
        jetpack=jetpack(_text(tegra_release)),
    )


def jetpack(release: str) -> str | None:
    """``# R36 (release), REVISION: 4.3, ...`` -> ``6 (L4T 36.4.3)``; None for anything else."""
    found = read_release(release)
    if found is None:
        return None
    return f"{found.version.partition('.')[0] or 'unknown'} (L4T {found.l4t})"


def _smi(run: Run) -> tuple[str, str, str]:
    """Name, driver and compute capability of the first GPU; ``[N/A]``, as Jetsons say, is empty."""
    query = "--query-gpu=name,driver_version,compute_cap"
    lines = run(["nvidia-smi", query, "--format=csv,noheader"]).strip().splitlines()
    parts = [part.strip() for part in lines[0].split(",")] if lines else []
    name, driver, capability = parts if len(parts) == 3 else ("", "", "")
    return (
        "" if "N/A" in name else name,
        driver if re.fullmatch(r"[\d.]+", driver) else "",
        capability if re.fullmatch(r"\d+\.\d", capability) else "",
    )


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:4096]
    except OSError:
        return ""
