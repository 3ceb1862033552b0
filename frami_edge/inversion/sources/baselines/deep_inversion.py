"""DeepInversion, and with a sparring student adaptive DeepInversion (ADI).

Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020; weights as in the framework of G. Fang et
al., *Contrastive Model Inversion*, IJCAI 2021. Shape legend: B batch, M mel bands, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from frami_edge.augment import random_roll
from frami_edge.device import autocast, generator, upload
from frami_edge.inversion.sources.base import Context, as_module
from frami_edge.inversion.sources.baselines.base import BatchWise, descend
from frami_edge.inversion.sources.baselines.losses import (
    PublishedBatchNorm,
    jensen_shannon,
    total_variation,
)


class DeepInversion(BatchWise):
    """``L = CE + bn L_bn + tv TV + adi (1 - clamp(JS(z_t, z_s), 0, 1))`` over the log-mels x.

    x starts as white noise and stays in the range that the front end can give. The jitter rolls
    along time only: a shift along the bands is another sound.
    """

    name = "deep_inversion"

    def __init__(self, context: Context) -> None:
        config = self.config = context.config.baselines.deep_inversion
        super().__init__(context, config.iterations, config.student_steps)
        spec, device = context.spec, context.choice.device
        band = (1, 1, spec.n_mels, 1)
        self._floor = torch.from_numpy(spec.floor).view(band).to(device)
        self._ceiling = torch.from_numpy(spec.ceiling).view(band).to(device)
        self._watch = None
        if config.batch_norm:
            self._watch = PublishedBatchNorm(as_module(context.teacher))
        if config.competition:
            self.spar()
        self.begin(0)

    def begin(self, number: int) -> None:
        """White noise and a fresh optimiser."""
        c, rng = self.context, generator(self.context.seed, f"{self.name}/batch/{number}")
        shape = tuple(self.tensors["best"].shape)
        noise = upload(torch.randn(shape, generator=rng), c.choice.device)
        self.mels = noise.clamp(self._floor, self._ceiling).requires_grad_()
        rate = self.config.learning_rate
        self.optimizer = torch.optim.Adam([self.mels], lr=rate, betas=(0.5, 0.99))
        self.parts["optimizer"], self.tensors["mels"] = self.optimizer, self.mels

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step on the log-mels; there is nobody to compete with during the first batch."""
        c, w = self.context, self.config
        before = self.mels.detach().clone()
        x = random_roll(self.mels, rng)
        competes = self.sparring if self.batch else None
        with autocast(c.choice):
            if self._watch:
                with self._watch:
                    logits = c.teacher.hidden(x).logits_BK
            else:
                logits = c.teacher.hidden(x).logits_BK
            guess = competes.logits(x) if competes else None
        terms = {"class": w.class_loss * F.cross_entropy(logits.float(), labels_B)}
        if self._watch:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        if w.variation:
            terms["variation"] = w.variation * total_variation(x)
        if guess is not None:
            away = jensen_shannon(logits, guess, w.temperature).clamp(0, 1)
            terms["adversarial"] = w.competition * (1 - away)
        descend(terms, self.optimizer)
        self.optimizer.step()
        with torch.no_grad():
            self.mels.clamp_(self._floor, self._ceiling)
        return before, logits.detach(), terms
