"""Everything that `frami-edge doctor` looks at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from frami_edge.doctor.datasets import datasets, root_of
from frami_edge.doctor.packages import packages
from frami_edge.doctor.terminal import terminal
from frami_edge.doctor.torch_pair import CUDA_LIMIT_S, IMPORT_LIMIT_S, torch_cuda, torch_pair
from frami_edge_runtime.doctor.boards import board
from frami_edge_runtime.doctor.check import Check, Probe
from frami_edge_runtime.doctor.machine import Machine
from frami_edge_runtime.doctor.probes import gpu_probes, onnx_runtime_probe, sound_probes
from frami_edge_runtime.doctor.system import cores, disk, memory, python, temporary_folder

LEAST_PYTHON: Final = (3, 11)
LEAST_MEMORY_GB: Final = 1.0
"""Importing torch and training a small student takes 0.7 GB; measured on the quickstart."""
LEAST_DISK_GB: Final = 0.3
"""A quickstart's run takes 0.1 GB, one ESC-10 bank 0.25 GB."""


def trainer_probes(data_root: Path | None = None, places: Sequence[Path] = ()) -> list[Probe]:
    """The runtime's probes and the trainer's own.

    Args:
        data_root: Instead of the variable's.
        places: Engines, or folders that hold some, to compare with this machine.
    """
    slow = IMPORT_LIMIT_S + 1.0
    return [
        Probe("Python", "machine", partial(python, least=LEAST_PYTHON)),
        Probe("CPU cores", "machine", cores),
        Probe(
            "memory", "machine", partial(memory, least_gb=LEAST_MEMORY_GB, comfortable_gb=4.0)
        ),
        Probe("disk", "machine", partial(_disk, data_root=data_root)),
        Probe("board", "machine", board),
        Probe("terminal", "machine", terminal),
        Probe("packages", "packages", packages, limit_s=10.0, needed=True),
        Probe("torch", "packages", torch_pair, limit_s=slow, needed=True),
        onnx_runtime_probe(),
        *gpu_probes(places),
        Probe("torch on the GPU", "GPU", torch_cuda, limit_s=slow + CUDA_LIMIT_S),
        *sound_probes(needed=True),
        Probe("data sets", "data sets", partial(datasets, option=data_root), limit_s=10.0),
    ]  # fmt: skip


def _disk(machine: Machine, data_root: Path | None) -> list[Check]:
    # Imported here: the store imports torch.
    cache = machine.environ.get("FRAMI_EDGE_CACHE")
    places = [("here", Path.cwd())]
    root = root_of(machine, data_root)
    if root is not None and root.is_dir():
        places.append(("data root", root))
    places.append(("cache", Path(cache).expanduser() if cache else _default_cache()))
    places.append(("temporary files", temporary_folder()))
    return disk(machine, places, LEAST_DISK_GB, 5.0)


def _default_cache() -> Path:
    return Path("~/.cache/frami-edge").expanduser()
