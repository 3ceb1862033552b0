"""Distil a trained sound classifier without data, quantise it, and run it on a device.

The public names below are imported on first use, so that `import frami_edge` stays fast.
`docs/PYTHON.md` shows them step by step.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frami_edge.api import distill, evaluate, export, invert
    from frami_edge.bank import Bank
    from frami_edge.checkpoint import Student, Teacher
    from frami_edge.teachers import load_teacher
    from frami_edge_runtime.melspec import MelSpec

__version__ = "0.2.0"

__all__ = [
    "Bank",
    "MelSpec",
    "Student",
    "Teacher",
    "distill",
    "evaluate",
    "export",
    "invert",
    "load_teacher",
]

_HOMES = {
    "Bank": "frami_edge.bank",
    "MelSpec": "frami_edge_runtime.melspec",
    "Student": "frami_edge.checkpoint",
    "Teacher": "frami_edge.checkpoint",
    "load_teacher": "frami_edge.teachers",
}
"""Module of each public name; the others are in `frami_edge.api`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "frami_edge.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
