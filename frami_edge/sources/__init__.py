"""Where the clips of a bank come from: one interface for our sources, controls and baselines.

A new source is a class with the methods of `Source`, a line in `SOURCES`, and its name in
`frami_edge.config.BankConfig`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from frami_edge.config import BASELINES, BankConfig
from frami_edge.device import Compute
from frami_edge.models import TeacherLike
from frami_edge_runtime.melspec import MelSpec

SOURCES = {
    "inversion": "frami_edge.inversion:Inversion",
    "procedural": "frami_edge.sources.procedural:Procedural",
    "translator": "frami_edge.sources.translator:Translation",
    "smooth_noise": "frami_edge.sources.noise:SmoothNoise",
    "white_noise": "frami_edge.sources.noise:WhiteNoise",
    "deep_inversion": "frami_edge.sources.baselines:DeepInversion",
    "dafl": "frami_edge.sources.baselines:Dafl",
    "zskt": "frami_edge.sources.baselines:Zskt",
    "dfq": "frami_edge.sources.baselines:Dfq",
    "cmi": "frami_edge.sources.baselines:Cmi",
    "fast": "frami_edge.sources.baselines:Fast",
}
"""Module and class by name in the config; imported when used, since few banks use them all."""
LEARNED = ("inversion", "translator", *BASELINES)
"""Sources that learn from the teacher and have losses."""
NO_LABEL = -1
"""The label of a clip that was made without a target class."""


@dataclass
class Batch:
    """Clips of one step.

    Attributes:
        mels_B1MT: Normalised log-mels, float32, on any device.
        labels_B: Target classes, or `NO_LABEL`.
        keep: Whether the clips are good enough for the bank.
        metrics: Losses of the step, on the device until they are read.
    """

    mels_B1MT: Tensor
    labels_B: Tensor
    keep: bool
    metrics: Mapping[str, Tensor]


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
        """Continue from `state`."""
        ...


@dataclass
class SourceContext:
    """What every source is made from."""

    teacher: TeacherLike
    spec: MelSpec
    n_classes: int
    config: BankConfig
    compute: Compute
    seed: int

    @property
    def module(self) -> nn.Module:
        """The teacher as a module with named layers."""
        assert isinstance(self.teacher, nn.Module)
        return self.teacher


def make_source(name: str, context: SourceContext) -> Source:
    """A source by its name in the config, at its first step."""
    module, _, cls = SOURCES[name].partition(":")
    source: Source = getattr(importlib.import_module(module), cls)(context)
    return source


# --- Steps that the learned sources share


def balanced_labels(n: int, n_classes: int, offset: int = 0) -> Tensor:
    """(n,) int64 class targets that take turns, so that no class is left out."""
    return (torch.arange(n) + offset) % n_classes


def descend(terms: Mapping[str, Tensor], *optimizers: torch.optim.Optimizer) -> None:
    """One step of each optimiser down the sum of the terms."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def metrics_of(
    terms: Mapping[str, Tensor], logits_BK: Tensor | None = None, labels_B: Tensor | None = None
) -> dict[str, Tensor]:
    """Metrics of a step, on the device: loss, terms, share of clips that hit their target."""
    parts: dict[str, Tensor] = {name: value.detach() for name, value in terms.items()}
    parts = {"loss": torch.stack(list(terms.values())).sum().detach()} | parts
    if logits_BK is not None and labels_B is not None:
        parts["hit_rate"] = (logits_BK.argmax(1) == labels_B).float().mean()
    return parts
