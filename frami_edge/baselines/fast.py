"""Fast-Datafree: G. Fang et al., *Up to 100x Faster Data-Free KD*, AAAI 2022, algorithm 1.

Defaults: the published script of five inner steps: generator 3e-3, z 0.01, BatchNorm 10 with a
moving average of 0.9, class 0.4, adversarial 1.1, first-order MAML, no adversary during a warm-up
(20 of 240 epochs there, the same share of the steps here). The published reset of the generator's
first layer, half way through, is left out: it does not apply to runs this short.
Shape legend: B batch, Z latent size.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch.nn import functional as F

from frami_edge.baselines.base import BaselineConfig, Learned, numbers, zeros
from frami_edge.inversion.generator import balanced_labels
from frami_edge.inversion.losses import adversarial_loss
from frami_edge.inversion.sources.base import Batch, Context


class FastConfig(BaselineConfig):
    """As published."""

    inner_steps: int = Field(5, ge=1)
    """Steps from the meta-learned generator to a batch of clips."""
    latent: int = Field(256, ge=1)
    """Size of z."""
    learning_rate: float = Field(3e-3, gt=0)
    """Of the inner generator; the outer one takes it times `inner_steps`."""
    latent_rate: float = Field(0.01, gt=0)
    """Of z."""
    class_loss: float = Field(0.4, ge=0)
    """Cross entropy with the requested class."""
    batch_norm: float = Field(10.0, ge=0)
    """BatchNorm statistics."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of the batch's moments in that loss."""
    adversarial: float = Field(1.1, ge=0)
    """Masked divergence of the sparring student."""
    warmup: float = Field(20 / 240, ge=0, le=1)
    """Share of the steps without the adversary."""
    student_steps: int = Field(5, ge=1)
    """Sparring steps on every finished batch."""


class FastDatafree(Learned):
    """Meta-learned generator: the inner steps' gradients add up to the outer step (FOMAML)."""

    name = "fast_datafree"
    config_type = FastConfig

    def __init__(self, context: Context, config: BaselineConfig) -> None:
        super().__init__(context, config)
        assert isinstance(config, FastConfig)
        self.config = config
        self.meta = self.unconditional(config.latent, config.width)
        rate = config.learning_rate * config.inner_steps
        self.outer = torch.optim.Adam(self.meta.parameters(), lr=rate, betas=(0.5, 0.999))
        self._watch = self.watch(config.momentum)
        if config.adversarial:
            self.spar()
        self._start()

    def _start(self) -> None:
        w = self.config
        self.outer.zero_grad(set_to_none=True)
        self.fast = copy.deepcopy(self.meta)
        z = torch.randn(w.batch_size, w.latent).to(self.context.choice.device)
        self.z = z.requires_grad_(True)
        groups = [
            {"params": list(self.fast.parameters())},
            {"params": [self.z], "lr": w.latent_rate},
        ]
        self.inner = torch.optim.Adam(groups, lr=w.learning_rate, betas=(0.5, 0.999))
        self.parts = {"meta": self.meta, "outer": self.outer}
        self.parts |= {"fast": self.fast, "inner": self.inner}
        self.tensors = {"z": self.z}

    def step(self, index: int) -> Batch:
        """One inner step; after the last one of a batch, the outer step."""
        c, w, rng = self.context, self.config, self.rng(index)
        inner = min(w.inner_steps, w.steps)
        if index and index % inner == 0:
            torch.manual_seed(rng.initial_seed())
            self._start()
        labels = balanced_labels(w.batch_size, c.n_classes, index // inner * w.batch_size)
        labels = labels.to(c.choice.device)
        self.fast.train()
        mels = self.fast(self.z, zeros(self.z))
        with self._watch:
            logits = c.teacher.hidden(mels).logits_BK
        terms = {
            "class": w.class_loss * F.cross_entropy(logits, labels),
            "batch_norm": w.batch_norm * self._watch.loss(),
        }
        warm = index >= w.warmup * w.steps
        if self.sparring and warm:
            guess = self.sparring.logits(mels)
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, guess)
        loss = torch.stack(list(terms.values())).sum()
        self.inner.zero_grad(set_to_none=True)
        loss.backward()
        for slow, quick in zip(self.meta.parameters(), self.fast.parameters(), strict=True):
            assert quick.grad is not None
            slow.grad = quick.grad.clone() if slow.grad is None else slow.grad + quick.grad
        self.inner.step()
        last = (index + 1) % inner == 0
        made = mels.detach()
        if last:
            self.outer.step()
            self._watch.remember()
            for _ in range(w.student_steps if self.sparring else 0):
                assert self.sparring is not None
                self.sparring.learn(made, rng)
        hit = (logits.argmax(1) == labels).float().mean()
        return Batch(made, labels, last and warm, numbers(loss, terms) | {"requested": hit})
