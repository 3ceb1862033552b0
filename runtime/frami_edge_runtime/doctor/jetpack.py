"""Which JetPack a Jetson runs, and what is known of it.

Source of the table: docs/JETPACK.md; of the file's form: L4T's ``/etc/nv_tegra_release``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from frami_edge_runtime.doctor.machine import Machine

RELEASE: Final = "etc/nv_tegra_release"
MODEL: Final = "proc/device-tree/model"


@dataclass(frozen=True)
class JetPack:
    """One release of NVIDIA's software for Jetsons."""

    l4t: str
    """Such as ``36.4.3``."""
    version: str = ""
    """Such as ``6.2``; empty where the table does not know it."""
    cuda: str = ""
    tensorrt: str = ""
    engines: bool = False
    """Whether its TensorRT builds our engines: 10.3 and newer do."""


# The longest prefix of the L4T release decides.
_TABLE: Final = {
    (32,): ("4.x", "10.2", "8.2", False),
    (35,): ("5.x", "11.4", "8.5", False),
    (36,): ("6.x", "12", "", False),
    (36, 3): ("6.0", "12.2", "8.6", False),
    (36, 4): ("6.1", "12.6", "10.3", True),
    (36, 4, 3): ("6.2", "12.6", "10.3", True),
    (36, 4, 4): ("6.2.1", "12.6", "10.3", True),
    (36, 4, 7): ("6.2.1", "12.6", "10.3", True),
    (36, 5): ("6.2.2", "12.6", "10.3", True),
    (38,): ("7.0", "13.0", "10.13", True),
    (38, 4): ("7.1", "13.0", "10.13", True),
    (39,): ("7.2", "13.2", "10.16", True),
}  # fmt: skip


def read_release(text: str) -> JetPack | None:
    """``# R36 (release), REVISION: 4.3, ...`` as a `JetPack`; None for anything else."""
    found = re.match(r"#\s*R(\d{1,4})\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+){0,3})", text)
    if found is None:
        return None
    l4t = f"{found[1]}.{found[2]}"
    parts = tuple(int(part) for part in l4t.split("."))
    for length in range(len(parts), 0, -1):
        if parts[:length] in _TABLE:
            return JetPack(l4t, *_TABLE[parts[:length]])
    return JetPack(l4t)


def jetpack(machine: Machine) -> JetPack | None:
    """Of this machine; None where it is no Jetson."""
    return read_release(machine.text(RELEASE))


def is_jetson(machine: Machine) -> bool:
    """By its release file, or by the board's name: in a container only that may be visible."""
    if machine.exists(RELEASE):
        return True
    board = machine.text(MODEL)
    return "NVIDIA" in board and ("Jetson" in board or "Orin" in board or "Thor" in board)


def sm_of_board(machine: Machine) -> str:
    """Compute capability that a Jetson's name implies, such as ``8.7``; empty for others."""
    board = machine.text(MODEL)
    names = (("Thor", "11.0"), ("Orin", "8.7"), ("Xavier", "7.2"))
    return next((sm for name, sm in names if name in board), "") if is_jetson(machine) else ""
