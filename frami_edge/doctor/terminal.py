"""Whether the terminal shows what is printed."""

from __future__ import annotations

import shutil
import sys
from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.machine import Machine

NARROW: Final = 100
"""Columns below which the widest tables fold."""


def terminal(machine: Machine) -> list[Check]:
    """Encoding and width; silent where nobody watches."""
    del machine
    if not sys.stdout.isatty() and not sys.stderr.isatty():
        return []
    encoding = (sys.stdout.encoding or "unknown").lower()
    columns = shutil.get_terminal_size().columns
    return [described(encoding, columns)]


def described(encoding: str, columns: int) -> Check:
    """The line for an encoding and a width."""
    text = f"{encoding}, {columns} columns"
    if encoding.replace("-", "") != "utf8":
        fix = "export LC_ALL=C.UTF-8 PYTHONUTF8=1"
        return Check("terminal", "warn", f"{text}: ticks and names may be replaced", fix)
    if columns < NARROW:
        return Check("terminal", "ok", f"{text}: wide tables fold", f"Widen it to {NARROW}.")
    return Check("terminal", "ok", text)
