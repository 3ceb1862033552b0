"""What this machine has, what it lacks, and the exact fix: ``python -m frami_edge_runtime.doctor``.

Every probe is on its own: what may crash or hang (TensorRT, ONNX Runtime, PortAudio, the driver's
tools) runs in child processes with a limit in seconds. Nothing is changed and nothing is sent.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

from frami_edge_runtime import __version__
from frami_edge_runtime.backends import read_model
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.tensorrt import (
    check_content,
    check_loadable,
    read_plan_version,
    read_sidecar,
)

# --- Commands that may crash, hang, or hang so that not even SIGKILL ends them

_LAST_WORDS_S: Final = 0.3
_MOST_OUTPUT: Final = 1 << 20


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int | None
    """Exit code; None where it was not found or did not end."""
    out: str = ""
    err: str = ""
    trouble: str = ""
    """In words; empty where it ended with code 0."""

    @property
    def missing(self) -> bool:
        """There is no such command."""
        return self.trouble.endswith("not found")


class Children:
    """Child processes in sessions of their own, so that they and what they start can be ended."""

    def __init__(self) -> None:
        """None yet."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def run(self, command: Sequence[str], limit_s: float) -> Answer:
        """Run a command for at most so many seconds, and give what it said until then."""
        name = os.path.basename(command[0])
        try:
            process = self._start(command)
        except FileNotFoundError:
            return Answer(None, trouble=f"{name}: not found")
        except (OSError, RuntimeError) as error:
            return Answer(None, trouble=f"{name} cannot be started: {error}")
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as late:
            _kill(process)
            # A process that a driver holds in the kernel outlives SIGKILL: it is left alone.
            with contextlib.suppress(subprocess.TimeoutExpired, ValueError, OSError):
                process.communicate(timeout=_LAST_WORDS_S)
            said = f"{name} did not end within {limit_s:g} s"
            return Answer(None, _text(late.stdout), _text(late.stderr), said)
        finally:
            with self._lock:
                self._running.discard(process)
        code = process.returncode
        return Answer(code, _text(out), _text(err), _trouble(name, code))

    def end(self) -> None:
        """Kill all that run, and start none any more."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _kill(process)

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "LC_ALL": "C"}  # messages are read in English
        with self._lock:
            if self._closed:
                raise RuntimeError("the doctor is done")
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
            self._running.add(process)
        return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _trouble(name: str, code: int) -> str:
    if code == 0:
        return ""
    if code < 0:
        try:
            return f"{name} crashed with {signal.Signals(-code).name}"
        except ValueError:
            pass
    return f"{name} ended with exit code {code}"


def _text(data: Any) -> str:
    return (data or b"")[:_MOST_OUTPUT].decode("utf-8", "replace")


# --- The machine that is looked at: its files, commands and packages, all of them replaceable

_T = TypeVar("_T")
_MARK: Final = "frami-doctor: "
_MOST_TEXT: Final = 1 << 20
# Runs the code in its first argument. A file of the current folder is no module; whatever libraries
# print, facts have a mark.
_TELLER: Final = f"""
import sys
sys.path[:] = [place for place in sys.path if place]
import json
def say(**facts):
    print({_MARK!r} + json.dumps(facts), flush=True)
try:
    exec(compile(sys.argv[1], "<doctor>", "exec"), {{"say": say}})
except BaseException as error:
    lines = str(error).strip().splitlines()
    say(error=type(error).__name__, message=lines[0][:400] if lines else "")
