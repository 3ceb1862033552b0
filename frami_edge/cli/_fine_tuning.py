"""An int8 fine-tuning on the terminal: progress, and where Ctrl-C and SIGTERM act."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import TracebackType
from typing import Self

from frami_edge._provenance import command_line
from frami_edge.cli._progress import Progress
from frami_edge.stopping import Stop

STATE = ".qat-state.pt"
"""In the folder of the export, until its files are written."""


class FineTuning:
    """Called after every step; a context manager around the export.

    Args:
        bar: Shows the steps.
        folder: Of the export.
        steps: In all.
    """

    def __init__(self, bar: Progress, folder: Path, steps: int) -> None:
        self.bar, self.folder, self.steps = bar, folder, steps
        self.state = folder / STATE
        self._stop: Stop | None = None

    def __call__(self, done: int, loss: float) -> None:
        """A step is done; raises KeyboardInterrupt where somebody asked for the end."""
        self.bar.update(done - self.bar.completed, loss=loss)
        # Signals wait for steps only: what comes before and after takes longer than people do.
        if self._stop is None:
            self._stop = Stop().__enter__()
        if self._stop.asked():
            self._stop.leave()
        if done == self.steps:
            self._end(None)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say how an interrupted export goes on."""
        self._end(error)
        if isinstance(error, KeyboardInterrupt) and self.state.exists():
            again = shlex.join(command_line())
            error.add_note(f"The fine-tuning so far is in {self.folder}; continue with: {again}")

    def _end(self, error: BaseException | None) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop.__exit__(None if error is None else type(error), error, None)
