"""What every source of the bank is made from and gives.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from frami_edge.config import BankConfig
from frami_edge.device import Compute, generator
from frami_edge.models import TeacherLike
from frami_edge_runtime.melspec import MelSpec

NO_LABEL = -1
"""The label of a clip that was made without a class in mind."""


@dataclass
class Batch:
    """Clips of one step.

    Attributes:
        mels_B1MT: Normalised log-mels, float32, on any device; all clips of the step on every
            process of a run.
        labels_B: Requested classes, or `NO_LABEL`.
        keep: Whether the clips are good enough for the bank.
        metrics: Losses of the step; tensors on a device are read later, so that no step waits.
    """

    mels_B1MT: Tensor
    labels_B: Tensor
    keep: bool
    metrics: Mapping[str, float | Tensor]


class Source(Protocol):
    """Makes clips step by step. Step i depends on the seed, on i, and on what `state` holds."""

    name: str
    steps: int

    def step(self, index: int) -> Batch:
        """Make (and, for learned sources, learn from) the clips of one step."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; tensors and plain values only."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...


@dataclass
class Context:
    """What every source is made from."""

    teacher: TeacherLike
    spec: MelSpec
    n_classes: int
    config: BankConfig
    compute: Compute
    seed: int


def named_seed(seed: int, name: str) -> int:
    """A seed of its own for each use."""
    return generator(seed, name).initial_seed()


def as_module(teacher: TeacherLike) -> nn.Module:
    """The teacher as what it is: a module with named layers."""
    assert isinstance(teacher, nn.Module)
    return teacher
