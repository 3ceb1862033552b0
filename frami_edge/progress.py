"""How long-running calls report progress: a callback that receives one `Progress` per update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from frami_edge.runs import RunFolder


@dataclass(frozen=True)
class Progress:
    """One update of a long-running call.

    Attributes:
        phase: What is running, such as `"inversion"` or `"distill"`.
        done: Steps (or clips) finished so far.
        total: Steps (or clips) in all; None where the end is not known.
        metrics: The latest figures, such as the loss, by name.
    """

    phase: str
    done: int
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


ProgressCallback = Callable[[Progress], None]


class StepReport:
    """Rows of metrics and progress of a loop; metrics are read from the device some at a time.

    `first` steps are done: later rows of an earlier run are dropped. Each of the reads, every
    `read_every` steps, is a host sync on a GPU.
    """

    def __init__(
        self,
        phase: str,
        first: int,
        total: int,
        read_every: int,
        run: RunFolder | None,
        progress: ProgressCallback | None,
    ) -> None:
        self.phase, self.done, self.total, self.read_every = phase, first, total, read_every
        self.run, self.progress = run, progress
        self._unread: list[Mapping[str, Tensor]] = []
        if run:
            run.rewind(first, phase=phase)

    def step(self, metrics: Mapping[str, Tensor], *, read: bool = False) -> list[dict[str, float]]:
        """One step more; returns the rows that were read, if any."""
        self._unread.append({name: value.detach() for name, value in metrics.items()})
        return self.read() if read or len(self._unread) >= self.read_every else []

    def read(self) -> list[dict[str, float]]:
        """Read and pass on the metrics of the latest steps."""
        rows = []
        for metrics in self._unread:
            self.done += 1
            row = {name: float(value) for name, value in metrics.items()}
            if self.run and row:
                self.run.log(step=self.done, phase=self.phase, **row)
            if self.progress:
                self.progress(Progress(self.phase, self.done, self.total, row))
            rows.append(row)
        self._unread.clear()
        return rows
