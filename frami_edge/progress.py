"""How long-running calls report progress: a callback that receives one `Progress` per update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


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
