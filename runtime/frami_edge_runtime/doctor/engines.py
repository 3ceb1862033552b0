"""Engines that lie here: were they built with this TensorRT, for this GPU?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from frami_edge_runtime.backends.source import read_model
from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.gpu import gpus
from frami_edge_runtime.doctor.machine import Machine
from frami_edge_runtime.doctor.tensorrt import tensorrt
from frami_edge_runtime.enginefile import (
    check_content,
    check_loadable,
    read_plan_version,
    read_sidecar,
)
from frami_edge_runtime.errors import FramiEdgeError

_SUFFIXES: Final = (".engine", ".plan")
_MOST: Final = 50


def engines(machine: Machine, places: Sequence[Path]) -> list[Check]:
    """A line for each engine at the places: files, or folders that hold some.

    Somebody asked for exactly these, so one that does not fit blocks.
    """
    lines = []
    for place in places:
        files = [place]
        if place.is_dir():
            files = sorted(p for p in place.iterdir() if p.suffix in _SUFFIXES)[:_MOST]
            if not files:
                text = f"no engine in {place}"
                fix = f"frami-edge export --tensorrt {place} builds them on this machine."
                lines.append(Check(place.name or str(place), "absent", text, fix))
        lines += [_engine(machine, file) for file in files]
    return lines


def _engine(machine: Machine, file: Path) -> Check:
    try:
        version, card = read_plan_version(file), read_sidecar(file)
        check_content(card, read_model(file)[1], file.name)
    except FramiEdgeError as error:
        return Check(file.name, "fail", error.message.rstrip("."), error.fix or "Rebuild it.",
                     needed=True)  # fmt: skip
    built = f"TensorRT {card.tensorrt}, compute capability {card.sm}"
    running = tensorrt(machine).version
    if not running:
        text = f"whole, built with {built}; there is no TensorRT here to load it"
        return Check(file.name, "absent", text)
    sms = [one.sm for one in gpus(machine).found if one.sm]
    if not sms:
        return Check(file.name, "absent", f"whole, built with {built}; no GPU is known here")
    try:
        check_loadable(card, version, running, sms[0], file.name)
    except FramiEdgeError as error:
        return Check(file.name, "fail", error.message.rstrip("."), error.fix, needed=True)
    return Check(file.name, "ok", f"fits this machine ({built})")
