"""DAFL, ZSKT and DFQ: one generator step, then some of a student.

Sources: H. Chen et al., *Data-Free Learning of Student Networks* (DAFL), ICCV 2019; P. Micaelli and
A. Storkey, *Zero-shot Knowledge Transfer* (ZSKT), NeurIPS 2019; Y. Choi et al., *Data-Free Network
Quantization With Adversarial Knowledge Distillation* (DFQ), CVPR Workshops 2020. Losses and weights
are those of the CIFAR-10 scripts in the framework of G. Fang et al., *Contrastive Model Inversion*
(CMI), IJCAI 2021. Shape legend: B batch, K classes.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F

from frami_edge.device import autocast, upload
from frami_edge.inversion.baselines_config import AlternatingConfig
from frami_edge.inversion.sources.base import NO_LABEL, Batch, Context, as_module
from frami_edge.inversion.sources.baselines.base import Baseline, descend, no_class, told
from frami_edge.inversion.sources.baselines.losses import (
    PublishedBatchNorm,
    balance_loss,
    divergence,
)


class Alternating(Baseline):
    """``L = oh CE(z_t, argmax z_t) - act mean|s_t| + bal Σ p̄ log p̄ - adv KL(t ‖ s) + bn L_bn``.

    s_t is the teacher's pooled state. Nobody asks for a class: the clips have no label.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = self.config = self.weights()
        self.generator = self.unconditional(config.latent)
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
        )
        self.parts = {"generator": self.generator, "optimizer": self.optimizer}
        teacher = as_module(context.teacher)
        self._watch = PublishedBatchNorm(teacher) if config.batch_norm else None
        if config.adversarial:
            self.spar()

    def weights(self) -> AlternatingConfig:
        """Of this method."""
        found: AlternatingConfig = getattr(self.context.config.baselines, self.name)
        return found

    def _clips(self, rng: torch.Generator) -> Tensor:
        z = torch.randn(self.budget.batch_size, self.config.latent, generator=rng)
        z = upload(z, self.context.choice.device)
        with autocast(self.context.choice):
            mels: Tensor = self.generator(z, no_class(z))
        return mels

    def step(self, index: int) -> Batch:
        """One generator step and the student's; the clips are those of the generator's step."""
        c, w, rng = self.context, self.config, self.rng(index)
        self.generator.train()
        mels = self._clips(rng)
        with autocast(c.choice):
            with self._watch or contextlib.nullcontext():
                seen = c.teacher.hidden(mels)
            guess = self.sparring.logits(mels) if self.sparring else None
        logits, terms = seen.logits_BK.float(), {}
        if w.one_hot:
            terms["class"] = w.one_hot * F.cross_entropy(logits, logits.detach().argmax(1))
        if w.activation:
            terms["activation"] = -w.activation * seen.pooled_BD.float().abs().mean()
        if w.balance:
            terms["balance"] = w.balance * balance_loss(logits)
        if guess is not None:
            terms["adversarial"] = -w.adversarial * divergence(logits, guess)
        if self._watch:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        descend(terms, self.optimizer)
        self.optimizer.step()
        if self.sparring:
            for _ in range(w.student_steps):
                with torch.no_grad():
                    fresh = self._clips(rng)
                self.sparring.learn(fresh, rng)
        labels = torch.full((self.budget.batch_size,), NO_LABEL, device=mels.device)
        return Batch(mels.detach(), labels, index >= self.budget.burn_in, told(terms))


class Dafl(Alternating):
    """DAFL; its loss does not look at a student, so none is trained."""

    name = "dafl"


class Zskt(Alternating):
    """ZSKT."""

    name = "zskt"


class Dfq(Alternating):
    """DFQ."""

    name = "dfq"
