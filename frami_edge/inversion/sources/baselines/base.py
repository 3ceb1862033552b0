"""What the baselines share: the budget, a sparring student, their state.

Synthesis and distillation stay apart, unlike in the papers: a method that needs a student in its
loop plays against a `SparringStudent`, and the student that is scored learns from the finished bank
like that of every other method. Several processes all compute the whole batch.
Shape legend: B batch, M mel bands, T frames, K classes, Z latent size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frami_edge.device import generator, upload
from frami_edge.errors import BankError
from frami_edge.inversion.baselines_config import section
from frami_edge.inversion.generator import Generator, balanced_labels
from frami_edge.inversion.sources.base import Batch, Context, named_seed
from frami_edge.inversion.sparring import SparringStudent

PADDED_CROP = 0.875
"""Shortest stretch, relative to the clip, that stands for a random crop of an image of 32 pixels
padded by 4."""
POOL_CLIPS = 512
"""Latest finished clips that a sparring student of a batch-wise method draws from."""


class Baseline(ABC):
    """A learned source; a subclass lists what it must remember in `parts` and `tensors`.

    Args:
        context: Teacher, front end, configuration, device, seed.

    Attributes:
        parts: Modules and optimisers by name.
        tensors: Other tensors a resumed run needs, by name.
        sparring: The student of the loop, where the method has one.
    """

    name: str

    def __init__(self, context: Context) -> None:
        self.context, self.budget = context, context.config.inversion
        self.steps = self.budget.steps
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {}
        self.tensors: dict[str, Tensor] = {}
        self.sparring: SparringStudent | None = None
        torch.manual_seed(named_seed(context.seed, self.name))

    def spar(self) -> None:
        """Have a student to play against."""
        c = self.context
        self.sparring = SparringStudent(c.teacher, c.spec, c.n_classes, c.choice)

    def unconditional(self, latent: int) -> Generator:
        """The inversion's own generator without a class: its one-hot input is a constant."""
        c = self.context
        made = Generator(c.spec, 1, c.config.frames, latent, self.budget.width)
        return made.to(c.choice.device)

    def rng(self, index: int) -> torch.Generator:
        """Chance of one step."""
        return generator(self.context.seed, f"{self.name}/{index}")

    @abstractmethod
    def step(self, index: int) -> Batch:
        """One step of the synthesis."""

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, tensors, sparring student."""
        state: dict[str, Any] = {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "tensors": {name: value.detach().clone() for name, value in self.tensors.items()},
        }
        if self.sparring:
            state["sparring"] = self.sparring.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, value in state["tensors"].items():
            held = self.tensors.get(name)
            if held is not None and held.shape == value.shape:
                # In place: an optimiser, or the step, holds this very tensor.
                held.data.copy_(value)
            else:
                self.tensors[name] = value.to(self.context.choice.device)
        if self.sparring:
            self.sparring.load_state(state["sparring"])


class BatchWise(Baseline):
    """A method that works on one batch for many steps and keeps its best iterate.

    The budget is shared out evenly: ``steps // iterations`` batches, at least one, so that none is
    left unfinished. A subclass implements `begin` and `iterate`.

    Args:
        context: See `Baseline`.
        iterations: Steps on one batch, at least.
        student_steps: Sparring steps for each of them.
    """

    def __init__(self, context: Context, iterations: int, student_steps: float) -> None:
        super().__init__(context)
        self.student_steps = student_steps
        self.batches = max(1, self.steps // iterations)
        shape = (self.budget.batch_size, 1, context.spec.n_mels, context.config.frames)
        device = context.choice.device
        self.tensors["best"] = torch.zeros(shape, device=device)
        self.tensors["best_loss"] = torch.full((), torch.inf, device=device)
        self.tensors["pool"] = torch.zeros(0, *shape[1:], device=device)
        self.batch = 0

    def place(self, index: int) -> tuple[int, bool, bool]:
        """Which batch a step belongs to, and whether it is that batch's first and last step."""
        before, number, after = (
            (i * self.batches) // self.steps for i in (index - 1, index, index + 1)
        )
        return number, before != number, after != number

    def requested(self) -> Tensor:
        """(B,) classes of the running batch, which take turns over all batches."""
        size = self.budget.batch_size
        labels = balanced_labels(size, self.context.n_classes, self.batch * size)
        return upload(labels, self.context.choice.device)

    @abstractmethod
    def begin(self, number: int) -> None:
        """Start a batch anew."""

    @abstractmethod
    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One optimiser step: the clips it was taken on, their logits, and the weighted terms."""

    def end(self) -> None:
        """What happens once a batch is finished, beside sparring."""

    def better(self, loss: Tensor) -> Tensor:
        """Whether this iterate is the best of its batch so far; a tensor, so that no one waits."""
        return loss.detach() < self.tensors["best_loss"]

    def spars(self, index: int) -> bool:
        """Whether the sparring student learns from a batch that ends with this step."""
        return self.sparring is not None

    def step(self, index: int) -> Batch:
        """One step; a batch is given for keeps with its last step, and it is its best iterate."""
        rng = self.rng(index)
        number, first, last = self.place(index)
        self.batch = number
        if first:
            self.tensors["best_loss"].fill_(torch.inf)
            self.begin(number)
        labels = self.requested()
        mels, logits, terms = self.iterate(index, labels, rng)
        loss = torch.stack(list(terms.values())).sum().detach()
        better, best = self.better(loss), self.tensors["best"]
        best.copy_(torch.where(better, mels.detach(), best))
        self.tensors["best_loss"].copy_(torch.where(better, loss, self.tensors["best_loss"]))
        if last:
            self._check_finite(index)
            pool = self.tensors["pool"] = torch.cat([self.tensors["pool"], best])[-POOL_CLIPS:]
            if self.sparring and self.spars(index):
                taken = self.steps // self.batches
                for _ in range(round(self.student_steps * taken)):
                    pick = torch.randint(0, len(pool), (len(best),), generator=rng)
                    self.sparring.learn(pool[upload(pick, pool.device)], rng)
            self.end()
        hit = (logits.argmax(1) == labels).float().mean()
        metrics = told(terms) | {"requested": hit}
        return Batch(best.clone(), labels, last and self.keeps(index), metrics)

    def _check_finite(self, index: int) -> None:
        """A loss that never was a number has no best iterate: the clips would be the last batch's.

        Raises:
            BankError: No iterate of this batch had a finite loss.
        """
        if not torch.isfinite(self.tensors["best_loss"]):
            raise BankError(
                f"The source {self.name} diverged by step {index + 1}: no loss of its batch is "
                "finite.",
                fix=f"Use a smaller {section(self.name)}.learning_rate and another --out, or "
                "--precision fp32.",
            )

    def keeps(self, index: int) -> bool:
        """Whether a batch that ends with this step is for the bank."""
        return True


def told(terms: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
    """Metrics of a step."""
    parts = {name: value.detach() for name, value in terms.items()}
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def descend(terms: Mapping[str, Tensor], *optimizers: torch.optim.Optimizer) -> None:
    """Set the gradients to those of the sum of the terms; the steps are left to the caller."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()


def no_class(z_BZ: Tensor) -> Tensor:
    """(B,) the only class of an unconditional generator."""
    return torch.zeros(len(z_BZ), dtype=torch.int64, device=z_BZ.device)
