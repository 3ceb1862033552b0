"""Ctrl-C and SIGTERM let a long loop finish its step: it saves, then the run ends as interrupted.

A service manager or a cluster that takes its machine back sends SIGTERM; both are treated alike.
The second signal is not waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from frami_edge.cli._errors import Terminated
from frami_edge.distributed import any_process, world

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked a loop to end; a context manager around the loop.

    Inside, the first signal is only remembered; it also puts the former handlers back, so that the
    second one acts at once. Outside the main thread, where Python allows no handlers, signals act
    at once as ever.

    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Wait for signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Signals act at once again; one that came too late for the last step still ends the run.

        Raises:
            KeyboardInterrupt: As `leave`.
        """
        self._restore()
        if error is None:
            self.leave()

    def asked(self) -> bool:
        """Whether the loop shall end now, which all processes of a run answer alike.

        Every process has to ask after the same step.
        """
        self._agreed = any_process(self._signal is not None)
        return self._agreed

    def leave(self) -> None:
        """End the run if this process was asked to; everything is saved by now.

        Raises:
            KeyboardInterrupt: After SIGINT.
            Terminated: After SIGTERM, and where another process of the run was signalled.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None or self._agreed:
            raise Terminated

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()
        if world().main:
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            # Not through `sys.stderr`, in whose midst the signal may have come.
            with contextlib.suppress(OSError):
                os.write(
                    2, f"\n{name}: stopping after this step; a second one stops at once.\n".encode()
                )

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class _Never(Stop):
    """For loops that nobody may stop between steps, and scripts."""

    def asked(self) -> bool:
        """No, without asking the other processes."""
        return False


NEVER = _Never()
"""The default of every loop."""
