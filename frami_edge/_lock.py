"""One process a folder: a lock that the system releases with the process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from frami_edge.errors import RunError

NAME = ".lock"


class FolderLock:
    """Held from construction to `release`.

    The lock file stays, because removing it would let two processes lock two files of one name.

    Args:
        folder: An existing folder.

    Raises:
        RunError: Another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip()
            os.close(self._descriptor)
            who = f" (process {holder})" if holder else ""
            raise RunError(
                f"{folder} is in use by another run{who}.",
                fix="Wait for it, or give another --out.",
            ) from None
        except OSError:
            # Some network file systems have no locks; there the user is the lock.
            pass
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1
