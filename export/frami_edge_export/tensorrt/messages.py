"""What TensorRT says while it works: kept for the error message, not printed."""

from __future__ import annotations

from collections import deque
from typing import Any

KEPT = 6
MAX_CHARACTERS = 400


def make_logger(trt: Any) -> Any:
    """A ``trt.ILogger`` that keeps the last warnings and errors; ``said()`` gives them in a line.

    Args:
        trt: The ``tensorrt`` module. Its logger is a base class, so this one can only be defined
            once it is there.
    """

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT)
            self.warnings: deque[str] = deque(maxlen=KEPT)

        def log(self, severity: Any, msg: str) -> None:
            """TensorRT calls this, from any thread; it must not raise."""
            # INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4.
            level = int(severity)
            if level <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(str(msg))
            elif level == int(trt.ILogger.Severity.WARNING):
                self.warnings.append(str(msg))

        def said(self) -> str:
            """The last errors, or the last warnings where there was none."""
            lines = [" ".join(m.split()) for m in (self.errors or self.warnings)]
            text = " | ".join(lines) or "it gave no reason."
            return text if len(text) <= MAX_CHARACTERS else "..." + text[-MAX_CHARACTERS:]

    return Recorder()
