"""libcudart, which engines need beside TensorRT; loaded in a child process only."""

from __future__ import annotations

from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.gpu import gpus
from frami_edge_runtime.doctor.machine import Machine

_ASK: Final = """
from frami_edge_runtime.backends.cudart import Cudart
say(sm=Cudart().sm())
"""


def cudart(machine: Machine) -> list[Check]:
    """Whether it loads and sees the GPU; silent where there is no GPU."""
    if not gpus(machine).found:
        return []
    told = machine.ask("cudart", _ASK, 4.5)
    if told["sm"]:
        return [Check("CUDA runtime", "ok", f"sees a GPU of compute capability {told['sm']}")]
    what = told.trouble.removeprefix("BackendError: ")
    fix = "Engines need it: nvidia-jetpack on a Jetson, CUDA 12 or 13 elsewhere; or backend='cpu'."
    return [Check("CUDA runtime", "warn", what or "libcudart told nothing", fix)]
