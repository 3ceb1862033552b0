"""NVIDIA GPUs as the driver tells of them; nothing of CUDA is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.jetpack import MODEL, is_jetson, sm_of_board
from frami_edge_runtime.doctor.machine import Machine

SMI_LIMIT_S: Final = 4.0
_QUERY: Final = "--query-gpu=name,driver_version,compute_cap,memory.total,memory.used"
_RESTART: Final = "`sudo dmesg | grep -iE 'nvrm|xid'` says why; restart the machine."
_DISPLAY_CLASS: Final = "0x03"


@dataclass(frozen=True)
class Gpu:
    """One GPU; empty where the driver does not say."""

    name: str
    driver: str
    sm: str
    """Compute capability, such as ``8.7``."""
    memory_mib: int = 0
    used_mib: int = 0

    @property
    def shown(self) -> str:
        """In words."""
        parts = [self.name]
        if self.sm:
            parts.append(f"compute capability {self.sm}")
        if self.memory_mib:
            free = self.memory_mib - self.used_mib
            parts.append(f"{free / 1024:.1f} of {self.memory_mib / 1024:.1f} GiB free")
        if self.driver:
            parts.append(f"driver {self.driver}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Gpus:
    """All of them, or why none is known."""

    found: tuple[Gpu, ...]
    why_none: str = ""
    fix: str = ""
    """Empty where there simply is no GPU."""


def gpus(machine: Machine) -> Gpus:
    """What the driver says; asked once, for all probes."""
    return machine.once("gpus", lambda: _look(machine))


def gpu(machine: Machine) -> list[Check]:
    """A line for each GPU."""
    known = gpus(machine)
    if known.found:
        many = len(known.found) > 1
        return [
            Check(f"GPU {i}" if many else "GPU", "ok", one.shown)
            for i, one in enumerate(known.found)
        ]
    return [Check("GPU", "warn" if known.fix else "absent", known.why_none, known.fix)]


def _look(machine: Machine) -> Gpus:
    answer = machine.command("nvidia-smi", _QUERY, "--format=csv,noheader,nounits",
                             limit_s=SMI_LIMIT_S)  # fmt: skip
    found = tuple(filter(None, map(_row, answer.out.splitlines()))) if answer.code == 0 else ()
    if is_jetson(machine):
        board = machine.text(MODEL)
        driver = found[0].driver if found else ""
        sm = (found[0].sm if found else "") or sm_of_board(machine)
        return Gpus((Gpu(board or "the Jetson's own", driver, sm),))
    if found:
        return Gpus(found)
    if answer.code == 0:
        return Gpus((), "nvidia-smi lists no GPU", "Start a container with --gpus all.")
    if answer.missing:
        return _without_smi(machine)
    if "did not end" in answer.trouble:
        return Gpus((), f"{answer.trouble}: the driver hangs", _RESTART)
    said = (answer.out + answer.err).strip().splitlines()
    return Gpus((), f"{answer.trouble}: {said[0] if said else 'it said nothing'}", _RESTART)


def _without_smi(machine: Machine) -> Gpus:
    kernel = re.search(r"Kernel Module\s+([\d.]+)", machine.text("proc/driver/nvidia/version"))
    if kernel is not None:
        return Gpus((), f"the driver {kernel[1]} is loaded, but there is no nvidia-smi",
                    "Install the driver's tools (nvidia-utils), or start the container with "
                    "--gpus all.")  # fmt: skip
    for vendor in machine.glob("sys/bus/pci/devices/*/vendor"):
        place = str(vendor.parent.relative_to(machine.root))
        nvidia = machine.text(f"{place}/vendor") == "0x10de"
        if nvidia and machine.text(f"{place}/class").startswith(_DISPLAY_CLASS):
            return Gpus((), "an NVIDIA card is plugged in, and its driver is not installed",
                        "Install NVIDIA's driver 580 or newer, then restart.")  # fmt: skip
    return Gpus((), "none of NVIDIA's: everything runs on the CPU")


def _row(line: str) -> Gpu | None:
    """``name, driver, capability, MiB, MiB``; ``[N/A]`` is empty."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 5 or not parts[0] or "N/A" in parts[0]:
        return None
    name, driver, sm, memory, used = parts
    return Gpu(
        name,
        driver if re.fullmatch(r"[\d.]+", driver) else "",
        sm if re.fullmatch(r"\d+\.\d+", sm) else "",
        int(memory) if memory.isdecimal() else 0,
        int(used) if used.isdecimal() else 0,
    )
