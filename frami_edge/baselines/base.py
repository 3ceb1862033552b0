"""What the baselines share.

Synthesis and distillation stay apart: a method that needs a student in its loop plays against a
`SparringStudent`, and the student that is scored learns from the finished bank like every other.
Shape legend: B batch, M mel bands, T frames, K classes, Z latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from frami_edge.baselines.losses import PublishedBatchNorm
from frami_edge.config import Strict
from frami_edge.device import generator
from frami_edge.inversion.generator import Generator
from frami_edge.inversion.sources.base import Batch, Context, as_module, named_seed
from frami_edge.inversion.sparring import SparringStudent


class BaselineConfig(Strict):
    """The budget, the same for every method."""

    steps: int = Field(400, ge=1)
    """Optimiser steps of the synthesis."""
    batch_size: int = Field(48, ge=2)
    """Clips a step."""
    width: int = Field(64, ge=8)
    """Channels of the generator's coarsest layer: FRAMI's own, for equal capacity."""


class Learned:
    """A source that learns; a subclass fills `parts` and implements `step`.

    Attributes:
        parts: Modules and optimisers by name, for `state`.
        tensors: Other tensors a resumed run needs.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[BaselineConfig]]

    def __init__(self, context: Context, config: BaselineConfig) -> None:
        self.context, self.steps = context, config.steps
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {}
        self.tensors: dict[str, Tensor] = {}
        self.sparring: SparringStudent | None = None
        torch.manual_seed(named_seed(context.seed, self.name))

    def watch(self, momentum: float = 0.0) -> PublishedBatchNorm:
        """The teacher's BatchNorm layers."""
        return PublishedBatchNorm(as_module(self.context.teacher), momentum)

    def spar(self) -> SparringStudent:
        """A student to play against."""
        c = self.context
        self.sparring = SparringStudent(c.teacher, c.spec, c.n_classes, c.choice)
        return self.sparring

    def unconditional(self, latent: int, width: int) -> Generator:
        """Our generator without a class: its one-hot input is a constant."""
        c = self.context
        return Generator(c.spec, 1, c.config.frames, latent, width).to(c.choice.device)

    def rng(self, index: int) -> torch.Generator:
        """Chance of one step."""
        return generator(self.context.seed, f"{self.name}/{index}")

    def step(self, index: int) -> Batch:
        """One optimiser step of the synthesis."""
        raise AssertionError(f"{type(self).__name__} has no step")

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, tensors, sparring student.

        CMI's best iterate so far and Fast-Datafree's gathered gradients and moments are not in it:
        the protocol makes a bank that was cut short afresh.
        """
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        state["tensors"] = {name: value.detach().clone() for name, value in self.tensors.items()}
        if self.sparring:
            state["sparring"] = self.sparring.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for name, value in state["tensors"].items():
            if name in self.tensors:
                self.tensors[name].data.copy_(value)
            else:
                self.tensors[name] = value
        if self.sparring:
            self.sparring.load_state(state["sparring"])


def zeros(z_BZ: Tensor) -> Tensor:
    """(B,) the only class of an unconditional generator."""
    return torch.zeros(len(z_BZ), dtype=torch.int64, device=z_BZ.device)


def numbers(loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
    """Metrics of a step."""
    return {"loss": loss.detach()} | {name: value.detach() for name, value in terms.items()}