"""


@dataclass(frozen=True)
class Told:
    """What a child process told before it ended."""

    facts: Mapping[str, Any]
    error: str = ""
    """Name of the exception that ended it."""
    trouble: str = ""
    """In words: the exception, a crash, or no answer in time; empty where it ended well."""

    def __getitem__(self, key: str) -> Any:
        """A fact, None where it was not told."""
        return self.facts.get(key)


@dataclass
class Machine:
    """Where the doctor looks. Tests replace any part; the default is this machine.

    Attributes:
        root: Above ``etc``, ``proc``, ``sys`` and ``dev``.
        environ: Environment variables.
        python: Version of this interpreter.
        arch: ``x86_64``, ``aarch64`` and so on.
        run: Runs a command for some seconds.
        versions: Gives the version of an installed package, or None.
        disk: Gives (free, total) bytes of the file system of a path.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    python: tuple[int, int, int] = sys.version_info[:3]
    arch: str = field(default_factory=platform.machine)
    run: Callable[[Sequence[str], float], Answer] | None = None
    versions: Callable[[str], str | None] | None = None
    disk: Callable[[Path], tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        """Nothing is looked at yet."""
        self._children = Children()
        self._facts: dict[str, Any] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def text(self, path: str) -> str:
        """A small file's text; empty where it cannot be read. Zero bytes end it."""
        try:
            with open(self.root / path, "rb") as file:
                data = file.read(_MOST_TEXT)
        except (OSError, ValueError):
            return ""
        return data.decode("utf-8", "replace").rstrip("\0\n ")

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.lexists(self.root / path)

    def usable(self, path: str) -> bool:
        """Whether this user may read and write it."""
        return os.access(self.root / path, os.R_OK | os.W_OK)

    def glob(self, pattern: str) -> list[Path]:
        """Files below the root, in order."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def command(self, *command: str, limit_s: float = 4.0) -> Answer:
        """Run a command to its end, or for so long; never raises."""
        return (self.run or self._children.run)(command, limit_s)

    def ask(self, name: str, code: str, limit_s: float) -> Told:
        """Run Python in a child process, where a crash or a hang does no harm.

        Args:
            name: For whoever replaces `run`; the last argument of the command.
            code: Calls ``say(key=value)`` for every fact as soon as it is known.
            limit_s: Seconds.
        """
        answer = self.command(sys.executable, "-c", _TELLER, code, name, limit_s=limit_s)
        facts: dict[str, Any] = {}
        for line in answer.out.splitlines():
            if line.startswith(_MARK):
                try:
                    facts.update(json.loads(line[len(_MARK) :]))
                except ValueError:  # cut off by a crash
                    continue
        error, message = str(facts.pop("error", "")), str(facts.pop("message", ""))
        if error:
            return Told(facts, error, f"{error}: {message}".rstrip(": "))
        return Told(facts, "", answer.trouble)

    def version(self, package: str) -> str | None:
        """Of an installed distribution, from its metadata: nothing is imported."""
        if self.versions is not None:
            return self.versions(package)
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def space(self, path: Path) -> tuple[int, int]:
        """(free, total) bytes where a path lies, or will lie.

        Raises:
            OSError: The place cannot be asked.
        """
        while not path.exists() and path != path.parent:
            path = path.parent
        if self.disk is not None:
            return self.disk(path)
        usage = shutil.disk_usage(path)
        return usage.free, usage.total

    def once(self, key: str, find: Callable[[], _T]) -> _T:
        """A fact that several probes need and one of them looks up."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._facts:
                self._facts[key] = find()
            fact: _T = self._facts[key]
            return fact

    def end_children(self) -> None:
        """Kill what is still running."""
        self._children.end()


# --- One line of the doctor, and running many probes so that none can break or hold up the other

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


# --- The lines as text, for terminals that know ticks and for those that do not

_TICKS: Final[dict[Status, str]] = {"ok": "✔", "warn": "!", "fail": "✘", "absent": "·"}
_PLAIN: Final[dict[Status, str]] = {"ok": "ok", "warn": "!!", "fail": "XX", "absent": "--"}


def marks(encoding: str | None) -> dict[Status, str]:
    """A mark for each status that an encoding can show."""
    try:
        "".join(_TICKS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return dict(_PLAIN)
    return dict(_TICKS)


def groups(checks: Sequence[Check]) -> Iterator[tuple[str, list[Check]]]:
    """The lines by group, in the order in which the groups first come."""
    names = list(dict.fromkeys(check.group for check in checks))
    for name in names:
        yield name, [check for check in checks if check.group == name]


def as_text(checks: Sequence[Check], encoding: str | None) -> str:
    """All of it; a fix has a line of its own, so that it can be copied."""
    mark = marks(encoding)
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for name, members in groups(checks):
        lines.append(name)
        for check in members:
            lines.append(f"  {mark[check.status]} {check.name:<{width}}  {check.found}")
            if check.fix:
                how = "how" if check.status in ("ok", "absent") else "fix"
                lines.append(f"    {how}: {check.fix}")
    return "\n".join(lines) + "\n"


def verdict(checks: Sequence[Check], what: str) -> str:
    """One sentence: what stands in the way of ``what``, and how many lines deserve a look."""
    blocking = [check.name for check in checks if check.blocks]
    if blocking:
        return f"Not ready for {what}: {', '.join(blocking)}."
    others = sum(check.status in ("warn", "fail") for check in checks)
    rest = f"; {others} line{'s' if others > 1 else ''} with a fix" if others else ""
    return f"Ready for {what}{rest}."


# --- The machine itself: Python, cores, memory, disk

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


# --- Which JetPack a Jetson runs, and what is known of it
# Source of the table: docs/JETPACK.md; of the file's form: L4T's ``/etc/nv_tegra_release``.

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


# --- Small boards: Jetsons with JetPack and power mode, Raspberry Pis with their supply

_GPU_NODES: Final = ("dev/nvmap", "dev/nvhost-gpu", "dev/dri/renderD128")
_UNDER_VOLTAGE: Final = 0x1 | 0x10000  # now, since boot
_THROTTLED: Final = 0x2 | 0x4 | 0x8 | 0x20000 | 0x40000 | 0x80000


def board(machine: Machine) -> list[Check]:
    """What this board is; nothing for a PC."""
    if is_jetson(machine):
        return _jetson(machine)
    if machine.text(MODEL).startswith("Raspberry Pi"):
        return _raspberry_pi(machine)
    return []


def _jetson(machine: Machine) -> list[Check]:
    name = machine.text(MODEL) or "a Jetson"
    found = jetpack(machine)
    if found is None:
        return [
            Check(
                "JetPack", "warn", f"{name}; /{RELEASE} cannot be read",
                "In a container mount it: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro",
            )
        ]  # fmt: skip
    parts = f"CUDA {found.cuda}, TensorRT {found.tensorrt or 'unknown'}"
    text = f"{found.version or 'unknown'} (L4T {found.l4t}: {parts}) on {name}"
    if not found.version:
        text = f"L4T {found.l4t}, newer than this table, on {name}"
        lines = [Check("JetPack", "ok", text)]
    elif found.engines:
        lines = [Check("JetPack", "ok", text)]
    else:
        lines = [
            Check(
                "JetPack", "warn", f"{text}: its TensorRT is too old for our engines",
                "Flash JetPack 6.1 or newer, or run the .onnx files with backend='cpu'.",
            )
        ]  # fmt: skip
    return [*lines, *_power(machine), *_gpu_nodes(machine)]


def _power(machine: Machine) -> list[Check]:
    answer = machine.command("nvpmodel", "-q", limit_s=3)
    mode = re.search(r"NV Power Mode\s*:\s*(\S+)", answer.out)
    if mode is None:
        return []
    text = f"{mode[1]}; clocks follow the load"
    how = "For steady timings: sudo nvpmodel -m 0 && sudo jetson_clocks"
    return [Check("power mode", "ok", text, how)]


def _gpu_nodes(machine: Machine) -> list[Check]:
    closed = [node for node in _GPU_NODES if machine.exists(node) and not machine.usable(node)]
    if not closed:
        return []
    return [
        Check(
            "access to the GPU", "warn",
            f"this user may not use {', '.join('/' + node for node in closed)}",
            "sudo usermod -aG video,render $USER, then log in again",
        )
    ]  # fmt: skip


def _raspberry_pi(machine: Machine) -> list[Check]:
    name = machine.text(MODEL)
    if machine.arch not in ("aarch64", "arm64"):
        return [
            Check(
                "board", "fail", f"{name} with a 32-bit system ({machine.arch}): onnxruntime has "
                "no packages for it", "Install the 64-bit Raspberry Pi OS.", needed=True,
            )
        ]  # fmt: skip
    lines = [Check("board", "ok", f"{name}, {machine.arch}")]
    answer = machine.command("vcgencmd", "get_throttled", limit_s=3)
    flags = re.search(r"throttled=0x([0-9a-fA-F]+)", answer.out)
    if flags is None:
        return lines
    bits = int(flags[1], 16)
    if bits & _UNDER_VOLTAGE:
        lines.append(
            Check("power supply", "warn", f"under-voltage was seen (0x{bits:x}): it slows down",
                  "Use the official supply of this board, and a short cable.")
        )  # fmt: skip
    elif bits & _THROTTLED:
        lines.append(
            Check("cooling", "warn", f"the CPU was slowed down by heat (0x{bits:x})",
                  "Add a heat sink or a fan before you measure.")
        )  # fmt: skip
    else:
        lines.append(Check("power and cooling", "ok", "never slowed down since it was started"))
    return lines


# --- NVIDIA GPUs as the driver tells of them; nothing of CUDA is loaded

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


# --- libcudart, which engines need beside TensorRT; loaded in a child process only

_ASK: Final = """
from frami_edge_runtime.backends.cudart import Cudart
say(sm=Cudart().sm())
"""


def cudart(machine: Machine) -> list[Check]:
    """Whether it loads and sees the GPU; silent where there is no GPU."""
    if not gpus(machine).found:
        return []
    told = machine.ask("cudart", _ASK, 4.5)
    if told["sm"]:
        return [Check("CUDA runtime", "ok", f"sees a GPU of compute capability {told['sm']}")]
    what = told.trouble.removeprefix("BackendError: ")
    fix = "Engines need it: nvidia-jetpack on a Jetson, CUDA 12 or 13 elsewhere; or backend='cpu'."
    return [Check("CUDA runtime", "warn", what or "libcudart told nothing", fix)]


# --- TensorRT: which one Python sees, which one the system has, and whether it knows this GPU
# It is imported in a child process only. Sources: NVIDIA's support matrices of TensorRT 10.0 to 11.3
# and release notes of 10.8 and 11.3 (architectures), docs/JETPACK.md (JetPack, pip's aarch64 wheels).

OLDEST: Final = (10, 3)
_LIMIT_S: Final = 10.0
_PACKAGES: Final = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
_TENSORRT_ASK: Final = """
import tensorrt
say(version=str(tensorrt.__version__), file=str(tensorrt.__file__))
"""
# Compute capabilities that came or went while TensorRT 10 and 11 were made.
_SINCE: Final[dict[tuple[int, ...], tuple[int, int]]] = {
    (10, 0): (10, 8), (12, 0): (10, 8), (10, 3): (10, 13), (11, 0): (10, 13), (12, 1): (10, 13),
    (10, 7): (11, 3),
}  # fmt: skip
_OLDEST_SM: Final = ((10, 5), (7, 5))
"""From this TensorRT on, nothing below this capability; before, 7.0."""
_IN_A_VENV: Final = "python3 -m venv --system-site-packages ENV"
_ON_A_JETSON: Final = f"sudo apt install nvidia-jetpack, and make the environment with {_IN_A_VENV}"


@dataclass(frozen=True)
class TensorRT:
    """What Python sees."""

    version: str = ""
    """Empty where it cannot be imported."""
    from_pip: bool = False
    problem: str = ""
    """Why it cannot be imported; empty where it is simply not installed."""


def tensorrt(machine: Machine) -> TensorRT:
    """Imported in a child, once for all probes."""
    return machine.once("tensorrt", lambda: _tensorrt_look(machine))


def tensorrt_lines(machine: Machine) -> list[Check]:
    """What is installed, and whether it fits this GPU."""
    seen = tensorrt(machine)
    system = _system_version(machine)
    jetson = is_jetson(machine)
    if not seen.version:
        return [_not_importable(machine, seen, system, jetson)]
    where = "from pip" if seen.from_pip else "of the system"
    text = f"{seen.version}, {where}"
    if jetson and seen.from_pip and _numbers(seen.version) < (11, 4):
        return [
            Check(
                "TensorRT", "fail", f"{text}: pip's packages for arm64 are for servers and do not "
                "support a Jetson's GPU", f"pip uninstall -y {' '.join(_installed(machine))}; then "
                f"{_ON_A_JETSON}",
            )
        ]  # fmt: skip
    if _numbers(seen.version) < OLDEST:
        return [
            Check("TensorRT", "warn", f"{text}: 10.3 is the oldest that our engines work with",
                  "JetPack 6.1 or newer; on a PC: pip install 'tensorrt>=10.3'")
        ]  # fmt: skip
    lines = [Check("TensorRT", "ok", text)]
    if system and seen.from_pip and _numbers(system)[:2] != _numbers(seen.version)[:2]:
        lines.append(
            Check("TensorRT, twice", "warn", f"pip's {seen.version} hides the system's {system}: "
                  "an engine fits one of them", f"pip uninstall -y {' '.join(_installed(machine))}")
        )  # fmt: skip
    return lines + _fits(machine, seen.version)


def supports(version: str, sm: str) -> bool:
    """Whether a TensorRT release has kernels for a compute capability, as far as is known.

    Args:
        version: ``10.3.0`` and the like.
        sm: ``8.7`` and the like.
    """
    release, capability = _numbers(version)[:2], _numbers(sm)
    newest_rule, least = _OLDEST_SM
    if capability < (least if release >= newest_rule else (7, 0)):
        return False
    return release >= _SINCE.get(capability, (0, 0))


def _fits(machine: Machine, version: str) -> list[Check]:
    lines = []
    for one in gpus(machine).found:
        if one.sm and not supports(version, one.sm):
            first = _SINCE.get(_numbers(one.sm))
            fix = (
                f"Install TensorRT {first[0]}.{first[1]} or newer."
                if first
                else "Use TensorRT 10.4 or older where its CUDA allows, or backend='cpu'."
            )
            text = f"{version} has no kernels for compute capability {one.sm} ({one.name})"
            lines.append(Check("TensorRT for this GPU", "fail", text, fix))
        elif one.sm:
            lines.append(Check("TensorRT for this GPU", "ok", f"knows compute capability {one.sm}"))
    return lines


def _not_importable(machine: Machine, seen: TensorRT, system: str, jetson: bool) -> Check:
    if seen.problem:
        release = jetpack(machine)
        fix = _ON_A_JETSON if jetson or release else "pip install --force-reinstall tensorrt"
        return Check("TensorRT", "warn", f"installed, but: {seen.problem}", f"{fix}.")
    if system:
        return Check(
            "TensorRT", "warn",
            f"the system has {system}, and this Python does not see it",
            f"{_IN_A_VENV} makes an environment that does (apt install python3-libnvinfer).",
        )  # fmt: skip
    if jetson:
        return Check("TensorRT", "absent", "not installed; engines need it", f"{_ON_A_JETSON}.")
    has_gpu = bool(gpus(machine).found)
    text = "not installed; only engines need it"
    return Check("TensorRT", "absent", text, "pip install 'tensorrt>=10.3'" if has_gpu else "")


def _tensorrt_look(machine: Machine) -> TensorRT:
    told = machine.ask("tensorrt", _TENSORRT_ASK, _LIMIT_S)
    if told["version"]:
        # Debian's Python packages, JetPack's among them, live in dist-packages.
        return TensorRT(told["version"], "dist-packages" not in str(told["file"]))
    if told.error == "ModuleNotFoundError" and not _installed(machine):
        return TensorRT()
    return TensorRT(problem=told.trouble or "it told no version")


def _installed(machine: Machine) -> list[str]:
    return [name for name in _PACKAGES if machine.version(name)]


def _system_version(machine: Machine) -> str:
    """Of libnvinfer as dpkg or the linker know it; empty where it is not there."""
    answer = machine.command("dpkg-query", "-W", "-f", "${Version}\n", "libnvinfer[0-9]*",
                             limit_s=3)  # fmt: skip
    found = re.search(r"^(\d+(?:\.\d+){1,3})", answer.out, re.MULTILINE)
    if found is not None:
        return found[1]
    linked = machine.command("ldconfig", "-p", limit_s=3).out
    sonames = re.findall(r"libnvinfer\.so\.(\d+(?:\.\d+)*)", linked)
    return max(sonames, key=_numbers) if sonames else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


# --- Engines that lie here: were they built with this TensorRT, for this GPU?

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


# --- ONNX Runtime: does it load, is it there twice, do its GPU providers really start

NAMES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
                "onnxruntime-rocm", "onnxruntime-qnn")  # fmt: skip
"""Packages that install the same module."""
LIMIT_S: Final = 15.0
"""Long, because a busy machine must not pass for a broken one."""
_GPU: Final = {"CUDAExecutionProvider": "CUDA", "TensorrtExecutionProvider": "TensorRT"}
# An Identity of one float: a provider that cannot load its libraries falls back without an error.
_TINY: Final = (
    "CAcSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="
)
_ONNX_RUNTIME_ASK: Final = f"""
import base64
import numpy
import onnxruntime as o
say(version=o.__version__, providers=o.get_available_providers(), numpy=numpy.__version__)
options = o.SessionOptions()
options.log_severity_level = 4
model = base64.b64decode({_TINY!r})
def runs(providers):
    session = o.InferenceSession(model, options, providers=providers)
    session.run(None, {{"x": numpy.ones(1, numpy.float32)}})
    return session.get_providers()
say(cpu=runs(["CPUExecutionProvider"]))
if "CUDAExecutionProvider" in o.get_available_providers():
    say(cuda=runs(["CUDAExecutionProvider", "CPUExecutionProvider"]))
"""
_BROKEN_ON_JETSONS: Final = {"1.22.0": "aborts on import", "1.24.2": "crashes at exit"}
"""On an Orin NX: microsoft/onnxruntime#25103 and #28301."""


def onnx_runtime(machine: Machine) -> list[Check]:
    """A line on the package, and one on each of its GPU providers."""
    installed = [name for name in NAMES if machine.version(name)]
    told = machine.ask("onnxruntime", _ONNX_RUNTIME_ASK, LIMIT_S)
    version = told["version"]
    if len(installed) > 1:
        return [_twice(installed, told.trouble)]
    name = installed[0] if installed else "onnxruntime"
    if told["cpu"] is None:
        found = f"{version or ''} {told.trouble or 'it did not run a model'}".strip()
        if told.error == "ModuleNotFoundError" and not installed:
            return [Check(name, "fail", "not installed", "pip install onnxruntime", needed=True)]
        fix = f"pip install --force-reinstall --no-deps {name}"
        if "numpy" in told.trouble.lower():
            fix = "pip install 'numpy<2'"  # wheels of NVIDIA's that were built for NumPy 1
        return [Check(name, "fail", found, fix, needed=True)]
    why = _BROKEN_ON_JETSONS.get(str(version), "") if is_jetson(machine) else ""
    if why:
        text = f"{version} {why} on some Jetsons"
        return [Check(name, "warn", text, f"pip install '{name}!={version}'", needed=True)]
    providers = [p.removesuffix("ExecutionProvider") for p in told["providers"] or ()]
    text = f"{version}, providers: {', '.join(providers)}"
    return [Check(name, "ok", text, needed=True), *_gpu_provider(told["providers"], told["cuda"])]


def _twice(installed: list[str], trouble: str) -> Check:
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else installed[0]
    broken = f"; now: {trouble}" if trouble else ""
    return Check(
        "onnxruntime", "fail" if trouble else "warn",
        f"{' and '.join(installed)} overwrite each other's files{broken}",
        f"pip uninstall -y {' '.join(installed)}; then pip install {keep}", needed=True,
    )  # fmt: skip


def _gpu_provider(available: list[str] | None, running: list[str] | None) -> list[Check]:
    offered = [word for name, word in _GPU.items() if name in (available or ())]
    if not offered:
        return []
    if running and "CUDAExecutionProvider" in running:
        return [Check("GPU in onnxruntime", "ok", "CUDA runs a model")]
    return [
        Check(
            "GPU in onnxruntime", "warn",
            f"{' and '.join(offered)} offered, but it falls back to the CPU: no GPU, or CUDA and "
            "cuDNN are of another version than this onnxruntime was built for",
            "Install the CUDA and cuDNN that its release notes name, or use backend='cpu'.",
        )
    ]  # fmt: skip


# --- Sound in: a microphone by PortAudio or ALSA, and what reads audio files

_MICROPHONE_LIMIT_S: Final = 4.5
READERS_LIMIT_S: Final = 15.0
_ASK_PORTAUDIO: Final = """
import sounddevice as s
say(portaudio=True)
try:
    d = s.query_devices(kind="input")
    say(device=str(d["name"]), rate=float(d["default_samplerate"]))
except Exception as error:
    say(none=str(error))
"""
_ASK_READERS: Final = """
import io
import numpy
import soundfile
say(version=soundfile.__version__, libsndfile=soundfile.__libsndfile_version__,
    formats=sorted(soundfile.available_formats()))
x = (numpy.arange(800) % 97 * 300 - 15000).astype(numpy.int16)
file = io.BytesIO()
soundfile.write(file, x, 8000, format="FLAC", subtype="PCM_16")
file.seek(0)
y, rate = soundfile.read(file, dtype="int16")
say(flac=bool(rate == 8000 and (y == x).all()))
"""
_SHOWN: Final = ("WAV", "FLAC", "OGG", "MP3", "AIFF")
_PORTAUDIO_FIX: Final = "sudo apt-get install libportaudio2, or alsa-utils for arecord"


def microphone(machine: Machine) -> list[Check]:
    """Whether something can be recorded with; nothing is recorded."""
    told = machine.ask("sounddevice", _ASK_PORTAUDIO, _MICROPHONE_LIMIT_S)
    if told["device"]:
        return [Check("microphone", "ok", f"{told['device']}, {told['rate']:g} Hz (PortAudio)")]
    listed = machine.command("arecord", "-l", limit_s=3)
    cards = re.findall(r"^card \d+:.*?\[(.*?)\]", listed.out, re.MULTILINE)
    if cards and not told["portaudio"]:
        return [Check("microphone", "ok", f"{', '.join(cards[:3])} (arecord)")]
    capturing = [line for line in machine.text("proc/asound/pcm").splitlines() if "capture" in line]
    if capturing and not machine.usable("dev/snd/controlC0"):
        return [
            Check("microphone", "warn", f"{len(capturing)} in the machine, and this user may not "
                  "use it", "sudo usermod -aG audio $USER, then log in again")
        ]  # fmt: skip
    if told["portaudio"]:
        text = "PortAudio finds no default input device"
        if capturing:
            fix = "`arecord -L` names the devices; pass one: frami-edge-listen MODEL --device NAME"
            return [Check("microphone", "warn", f"{text}, ALSA has {len(capturing)}", fix)]
        return [Check("microphone", "absent", text, "Plug one in; in a container add --device "
                      "/dev/snd.")]  # fmt: skip
    if told.error == "OSError":
        text = "sounddevice is installed, and the PortAudio library is not"
        return [Check("microphone", "warn", text, _PORTAUDIO_FIX)]
    if told.error != "ModuleNotFoundError":
        return [Check("microphone", "warn", f"sounddevice: {told.trouble}", _PORTAUDIO_FIX)]
    if listed.missing:
        text = "neither sounddevice nor arecord is installed"
        fix = "pip install 'frami-edge-runtime[mic]' and sudo apt-get install libportaudio2"
        return [Check("microphone", "absent", text, fix)]
    return [Check("microphone", "absent", "arecord lists none", "Plug one in.")]


def readers(machine: Machine, *, needed: bool = False) -> list[Check]:
    """What reads audio files; a FLAC is written and read in memory.

    Args:
        machine: To look at.
        needed: Whether the main job reads audio: the trainer's does, a device has PCM WAV anyway.
    """
    told = machine.ask("soundfile", _ASK_READERS, READERS_LIMIT_S)
    if told.error == "ModuleNotFoundError" and not machine.version("soundfile"):
        text = "PCM WAV only: soundfile is not installed"
        fix = "pip install 'frami-edge-runtime[audio]'"
        return [Check("audio files", "fail" if needed else "absent", text, fix, needed=needed)]
    if not told["flac"]:
        what = told.trouble or "a FLAC does not come back as it was written"
        fix = "pip install --force-reinstall soundfile; on old systems: apt-get install libsndfile1"
        return [Check("audio files", "fail", f"soundfile: {what}", fix, needed=needed)]
    formats = [name for name in _SHOWN if name in (told["formats"] or ())]
    text = f"{', '.join(formats)} (soundfile {told['version']}, libsndfile {told['libsndfile']})"
    return [Check("audio files", "ok", text, needed=needed)]


def resampling(machine: Machine) -> list[Check]:
    """soxr, which is LGPL and therefore an extra."""
    version = machine.version("soxr")
    if version:
        return [Check("resampling", "ok", f"soxr {version}")]
    text = "not installed: audio must come at the model's own rate"
    return [Check("resampling", "absent", text, "pip install 'frami-edge-runtime[resample]'")]


# --- What a device is asked, and what the trainer asks too

LEAST_MEMORY_GB: Final = 0.15
LEAST_DISK_GB: Final = 0.05


def runtime_probes(places: Sequence[Path] = ()) -> list[Probe]:
    """All that `frami_edge_runtime.doctor` looks at.

    Args:
        places: Engines, or folders that hold some, to compare with this machine.
    """
    return [
        Probe("Python", "machine", python),
        Probe("CPU cores", "machine", cores),
        Probe("memory", "machine", partial(memory, least_gb=LEAST_MEMORY_GB, comfortable_gb=0.5)),
        Probe("disk", "machine", _disk),
        Probe("board", "machine", board),
        Probe("NumPy", "packages", _numpy, needed=True),
        onnx_runtime_probe(),
        *gpu_probes(places),
        *sound_probes(),
    ]


def onnx_runtime_probe() -> Probe:
    """ONNX Runtime."""
    return Probe("onnxruntime", "packages", onnx_runtime, limit_s=LIMIT_S + 1.0, needed=True)


def gpu_probes(places: Sequence[Path] = ()) -> list[Probe]:
    """GPU, CUDA runtime, TensorRT and engines."""
    # An engine's line waits for the GPU's and TensorRT's.
    probes = [
        Probe("GPU", "GPU", gpu),
        Probe("CUDA runtime", "GPU", cudart, limit_s=10.0),
        Probe("TensorRT", "GPU", tensorrt_lines, limit_s=19.0),
    ]
    if places:
        compare = partial(engines, places=tuple(places))
        probes.append(Probe("engines", "engines", compare, limit_s=20.0))
    return probes


def sound_probes(*, needed: bool = False) -> list[Probe]:
    """Microphone, audio files, resampling.

    Args:
        needed: Whether the main job reads audio files.
    """
    return [
        Probe("microphone", "sound", microphone, limit_s=8.0),
        Probe(
            "audio files", "sound", partial(readers, needed=needed),
            limit_s=READERS_LIMIT_S + 1.0, needed=needed,
        ),
        Probe("resampling", "sound", resampling),
    ]  # fmt: skip


def _disk(machine: Machine) -> list[Check]:
    places = [("here", Path.cwd()), ("temporary files", temporary_folder())]
    return disk(machine, places, LEAST_DISK_GB, 0.5)


def _numpy(machine: Machine) -> list[Check]:
    version = machine.version("numpy")
    if version is None:
        return [Check("NumPy", "fail", "not installed", "pip install numpy", needed=True)]
    return [Check("NumPy", "ok", version, needed=True)]


# --- ``python -m frami_edge_runtime.doctor``: is this device ready to listen

NOT_READY = 3


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    """Look, print, and say by the exit code whether the runtime can work: 0 or 3.

    Args:
        arguments: Those of the command line; None for `sys.argv`.
        machine: To look at; None for this one.
    """
    given = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A device's name may be in letters that this terminal lacks.
            stream.reconfigure(errors="backslashreplace")
    checks = examine(runtime_probes(given.places), machine or Machine())
    ready = not any(check.blocks for check in checks)
    if given.json:
        lines = [check.to_dict() for check in checks]
        print(json.dumps({"version": __version__, "ready": ready, "checks": lines}, indent=2))
    else:
        sys.stdout.write(as_text(checks, sys.stdout.encoding))
        what = "listening with these engines" if given.places else "listening"
        print(verdict(checks, what), file=sys.stderr)
    return 0 if ready else NOT_READY


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m frami_edge_runtime.doctor",
        description="What this device has and lacks, and the fix for each.",
        epilog="exit codes: 0 ready; 2 wrong usage; 3 something needed is broken",
    )
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="ENGINE",
        help="engines, or folders that hold some, to compare with this machine",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


if __name__ == "__main__":
    sys.exit(main())


# --- What this machine has, what it lacks, and the exact fix: ``python -m frami_edge_runtime.doc

__all__ = ["Check", "Machine", "Probe", "Status", "examine"]
