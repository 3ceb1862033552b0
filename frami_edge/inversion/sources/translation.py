"""Procedural log-mels, moved by the translator to where the teacher hears each class.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from frami_edge.device import autocast, generator, upload
from frami_edge.distributed import Rows, share_batch_norms, sum_gradients
from frami_edge.inversion.bn_loss import BatchNormStatistics
from frami_edge.inversion.config import TranslatorConfig
from frami_edge.inversion.generator import balanced_labels
from frami_edge.inversion.losses import class_loss
from frami_edge.inversion.sources.base import Batch, Context, as_module, named_seed
from frami_edge.inversion.sources.procedural import shared_procedural
from frami_edge.inversion.translator import Translator


class Translation:
    """Procedural log-mels moved to where the teacher hears each class; see `Translator`."""

    name = "translator"

    def __init__(self, context: Context) -> None:
        self.context, config = context, context.config.translator
        self.config: TranslatorConfig = config
        self.steps = config.steps
        torch.manual_seed(named_seed(context.seed, self.name))
        self.translator = Translator(context.spec, context.n_classes).to(context.choice.device)
        share_batch_norms(self.translator)
        if context.choice.channels_last:
            self.translator.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.translator.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
        )
        self._watch = BatchNormStatistics(as_module(context.teacher)) if config.batch_norm else None
        self._pool: Tensor | None = None

    def _inputs(self, n: int, rng: torch.Generator) -> Tensor:
        """Procedural clips, drawn from a fixed pool that is made once."""
        c = self.context
        if self._pool is None:
            size = min(c.config.procedural_clips, 2000)
            self._pool = shared_procedural(c, size, f"{self.name}/pool")
        return self._pool[torch.randint(0, self._pool.shape[0], (n,), generator=rng)]

    def step(self, index: int) -> Batch:
        """One translator step; the clips are those that the step was taken on."""
        c, config = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        z = torch.randn(config.batch_size, self.translator.latent, generator=rng)
        x = self._inputs(config.batch_size, rng)
        labels = balanced_labels(config.batch_size, c.n_classes, index * config.batch_size)
        rows = Rows(config.batch_size)
        z, x, own = (upload(rows.take(part), c.choice.device) for part in (z, x, labels))
        labels = upload(labels, c.choice.device)
        terms: dict[str, Tensor] = {}
        with autocast(c.choice):
            mels, change = self.translator(x, z, own)
            with self._watch or contextlib.nullcontext():
                seen = c.teacher.hidden(mels)
        if self._watch:
            terms["batch_norm"] = config.batch_norm * self._watch.loss(rows)
        logits = rows.gather(seen.logits_BK)
        terms["class"] = config.class_loss * class_loss(logits, labels)
        # Of each clip, so that every process can take the mean over all.
        size = rows.gather(change.square().mean(dim=(1, 2, 3))) if rows.world.size > 1 else None
        asked = change.square().mean() if size is None else size.mean()
        terms["change"] = config.change * asked
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients(self.translator.parameters())
        self.optimizer.step()
        hit = (logits.argmax(1) == labels).float().mean()
        metrics = {"loss": loss.detach(), "requested": hit}
        metrics |= {name: value.detach() for name, value in terms.items()}
        mels = rows.gather(mels.detach())
        return Batch(mels, labels, index >= config.burn_in, metrics)

    def state(self) -> dict[str, Any]:
        """Translator and optimiser."""
        return {
            "translator": self.translator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.translator.load_state_dict(state["translator"])
        self.optimizer.load_state_dict(state["optimizer"])
