"""Procedural log-mels, moved to where the teacher predicts each class.

Shape legend: B batch, Z latent size, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.device import autocast, fused, generator, named_seed, place, upload
from frami_edge.losses import BatchNormStatistics, change_loss, class_loss
from frami_edge.sources import (
    Batch,
    SourceContext,
    balanced_labels,
    condition,
    descend,
    metrics_of,
)
from frami_edge.sources.procedural import procedural_mels
from frami_edge_runtime.melspec import MelSpec


class Translator(nn.Module):
    """``y = soft_clamp(x + smooth(x, class, z) + gain)``, learned against the teacher.

    It keeps the natural texture of its input: the change is made at a quarter of the resolution and
    interpolated, so that it cannot write texture. Source: ours.
    """

    def __init__(self, spec: MelSpec, n_classes: int, latent: int = 32, width: int = 48) -> None:
        super().__init__()
        self.latent, self.n_classes = latent, n_classes
        self.entry = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(width)
        self.condition = nn.Linear(latent + n_classes, 2 * width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=2, dilation=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.out = nn.Conv2d(width, 1, 3, padding=1)
        self.band_bias = nn.Linear(latent + n_classes, -(-spec.n_mels // 4))
        self.gain = nn.Linear(latent + n_classes, 1)
        nn.init.zeros_(self.out.weight)
        for name, value in (("floor", spec.floor), ("ceiling", spec.ceiling)):
            self.register_buffer(
                name, torch.from_numpy(value)[None, None, :, None], persistent=False
            )

    def forward(
        self, x_B1MT: Tensor, z_BZ: Tensor, labels_B: Tensor, wanted_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Towards classes (B,), or `frami_edge.sources.requests` (B, K).

        Returns the log-mels in the physical range, and the change before clamping, which is
        penalised.
        """
        classes_BK = condition(labels_B, wanted_BK, self.n_classes).to(z_BZ.dtype)
        given = torch.cat([z_BZ, classes_BK], dim=1)
        coarse = F.avg_pool2d(x_B1MT, 4, ceil_mode=True)
        scale, shift = self.condition(given)[:, :, None, None].chunk(2, dim=1)
        h = F.leaky_relu(self.bn0(self.entry(coarse)) * (1 + scale) + shift, 0.2)
        h = h + F.leaky_relu(self.bn1(self.conv1(h)), 0.2)
        h = h + F.leaky_relu(self.bn2(self.conv2(h)), 0.2)
        low = self.out(h) + self.band_bias(given)[:, None, :, None]
        change = F.interpolate(
            low.float(), size=x_B1MT.shape[2:], mode="bilinear", align_corners=False
        )
        change = change + self.gain(given).float()[:, :, None, None]
        y = x_B1MT + change
        # Clamped in the forward pass only: a clip below the floor still gets a gradient.
        inside = y.clamp(self.floor, self.ceiling)
        return y + (inside - y).detach(), change


class Translation:
    """Procedural clips moved by a `Translator`.

    ``L = w_bn L_bn + w_class L_class + w_change mean(change²)``.
    """

    name = "translator"

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        w = self.config = context.config.translator
        self.steps = w.steps
        torch.manual_seed(named_seed(context.seed, self.name))
        self.translator = Translator(context.spec, context.n_classes)
        place(self.translator, context.compute)
        self.optimizer = torch.optim.Adam(
            self.translator.parameters(),
            lr=w.learning_rate,
            betas=(0.5, 0.999),
            fused=fused(context.compute),
        )
        self.batch_norms = BatchNormStatistics(context.module) if w.batch_norm else None
        self._pool: Tensor | None = None

    def _inputs(self, n: int, rng: torch.Generator) -> Tensor:
        """Procedural clips, drawn from a pool that is made once."""
        c = self.context
        if self._pool is None:
            size = min(c.config.procedural_clips, 2000)
            seed = named_seed(c.seed, f"{self.name}/pool")
            self._pool = procedural_mels(c.spec, size, c.frames, seed)
        return self._pool[torch.randint(0, len(self._pool), (n,), generator=rng)]

    def step(self, index: int) -> Batch:
        """One translator step; returns the clips that the step was taken on."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        z = torch.randn(w.batch_size, self.translator.latent, generator=rng)
        x = self._inputs(w.batch_size, rng)
        labels = balanced_labels(w.batch_size, c.n_classes, index * w.batch_size)
        asked, wanted = c.requests(labels, generator(c.seed, f"{self.name}/requests/{index}"))
        z, x, labels, asked = (upload(part, c.compute.device) for part in (z, x, labels, asked))
        with autocast(c.compute):
            mels, change = self.translator(x, z, labels, wanted)
            with self.batch_norms or contextlib.nullcontext():
                hidden = c.teacher.hidden(mels)
        terms: dict[str, Tensor] = {}
        if self.batch_norms:
            terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
        terms["class"] = w.class_loss * class_loss(hidden.logits_BK, labels, wanted)
        terms["change"] = w.change * change_loss(change)
        descend(terms, self.optimizer)
        metrics = metrics_of(terms, hidden.logits_BK, asked, c.output)
        return Batch(mels.detach(), asked, index >= w.burn_in, metrics)

    @torch.no_grad()
    def fresh(self, n: int) -> Batch:
        """Procedural clips that were not translated before."""
        c, rng = self.context, generator(self.context.seed, f"{self.name}/fresh")
        z = torch.randn(n, self.translator.latent, generator=rng)
        x = procedural_mels(c.spec, n, c.frames, named_seed(c.seed, f"{self.name}/fresh"))
        labels = balanced_labels(n, c.n_classes)
        asked, wanted = c.requests(labels, rng)
        z, x, labels = (upload(part, c.compute.device) for part in (z, x, labels))
        with autocast(c.compute):
            mels, _ = self.translator(x, z, labels, wanted)
        return Batch(mels, asked, False, {})

    def state(self) -> dict[str, Any]:
        """Translator and optimiser."""
        return {
            "translator": self.translator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.translator.load_state_dict(state["translator"])
        self.optimizer.load_state_dict(state["optimizer"])
