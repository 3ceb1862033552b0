"""The run folder as the processes see it that do not write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from frami_edge.distributed.world import broadcast, lost_processes, world
from frami_edge.runs import RunFolder


class FollowerRun(RunFolder):
    """A run that rank 0 holds: its paths can be read, everything else does nothing.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.resumed, self.resume_hint = folder, False, ""

    def path(self, name: str) -> Path:
        """A place inside the folder, which rank 0 makes."""
        return self.folder / name

    def log(self, *, step: int, **metrics: Any) -> None:
        """Nothing: rank 0 logs what is the same everywhere."""

    def metrics(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def rewind(self, step: int, **match: Any) -> None:
        """Nothing."""

    def record(self, **facts: Any) -> None:
        """Nothing."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Empty."""
        return {"seconds": {}}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """The block, untimed."""
        yield

    def __enter__(self) -> Self:
        """The run."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing: rank 0 writes the status."""


@contextmanager
def shared_run(path: str | os.PathLike[str], **settings: Any) -> Iterator[RunFolder]:
    """`RunFolder.create` on rank 0; the others follow once it has the folder.

    Raises:
        RunError: As `RunFolder.create`; or another process has gone, which the run then says.
    """
    run = RunFolder.create(path, **settings) if world().main else FollowerRun(Path(path))
    with run, lost_processes():
        broadcast(None)
        yield run
