"""FRAMI: clips that the teacher itself remembers.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from frami_edge.augment import random_stretch
from frami_edge.config import InversionConfig
from frami_edge.device import autocast, generator, upload
from frami_edge.distributed import Rows, share_batch_norms, sum_gradients
from frami_edge.losses import (
    BatchNormStatistics,
    FeatureInvariantContrast,
    adversarial_loss,
    class_loss,
    contrastive_view,
)
from frami_edge.sources.base import Batch, Context, as_module, named_seed
from frami_edge.sources.generator import Generator, Latents, SparringStudent, balanced_labels


class Inversion:
    """FRAMI: a conditional generator against the teacher, in its hidden states.

    ``L = w_class L_class + w_bn L_bn + w_con L_contrastive + w_adv L_adv``; see each loss for its
    formula. The teacher is asked about a random stretch of each clip, as the student will be.
    """

    name = "inversion"

    def __init__(self, context: Context) -> None:
        self.context, config = context, context.config.inversion
        self.config: InversionConfig = config
        self.steps = config.steps
        torch.manual_seed(named_seed(context.seed, self.name))
        self.generator = Generator(
            context.spec, context.n_classes, context.config.frames, config.latent, config.width
        ).to(context.compute.device)
        modules = nn.ModuleDict({"generator": self.generator})
        self.contrast: FeatureInvariantContrast | None = None
        if config.contrastive:
            self.contrast = FeatureInvariantContrast(
                context.teacher.channels,
                context.teacher.pooled_size,
                memory=config.contrastive_memory,
                temperature=config.temperature,
            ).to(context.compute.device)
            modules["contrast"] = self.contrast
        self.sparring: SparringStudent | None = None
        if config.adversarial.weight:
            self.sparring = SparringStudent(
                context.teacher, context.spec, context.n_classes, context.compute
            )
        self.modules = modules
        self.latents = Latents(config, context.compute.device)
        share_batch_norms(self.generator)
        if context.compute.channels_last:
            self.generator.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            modules.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
        )
        self._watch = BatchNormStatistics(as_module(context.teacher)) if config.batch_norm else None

    def step(self, index: int) -> Batch:
        """One generator step; the clips are those that the step was taken on."""
        c, config = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        latents = self.latents
        offset = latents.batch(index) * config.batch_size
        labels = balanced_labels(config.batch_size, c.n_classes, offset)
        rows = Rows(config.batch_size)
        z = rows.take(latents.at(index, rng))
        own, labels = (upload(part, c.compute.device) for part in (rows.take(labels), labels))
        terms: dict[str, Tensor] = {}
        self.generator.train()
        with autocast(c.compute):
            mels = self.generator(z, own)
            near = self._stretch(mels, rows, rng)
            with self._watch or contextlib.nullcontext():
                seen = c.teacher.hidden(near)
            other = None
            if self.contrast:
                view = contrastive_view(rows.spread(mels), rng)
                other = c.teacher.hidden(rows.take(view))
            sparring = self.sparring if index >= config.adversarial.warmup_steps else None
            guess = sparring.logits(near) if sparring else None
        # The losses stay in float32: only the networks run at low precision.
        if self._watch:
            terms["batch_norm"] = config.batch_norm * self._watch.loss(rows)
        logits = rows.gather(seen.logits_BK)
        if config.class_loss:
            terms["class"] = config.class_loss * class_loss(logits, labels)
        keys = None
        if self.contrast and other:
            raw, keys = self.contrast(other, seen, rows)
            terms["contrastive"] = config.contrastive * raw
        if guess is not None:
            raw = adversarial_loss(logits, rows.gather(guess))
            terms["adversarial"] = config.adversarial.weight * raw
        loss = torch.stack(list(terms.values())).sum()
        optimizers = [self.optimizer, *([latents.optimizer] if latents.optimizer else [])]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients([*self.modules.parameters(), latents.z_BZ])
        for optimizer in optimizers:
            optimizer.step()
        keep = index >= config.burn_in
        mels = rows.gather(mels.detach())
        if self.contrast and keys is not None and keep and latents.ends(index):
            # Once for a batch: the clips of its other steps are no negatives, but nearly the same.
            self.contrast.remember(keys)
        if self.sparring:
            for _ in range(config.adversarial.student_steps):
                self.sparring.learn(mels, rng)
        hit = (logits.argmax(1) == labels).float().mean()
        metrics = {"loss": loss.detach(), "requested": hit}
        metrics |= {name: value.detach() for name, value in terms.items()}
        return Batch(mels, labels, keep, metrics)

    def _stretch(self, mels: Tensor, rows: Rows, rng: torch.Generator) -> Tensor:
        """What of the clips the teacher is asked about; drawn for the batch of all processes."""
        if self.config.shortest_view == 1:
            return mels
        return rows.take(random_stretch(rows.spread(mels), self.config.shortest_view, rng))

    def state(self) -> dict[str, Any]:
        """Generator, contrastive heads and memory, latents, sparring student, optimisers."""
        state: dict[str, Any] = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "latents": self.latents.state(),
        }
        if self.sparring:
            state["sparring"] = self.sparring.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.latents.load_state(state["latents"])
        if self.sparring:
            self.sparring.load_state(state["sparring"])
