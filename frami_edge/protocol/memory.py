"""The most memory that one part of a run took."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Peak:
    """The highest marks within a block of `peak_memory`; final when the block ends.

    Args:
        device: Of the block's computations.

    Attributes:
        host_mib: Resident memory of the whole process at its highest, in MiB: interpreter,
            libraries, the teacher and what of the bank's files is mapped are part of it. Where the
            system has no mark that can be reset (all but Linux), of the process since its start.
        device_mib: Allocated by torch on the GPU at its highest, in MiB; None on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.host_mib = 0.0
        self.device_mib: float | None = None
        self._device = device

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """A part of the block whose memory does not count, such as scoring on real clips."""
        self._read()
        try:
            yield
        finally:
            self._reset()

    def _reset(self) -> None:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # resets VmHWM, proc(5)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _read(self) -> None:
        self.host_mib = max(self.host_mib, round(_high_water_kib() / 1024, 1))
        if self._device.type == "cuda":
            now = round(torch.cuda.max_memory_allocated(self._device) / 2**20, 1)
            self.device_mib = max(self.device_mib or 0.0, now)


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block alone; what earlier work has freed is given back to the system first."""
    peak = Peak(device)
    _give_back()
    peak._reset()
    try:
        yield peak
    finally:
        peak._read()


def _give_back() -> None:
    """The allocator keeps freed memory, which would stay resident and count for the next block."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _high_water_kib() -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
