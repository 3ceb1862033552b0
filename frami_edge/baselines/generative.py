"""The alternation of DAFL, ZSKT and DFQ: one generator step, then some of the student.

Shape legend: B batch, K classes.
"""

from __future__ import annotations

import contextlib

import torch
from pydantic import Field
from torch.nn import functional as F

from frami_edge.baselines.base import BaselineConfig, Learned, numbers, zeros
from frami_edge.baselines.losses import balance_loss, divergence
from frami_edge.inversion.sources.base import NO_LABEL, Batch, Context


class GenerativeConfig(BaselineConfig):
    """Weights; 0 switches a term off."""

    latent: int = Field(256, ge=1)
    """Size of z."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam, betas 0.5 and 0.999."""
    one_hot: float = Field(0.0, ge=0)
    """Cross entropy with the teacher's own guess."""
    activation: float = Field(0.0, ge=0)
    """Mean absolute pooled state, raised."""
    balance: float = Field(0.0, ge=0)
    """Negative entropy of the batch's mean answer."""
    adversarial: float = Field(0.0, ge=0)
    """Divergence of the sparring student, raised."""
    batch_norm: float = Field(0.0, ge=0)
    """BatchNorm statistics, as published."""
    student_steps: int = Field(5, ge=1)
    """Student steps for each generator step."""


class Generative(Learned):
    """``L = oh CE(z, argmax z) - act |f| + bal Σ p̄ log p̄ - adv KL(t ‖ s) + bn L_bn``."""

    def __init__(self, context: Context, config: BaselineConfig) -> None:
        super().__init__(context, config)
        assert isinstance(config, GenerativeConfig)
        self.config = config
        self.generator = self.unconditional(config.latent, config.width)
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
        )
        self.parts = {"generator": self.generator, "optimizer": self.optimizer}
        self._watch = self.watch() if config.batch_norm else None
        if config.adversarial:
            self.spar()

    def step(self, index: int) -> Batch:
        """One generator step; nobody asks for a class."""
        c, w, rng = self.context, self.config, self.rng(index)
        z = torch.randn(w.batch_size, w.latent, generator=rng).to(c.choice.device)
        self.generator.train()
        mels = self.generator(z, zeros(z))
        with self._watch or contextlib.nullcontext():
            seen = c.teacher.hidden(mels)
        logits, terms = seen.logits_BK, {}
        if w.one_hot:
            terms["class"] = w.one_hot * F.cross_entropy(logits, logits.detach().argmax(1))
        if w.activation:
            terms["activation"] = -w.activation * seen.pooled_BD.abs().mean()
        if w.balance:
            terms["balance"] = w.balance * balance_loss(logits)
        if self.sparring:
            guess = self.sparring.logits(mels)
            terms["adversarial"] = -w.adversarial * divergence(logits, guess)
        if self._watch:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        mels = mels.detach()
        if self.sparring:
            for _ in range(w.student_steps):
                self.sparring.learn(mels, rng)
        labels = torch.full((w.batch_size,), NO_LABEL, device=mels.device)
        # The first tenth comes from a generator that has learned nothing yet.
        return Batch(mels, labels, index >= w.steps // 10, numbers(loss, terms))
