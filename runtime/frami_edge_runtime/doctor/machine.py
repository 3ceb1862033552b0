"""The machine that is looked at: its files, commands and packages, all of them replaceable."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from frami_edge_runtime.doctor.children import Answer, Children

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
