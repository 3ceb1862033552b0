"""Commands that may crash, hang, or hang so that not even SIGKILL ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

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
