"""One process a folder: a lock that the system releases with the process, however it ends.

Some file systems that hosts share have no locks. There the lock file itself is the lock: it names
its holder, who touches it again and again; one that has not been touched for `STALE_S` is of a
process that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import tempfile
import threading
import zlib
from pathlib import Path

from frami_edge.errors import RunError

NAME = ".lock"
BEAT_S = 20.0
"""Between two touches."""
STALE_S = 120.0
"""Without a touch for so long, a holder on another host is gone."""


class FolderLock:
    """Held from construction to `release`.

    The lock file stays, because removing it would let two processes lock two files of one name.

    Args:
        folder: An existing folder.

    Raises:
        RunError: Another process holds it.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._released = threading.Event()
        self._descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _locked(self._descriptor)
            holder, host = _holder(self._descriptor)
            elsewhere = bool(host) and host != _host()
            if locked is None and holder:
                held = self._silence(folder) < STALE_S if elsewhere else _alive(holder)
            else:
                held = locked is False
            if held:
                raise _in_use(folder, holder, elsewhere=elsewhere)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} {_host()}\n".encode(), 0)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._descriptor >= 0:
            self._released.set()
            descriptor, self._descriptor = self._descriptor, -1
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)

    def _silence(self, folder: Path) -> float:
        """Seconds since the last touch, by the clock of the file system."""
        with tempfile.TemporaryFile(dir=folder) as now:
            return os.fstat(now.fileno()).st_mtime - os.fstat(self._descriptor).st_mtime


def _locked(descriptor: int) -> bool | None:
    """Whether the system gave the lock; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _holder(descriptor: int) -> tuple[int | None, str]:
    """Process and host that the file names."""
    words = os.pread(descriptor, 64, 0).decode(errors="replace").split()
    if not words or not words[0].isdecimal():
        return None, ""
    return int(words[0]), words[1] if len(words) > 1 else ""


def _host() -> str:
    """A number for this host: its name is nobody's business."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return process != os.getpid()


def _in_use(folder: Path, holder: int | None, *, elsewhere: bool) -> RunError:
    who = f" (process {holder}{' on another host' if elsewhere else ''})" if holder else ""
    wait = f"Wait for it (if it was killed, {STALE_S:.0f} s)" if elsewhere else "Wait for it"
    return RunError(
        f"{folder} is in use by another run{who}.", fix=f"{wait}, or give another --out."
    )
