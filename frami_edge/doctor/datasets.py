"""Data sets under the data root: found, complete, and how to get the others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from frami_edge.data.catalogue import ROOT_VARIABLE, set_info
from frami_edge.data.survey import SetStatus, status
from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.machine import Machine

SETS: Final = ("fsdd", "esc10", "esc50", "urbansound8k", "audiomnist")
"""Those that experiments use; `frami-edge data` knows more."""


def root_of(machine: Machine, option: Path | None) -> Path | None:
    """The option, else the variable's folder."""
    value = option if option is not None else machine.environ.get(ROOT_VARIABLE)
    return Path(value).expanduser() if value else None


def datasets(machine: Machine, option: Path | None = None) -> list[Check]:
    """A line for each set; none is needed, because distillation uses no audio."""
    root = root_of(machine, option)
    if root is None:
        text = f"none is given: neither --data-root nor {ROOT_VARIABLE}"
        lines = [Check("data root", "absent", text, f"export {ROOT_VARIABLE}=~/sounds")]
    elif not root.is_dir():
        fix = f"mkdir -p {root}, or correct {ROOT_VARIABLE}"
        lines = [Check("data root", "warn", f"{root} is no folder", fix)]
        root = None
    else:
        lines = [Check("data root", "ok", str(root))]
    return lines + [_line(status(set_info(name), root)) for name in SETS]


def _line(state: SetStatus) -> Check:
    info = state.info
    if state.complete:
        text = f"complete: {info.clips:,} clips, {info.classes} classes ({info.licence})"
        return Check(info.name, "ok", text)
    if state.folder is None:
        return Check(info.name, "absent", f"not found ({info.licence})", _how(state))
    text = f"{state.clips:,} of {info.clips:,} clips in {state.folder}"
    return Check(info.name, "warn", text, f"{_how(state)}, or complete the folder")


def _how(state: SetStatus) -> str:
    if state.info.form:
        return f"fill in {state.info.form} and unpack it under the data root"
    return state.how
