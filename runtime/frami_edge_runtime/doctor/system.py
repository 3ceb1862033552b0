"""The machine itself: Python, cores, memory, disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.machine import Machine

_GB: Final = 1e9
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def python(machine: Machine, least: tuple[int, int] = (3, 10)) -> list[Check]:
    """Its version."""
    text = ".".join(map(str, machine.python))
    wanted = ".".join(map(str, least))
    if machine.python[:2] < least:
        fix = f"Install Python {wanted} or newer and make a new environment with it."
        return [Check("Python", "fail", f"{text}, needs {wanted}", fix, needed=True)]
    return [Check("Python", "ok", f"{text} on {machine.arch}", needed=True)]


def cores(machine: Machine) -> list[Check]:
    """Cores that this process may use, a container's share of them, and what threads are set to."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    share = _cpu_share(machine)
    settings = {name: machine.environ[name] for name in _THREADS if machine.environ.get(name)}
    text = f"{count} for this process"
    if share is not None and share < count:
        text += f", of which the container may use {share:g}"
        if not settings:
            fix = f"export OMP_NUM_THREADS={max(1, round(share))}"
            return [Check("CPU cores", "warn", f"{text}: too many threads are started", fix)]
    for name, value in settings.items():
        text += f"; {name}={value}"
        if not value.isdecimal() or int(value) > count:
            return [Check("CPU cores", "warn", text, f"export {name}={count}")]
    return [Check("CPU cores", "ok", text)]


def memory(machine: Machine, least_gb: float, comfortable_gb: float) -> list[Check]:
    """What is free, within a container's limit; silent where the system does not tell."""
    values = {}
    for line in machine.text("proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdecimal():
            values[key] = 1024 * int(number[0])
    if "MemAvailable" not in values:
        return []
    free, total = values["MemAvailable"], values.get("MemTotal", 0)
    limit = machine.text("sys/fs/cgroup/memory.max")
    used = machine.text("sys/fs/cgroup/memory.current")
    bounded = limit.isdecimal() and used.isdecimal() and int(limit) < total
    if bounded:
        free, total = min(free, int(limit) - int(used)), int(limit)
    text = f"{free / _GB:.1f} of {total / _GB:.1f} GB free{' in this container' if bounded else ''}"
    fix = "End other programs, or use smaller batches."
    if free < least_gb * _GB:
        return [Check("memory", "fail", f"{text}; {least_gb:g} GB are needed", fix, needed=True)]
    if free < comfortable_gb * _GB:
        return [Check("memory", "warn", f"{text}; {comfortable_gb:g} GB are comfortable", fix)]
    return [Check("memory", "ok", text, needed=True)]


def disk(
    machine: Machine,
    places: Sequence[tuple[str, Path]],
    least_gb: float,
    comfortable_gb: float,
) -> list[Check]:
    """Room at each place, and whether this user may write there.

    Args:
        machine: To look at.
        places: (what it is, where); those on one file system share a line.
        least_gb: Below it the first place, which is where results go, fails.
        comfortable_gb: Below it there is a warning.
    """
    lines: list[Check] = []
    seen: dict[tuple[int, int], int] = {}
    for what, path in places:
        needed = not lines
        name = f"disk ({what})"
        try:
            free, total = machine.space(path)
        except OSError as error:
            text, fix = f"{path}: {error.strerror or error}", "Check that the disk is mounted."
            lines.append(Check(name, "fail" if needed else "warn", text, fix, needed=needed))
            continue
        text = f"{free / _GB:.1f} of {total / _GB:.0f} GB free at {path}"
        if not _writable(path):
            fix = "Change to a folder that you may write to, or set its variable to one."
            lines.append(Check(name, "fail" if needed else "warn", f"{path} cannot be written to",
                               fix, needed=needed))  # fmt: skip
        elif free < least_gb * _GB:
            fix = f"Free {least_gb:g} GB, or go to another disk."
            lines.append(Check(name, "fail" if needed else "warn", text, fix, needed=needed))
        elif free < comfortable_gb * _GB:
            fix = f"Free some: {comfortable_gb:g} GB hold a few runs."
            lines.append(Check(name, "warn", text, fix, needed=needed))
        elif (free, total) not in seen:
            seen[free, total] = len(lines)
            lines.append(Check(name, "ok", text, needed=needed))
    return lines


def temporary_folder() -> Path:
    """Where temporary files go, also where the disk is full and Python finds no such folder."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path(os.environ.get("TMPDIR") or "/tmp")


def _cpu_share(machine: Machine) -> float | None:
    """Cores' worth of time that a control group allows; None for no limit."""
    quota, _, period = machine.text("sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None


def _writable(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    return os.access(path, os.W_OK)
