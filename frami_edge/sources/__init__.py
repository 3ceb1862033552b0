"""Where the clips of a bank come from: one interface for our sources, controls and baselines.

A new source is a class with the methods of `Source`, a line in `SOURCES`, and its name in
`frami_edge.config.BankConfig`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.config import BASELINES, BankConfig, frames_in
from frami_edge.device import Compute
from frami_edge.losses import Output, has_class
from frami_edge.models import TeacherLike
from frami_edge_runtime.melspec import MelSpec

SOURCES = {
    "inversion": "frami_edge.inversion:Inversion",
    "procedural": "frami_edge.sources.procedural:Procedural",
    "translator": "frami_edge.sources.translator:Translation",
    "breeding": "frami_edge.sources.breeding:Breeding",
    "refinement": "frami_edge.sources.refinement:Refinement",
    "recordings": "frami_edge.sources.recordings:Recordings",
    "smooth_noise": "frami_edge.sources.baselines:SmoothNoise",
    "white_noise": "frami_edge.sources.baselines:WhiteNoise",
    "deep_inversion": "frami_edge.sources.baselines:DeepInversion",
    "dafl": "frami_edge.sources.baselines:Dafl",
    "zskt": "frami_edge.sources.baselines:Zskt",
    "dfq": "frami_edge.sources.baselines:Dfq",
    "cmi": "frami_edge.sources.baselines:Cmi",
    "fast": "frami_edge.sources.baselines:Fast",
}
"""Module and class by name in the config; imported when used, since few banks use them all."""
LEARNED = ("inversion", "translator", "breeding", "refinement", *BASELINES)
"""Sources that learn from the teacher and have losses."""
NO_LABEL = -1
"""The label of a clip that was made without a target class."""


@dataclass
class Batch:
    """Clips of one step: log-mels or audio, of which the bank makes what it stores.

    Attributes:
        mels_B1MT: Normalised log-mels, float32, on any device; None for audio.
        labels_B: Target classes, or `NO_LABEL`.
        keep: Whether the clips are good enough for the bank.
        metrics: Losses of the step, on the device until they are read.
        audio_BN: Samples in -1..1 at the front end's rate, of a source that has audio.
    """

    mels_B1MT: Tensor | None
    labels_B: Tensor
    keep: bool
    metrics: Mapping[str, Tensor]
    audio_BN: Tensor | None = None


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


@runtime_checkable
class MakesMore(Protocol):
    """A source whose trained state gives further clips at little cost."""

    def fresh(self, n: int) -> Batch:
        """Clips that are in no step, and that nothing is trained on."""
        ...


@runtime_checkable
class Independent(Protocol):
    """A source whose steps do not build on each other: a free core may make some of them."""

    def beside(self, context: SourceContext) -> Source:
        """The same source with another copy of the teacher, for another thread."""
        ...


@dataclass
class SourceContext:
    """What every source is made from.

    `teacher` takes log-mels of `spec`: one that takes audio is behind a renderer. `samples` is the
    length of every clip of a bank of audio, 0 for a bank of log-mels.
    """

    teacher: TeacherLike
    spec: MelSpec
    n_classes: int
    config: BankConfig
    compute: Compute
    seed: int
    output: Output = "softmax"
    samples: int = 0

    def requests(self, labels_B: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Labels to store, and what a detectors' teacher shall answer, on the device; see below."""
        if self.output == "softmax":
            return labels_B, None
        c = self.config
        wanted_BK, labels_B = requests(labels_B, self.n_classes, c.near_misses, c.pairs, rng)
        return labels_B, wanted_BK.to(self.compute.device)

    @property
    def frames(self) -> int:
        """Mel frames (T) of every clip."""
        return frames_in(self.config.clip_s, self.spec)

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


NEAR_MISS = (0.05, 0.45)
"""Requested probabilities of near misses, uniform in between: 0.5 would be a detection."""


def requests(
    labels_B: Tensor, n_classes: int, near: float, pairs: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What clips shall make of a teacher's K detectors.

    Args:
        labels_B: One class per clip.
        n_classes: K.
        near: Share of the clips that shall stay just below the boundary of their class.
        pairs: Share of the others that shall have a second class as well.
        rng: Chooses them.

    Returns:
        Requested probabilities (B, K), NaN where the teacher may answer as it likes; and the
        labels, `NO_LABEL` for a near miss.
    """
    b = len(labels_B)
    wanted_BK = torch.full((b, n_classes), torch.nan)
    low, high = NEAR_MISS
    p_B = low + (high - low) * torch.rand(b, generator=rng)
    near_B = torch.rand(b, generator=rng) < near
    pair_B = (torch.rand(b, generator=rng) < pairs) & ~near_B
    second_B = torch.randint(0, n_classes, (b,), generator=rng)
    rows = torch.arange(b)
    wanted_BK[rows[pair_B], second_B[pair_B]] = 1.0
    wanted_BK[rows, labels_B] = torch.where(near_B, p_B, 1.0)
    return wanted_BK, torch.where(near_B, NO_LABEL, labels_B)


def condition(labels_B: Tensor, wanted_BK: Tensor | None, n_classes: int) -> Tensor:
    """(B, K) input of a generator: one class, or the requested probabilities, 0 for none."""
    return F.one_hot(labels_B, n_classes) if wanted_BK is None else wanted_BK.nan_to_num(0.0)


def descend(terms: Mapping[str, Tensor], *optimizers: torch.optim.Optimizer) -> None:
    """One step of each optimiser down the sum of the terms."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def metrics_of(
    terms: Mapping[str, Tensor],
    logits_BK: Tensor | None = None,
    labels_B: Tensor | None = None,
    output: Output = "softmax",
) -> dict[str, Tensor]:
    """Metrics of a step, on the device: loss, terms, share of clips that hit their target."""
    parts: dict[str, Tensor] = {name: value.detach() for name, value in terms.items()}
    parts = {"loss": torch.stack(list(terms.values())).sum().detach()} | parts
    if logits_BK is not None and labels_B is not None:
        hits_B = has_class(logits_BK, labels_B, output).float()
        parts["hit_rate"] = hits_B.sum() / (labels_B >= 0).sum().clamp_min(1)
    return parts
