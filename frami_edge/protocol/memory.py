"""The most memory that one part of a run took."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Peak:
    """Filled when the block of `peak_memory` ends.

    Attributes:
        host_mib: Resident memory of the process at its highest, in MiB.
        device_mib: Allocated by torch on the GPU at its highest, in MiB; None on a CPU.
    """

    def __init__(self) -> None:
        self.host_mib = 0.0
        self.device_mib: float | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block alone where Linux lets the mark be reset, else the process so far."""
    peak = Peak()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # resets VmHWM, proc(5)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield peak
    finally:
        peak.host_mib = round(_high_water_kib() / 1024, 1)
        if device.type == "cuda":
            peak.device_mib = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def _high_water_kib() -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
