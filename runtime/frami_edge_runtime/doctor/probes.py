"""What a device is asked, and what the trainer asks too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from frami_edge_runtime.doctor.boards import board
from frami_edge_runtime.doctor.check import Check, Probe
from frami_edge_runtime.doctor.cuda import cudart
from frami_edge_runtime.doctor.engines import engines
from frami_edge_runtime.doctor.gpu import gpu
from frami_edge_runtime.doctor.machine import Machine
from frami_edge_runtime.doctor.onnx_runtime import LIMIT_S, onnx_runtime
from frami_edge_runtime.doctor.sound import READERS_LIMIT_S, microphone, readers, resampling
from frami_edge_runtime.doctor.system import cores, disk, memory, python, temporary_folder
from frami_edge_runtime.doctor.tensorrt import tensorrt_lines

LEAST_MEMORY_GB: Final = 0.15
LEAST_DISK_GB: Final = 0.05


def runtime_probes(places: Sequence[Path] = ()) -> list[Probe]:
    """All that `frami_edge_runtime.doctor` looks at.

    Args:
        places: Engines, or folders that hold some, to compare with this machine.
    """
    return [
        Probe("Python", "machine", python),
        Probe("CPU cores", "machine", cores),
        Probe("memory", "machine", partial(memory, least_gb=LEAST_MEMORY_GB, comfortable_gb=0.5)),
        Probe("disk", "machine", _disk),
        Probe("board", "machine", board),
        Probe("NumPy", "packages", _numpy, needed=True),
        onnx_runtime_probe(),
        *gpu_probes(places),
        *sound_probes(),
    ]


def onnx_runtime_probe() -> Probe:
    """ONNX Runtime."""
    return Probe("onnxruntime", "packages", onnx_runtime, limit_s=LIMIT_S + 1.0, needed=True)


def gpu_probes(places: Sequence[Path] = ()) -> list[Probe]:
    """GPU, CUDA runtime, TensorRT and engines."""
    # An engine's line waits for the GPU's and TensorRT's.
    probes = [
        Probe("GPU", "GPU", gpu),
        Probe("CUDA runtime", "GPU", cudart, limit_s=10.0),
        Probe("TensorRT", "GPU", tensorrt_lines, limit_s=19.0),
    ]
    if places:
        compare = partial(engines, places=tuple(places))
        probes.append(Probe("engines", "engines", compare, limit_s=20.0))
    return probes


def sound_probes(*, needed: bool = False) -> list[Probe]:
    """Microphone, audio files, resampling.

    Args:
        needed: Whether the main job reads audio files.
    """
    return [
        Probe("microphone", "sound", microphone, limit_s=8.0),
        Probe(
            "audio files", "sound", partial(readers, needed=needed),
            limit_s=READERS_LIMIT_S + 1.0, needed=needed,
        ),
        Probe("resampling", "sound", resampling),
    ]  # fmt: skip


def _disk(machine: Machine) -> list[Check]:
    places = [("here", Path.cwd()), ("temporary files", temporary_folder())]
    return disk(machine, places, LEAST_DISK_GB, 0.5)


def _numpy(machine: Machine) -> list[Check]:
    version = machine.version("numpy")
    if version is None:
        return [Check("NumPy", "fail", "not installed", "pip install numpy", needed=True)]
    return [Check("NumPy", "ok", version, needed=True)]
