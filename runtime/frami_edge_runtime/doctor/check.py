"""One line of the doctor, and running many probes so that none can break or hold up the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from frami_edge_runtime.doctor.machine import Machine

Status: TypeAlias = Literal["ok", "warn", "fail", "absent"]
REPORT_IT: Final = "Report this line with `python -m frami_edge_runtime.doctor --json`."


@dataclass(frozen=True)
class Check:
    """What was found about one thing.

    Raises:
        ValueError: Something is wrong and no way out is named.
    """

    name: str
    status: Status
    """``absent`` is what this machine lacks and may lack."""
    found: str
    fix: str = ""
    """A command or a sentence; what is wrong always has one."""
    group: str = ""
    needed: bool = False
    """Whether the main job cannot be done when this fails."""

    def __post_init__(self) -> None:
        """A finding without a way out helps nobody."""
        if self.status in ("warn", "fail") and not self.fix:
            raise ValueError(f"{self.name} is {self.status} without a fix")

    @property
    def blocks(self) -> bool:
        """It failed and is needed."""
        return self.needed and self.status == "fail"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """One look at the machine."""

    name: str
    group: str
    look: Callable[[Machine], Sequence[Check]]
    limit_s: float = 5.0
    """Seconds after the start of all probes; then it is given up."""
    needed: bool = False
    """A probe that gives no answer fails if this is set, and warns otherwise."""


def examine(probes: Sequence[Probe], machine: Machine) -> list[Check]:
    """All lines, in the order of the probes; the probes run at the same time.

    A probe that raises or hangs becomes a line that says so. Children that are still running at the
    end are killed.
    """
    found: list[Sequence[Check] | None] = [None] * len(probes)

    def look(place: int) -> None:
        probe = probes[place]
        try:
            found[place] = tuple(probe.look(machine))
        except Exception as error:  # whatever a broken machine raises
            said = str(error).strip().splitlines()
            text = f"could not be looked at: {type(error).__name__}: {said[0] if said else ''}"
            found[place] = (_no_answer(probe, text.rstrip(": "), REPORT_IT),)

    # Daemons: a thread that a driver holds in the kernel must not hold the process.
    threads = [threading.Thread(target=look, args=(i,), daemon=True) for i in range(len(probes))]
    begun = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        for thread, probe in zip(threads, probes, strict=True):
            thread.join(max(0.0, begun + probe.limit_s - time.monotonic()))
        lines: list[Check] = []
        for probe, checks in zip(probes, found, strict=True):
            if checks is None:
                late = f"gave no answer within {probe.limit_s:g} s"
                checks = (_no_answer(probe, late, "Try again; if it stays so, restart."),)
            lines += [replace(check, group=check.group or probe.group) for check in checks]
        return lines
    finally:
        machine.end_children()


def _no_answer(probe: Probe, found: str, fix: str) -> Check:
    return Check(probe.name, "fail" if probe.needed else "warn", found, fix, needed=probe.needed)
