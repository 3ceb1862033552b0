"""Ctrl-C and SIGTERM end a listening program between two steps, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """A wish to stop. While it waits for audio it is interrupted; while it works it is asked."""

    def __init__(self) -> None:
        """Not wished yet."""
        self.wanted = False
        self._waiting = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a read that may block: a signal raises KeyboardInterrupt inside."""
        self._waiting = True
        try:
            if self.wanted:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; the old handlers come back at the end.

        Outside the main thread, where Python cannot take signals, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and not self._waiting:
            raise KeyboardInterrupt  # asked twice: a step that hangs must not hold us
        self.wanted = True
        if self._waiting:
            raise KeyboardInterrupt
