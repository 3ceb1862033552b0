"""CMI: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.

Shape legend: B batch, E embedding, N rows of the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import random_stretch
from frami_edge.device import autocast, generator, upload
from frami_edge.inversion.losses import adversarial_loss
from frami_edge.inversion.sources.base import Context, as_module
from frami_edge.inversion.sources.baselines.base import PADDED_CROP, BatchWise, descend, no_class
from frami_edge.inversion.sources.baselines.losses import PublishedBatchNorm, split_contrast

LOCAL = 0.25
"""Shortest stretch of the local view, relative to the clip: a scale of 0.25 in the original."""


class Cmi(BatchWise):
    """``L = oh CE + bn L_bn + cr L_cr + adv L_adv`` over z and a generator that is new each batch.

    L_cr compares, under a two-layer head, the mean inputs of every BatchNorm for a local view
    (queries) and a global one (keys, without a gradient) of the running clips and of earlier ones.
    The other terms look at the global view.
    """

    name = "cmi"

    def __init__(self, context: Context) -> None:
        config = self.config = context.config.baselines.cmi
        super().__init__(context, config.iterations, config.student_steps)
        device = context.choice.device
        self._watch = None
        if config.batch_norm or config.contrastive:
            self._watch = PublishedBatchNorm(as_module(context.teacher))
        if config.adversarial:
            self.spar()
        if config.contrastive:
            size = self._features(self.tensors["best"][:2].clone())[1].shape[1]
            e = config.embedding
            self.head = nn.Sequential(nn.Linear(size, e), nn.ReLU(), nn.Linear(e, e)).to(device)
            self.head_optimizer = torch.optim.Adam(
                self.head.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
            )
            self.parts |= {"head": self.head, "head_optimizer": self.head_optimizer}
            # Of the best iterate, and of finished batches: local and global view.
            self.tensors["views"] = torch.zeros(self.budget.batch_size, 2, size, device=device)
            self.tensors["memory"] = torch.zeros(0, 2, size, device=device)
        self.begin(0)

    def begin(self, number: int) -> None:
        """A new generator, new z, a fresh optimiser."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/batch/{number}")
        torch.manual_seed(rng.initial_seed())
        self.generator = self.unconditional(w.latent)
        z = torch.randn(self.budget.batch_size, w.latent, generator=rng)
        self.z = upload(z, c.choice.device).requires_grad_()
        self.optimizer = torch.optim.Adam(
            [*self.generator.parameters(), self.z], lr=w.learning_rate, betas=(0.5, 0.999)
        )
        self.parts |= {"generator": self.generator, "optimizer": self.optimizer}
        self.tensors["z"] = self.z

    def _features(self, view_B1MT: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and its features of one view (B, ΣC)."""
        teacher = self.context.teacher
        with autocast(self.context.choice):
            if self._watch is None:
                return teacher.hidden(view_B1MT).logits_BK, view_B1MT.new_zeros(len(view_B1MT), 0)
            with self._watch:
                logits = teacher.hidden(view_B1MT).logits_BK
        return logits, self._watch.instance_means(len(view_B1MT))

    def _contrast(self, local: Tensor, near: Tensor, rng: torch.Generator) -> Tensor:
        w, memory = self.config, self.tensors["memory"]
        pick = upload(torch.randperm(len(memory), generator=rng)[: w.negatives], memory.device)
        queries = self.head(torch.cat([local, memory[pick, 0]]))
        keys = self.head(torch.cat([near, memory[pick, 1]])).detach()
        return split_contrast(
            F.normalize(queries, dim=1), F.normalize(keys, dim=1), len(local), w.temperature
        )

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step of generator, z and head."""
        c, w = self.context, self.config
        self.generator.train()
        with autocast(c.choice):
            mels = self.generator(self.z, no_class(self.z))
        far = None
        if w.contrastive:
            far = self._features(random_stretch(mels, LOCAL, rng))[1]
        view = random_stretch(mels, PADDED_CROP, rng)
        logits, near = self._features(view)
        terms = {"class": w.class_loss * F.cross_entropy(logits.float(), labels_B)}
        if self._watch and w.batch_norm:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        optimizers = [self.optimizer]
        if far is not None:
            terms["contrastive"] = w.contrastive * self._contrast(far, near, rng)
            optimizers.append(self.head_optimizer)
        if self.sparring and self.batch:
            with autocast(c.choice):
                guess = self.sparring.logits(view)
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, guess)
        descend(terms, *optimizers)
        for optimizer in optimizers:
            optimizer.step()
        if far is not None:
            loss = torch.stack(list(terms.values())).sum()
            views, now = self.tensors["views"], torch.stack([far, near], dim=1).detach()
            views.copy_(torch.where(self.better(loss), now, views))
        return mels.detach(), logits.detach(), terms

    def end(self) -> None:
        """Remember the features of the batch."""
        if self.config.contrastive:
            rows = torch.cat([self.tensors["memory"], self.tensors["views"]])
            self.tensors["memory"] = rows[-self.config.memory :].clone()
