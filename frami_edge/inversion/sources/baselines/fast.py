"""Fast-Datafree: a meta-learned generator.

Source: G. Fang et al., *Up to 100x Faster Data-Free Knowledge Distillation*, AAAI 2022; first-order
MAML. Shape legend: B batch, Z latent size.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frami_edge.augment import random_stretch
from frami_edge.device import autocast, generator, upload
from frami_edge.inversion.losses import adversarial_loss
from frami_edge.inversion.sources.base import Context, as_module
from frami_edge.inversion.sources.baselines.base import PADDED_CROP, BatchWise, descend, no_class
from frami_edge.inversion.sources.baselines.losses import PublishedBatchNorm


class Fast(BatchWise):
    """``L = oh CE + bn L_bn + adv L_adv`` over z and a copy of the meta-learned generator.

    The gradients of all inner steps add up to that of the outer step (FOMAML).
    """

    name = "fast"

    def __init__(self, context: Context) -> None:
        config = self.config = context.config.baselines.fast
        super().__init__(context, config.iterations, config.student_steps)
        self.meta = self.unconditional(config.latent)
        self.outer = torch.optim.Adam(
            self.meta.parameters(), lr=config.learning_rate * config.iterations, betas=(0.5, 0.999)
        )
        self._watch = None
        if config.batch_norm:
            self._watch = PublishedBatchNorm(as_module(context.teacher), config.momentum)
        if config.adversarial:
            self.spar()
        self.parts |= {"meta": self.meta, "outer": self.outer}
        for name, parameter in self.meta.named_parameters():
            self.tensors[f"gathered/{name}"] = torch.zeros_like(parameter)
        self.begin(0)

    def begin(self, number: int) -> None:
        """A copy of the meta-learned generator, new z, fresh optimiser."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/batch/{number}")
        self.quick = copy.deepcopy(self.meta)
        z = torch.randn(self.budget.batch_size, w.latent, generator=rng)
        self.z = upload(z, c.choice.device).requires_grad_()
        groups: list[dict[str, Any]] = [
            {"params": list(self.quick.parameters())},
            {"params": [self.z], "lr": w.latent_rate},
        ]
        self.inner = torch.optim.Adam(groups, lr=w.learning_rate, betas=(0.5, 0.999))
        self.parts |= {"quick": self.quick, "inner": self.inner}
        self.tensors["z"] = self.z
        for name, _ in self.meta.named_parameters():
            self.tensors[f"gathered/{name}"].zero_()

    def _warmed_up(self, index: int) -> bool:
        return index >= self.config.warmup * self.steps

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One inner step."""
        c, w = self.context, self.config
        self.quick.train()
        with autocast(c.choice):
            mels = self.quick(self.z, no_class(self.z))
            view = random_stretch(mels, PADDED_CROP, rng)
            if self._watch:
                with self._watch:
                    logits = c.teacher.hidden(view).logits_BK
            else:
                logits = c.teacher.hidden(view).logits_BK
            guess = self.sparring.logits(view) if self.sparring and self._warmed_up(index) else None
        terms = {"class": w.class_loss * F.cross_entropy(logits.float(), labels_B)}
        if self._watch:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        if guess is not None:
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, guess)
        descend(terms, self.inner)
        for name, parameter in self.quick.named_parameters():
            assert parameter.grad is not None
            self.tensors[f"gathered/{name}"] += parameter.grad
        self.inner.step()
        return mels.detach(), logits.detach(), terms

    def spars(self, index: int) -> bool:
        """Not during the warm-up."""
        return self._warmed_up(index)

    def keeps(self, index: int) -> bool:
        """What the generator makes before the burn-in is over is thrown away."""
        return index >= self.budget.burn_in

    def end(self) -> None:
        """The outer step."""
        for name, parameter in self.meta.named_parameters():
            parameter.grad = self.tensors[f"gathered/{name}"].clone()
        self.outer.step()
        if self._watch:
            self._watch.remember()

    def state(self) -> dict[str, Any]:
        """Both generators and optimisers, gathered gradients, earlier moments, sparring student."""
        earlier = list(self._watch.earlier) if self._watch else []
        return super().state() | {"earlier": earlier}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().load_state(state)
        if self._watch:
            self._watch.earlier = [x.to(self.context.choice.device) for x in state["earlier"]]
