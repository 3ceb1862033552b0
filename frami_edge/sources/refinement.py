"""Procedural log-mels, each refined by gradient steps until the teacher gives the wanted answer.

Where a generator has to learn every class at once, this finds rare ones clip by clip: for taggers.
Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frami_edge.augment import (
    DECIBEL,
    Energies,
    random_equaliser,
    random_gain,
    random_low_pass,
    random_roll,
    random_tempo_and_pitch,
)
from frami_edge.device import autocast, generator, named_seed, upload
from frami_edge.losses import BatchNormStatistics, class_loss
from frami_edge.sources import Batch, SourceContext, balanced_labels, descend, metrics_of
from frami_edge.sources.procedural import procedural_mels

SCALES = (2, 4, 8, 16)
"""Mel bands and frames per value of each layer of the change, from fine to coarse.

Values of single bands and frames become patterns that only this teacher hears."""
BACKGROUND_DB = (6.0, 26.0)
"""How far below a clip another one of its batch is added, while the teacher listens."""
TEMPO, PITCH, EQUALISER_DB, LOW_PASS = 0.25, 1 / 32, 6, 0.5
"""How else it is varied for that: tempo, pitch as a share of the bands, spectrum, share of clips
without the uppermost bands. As in distillation, see `frami_edge.augment`."""


class Refinement:
    """A batch of procedural clips plus a change at several scales, optimised together.

    Each iteration hears the clips from another start, at another level, before another background,
    at another tempo and pitch and through another microphone, so that the answer does not hang on
    single values: what the teacher hears in all of these a student can learn.
    ``L = w_bn L_bn + w_class L_class``.

    Source: optimising the input against BatchNorm statistics is DeepInversion's (H. Yin et al.,
    CVPR 2020); start, scales and the conditions of listening are ours.
    """

    name = "refinement"

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        self.config = context.config.refinement
        self.steps = self.config.steps
        self.batch_norms = BatchNormStatistics(context.module) if self.config.batch_norm else None
        spec, device = context.spec, context.compute.device
        self.energies = Energies(spec).to(device)
        self.floor, self.ceiling = (
            torch.from_numpy(x)[:, None].to(device) for x in (spec.floor, spec.ceiling)
        )
        seed = named_seed(context.seed, f"{self.name}/pool")
        size = min(context.config.procedural_clips, 2000)
        self.pool_N1MT = procedural_mels(spec, size, context.frames, seed)

    def beside(self, context: SourceContext) -> Refinement:
        """The same source with another copy of the teacher, for another thread."""
        other = copy.copy(self)
        other.context = context
        if self.batch_norms:
            other.batch_norms = BatchNormStatistics(context.module)
        return other

    def step(self, index: int) -> Batch:
        """Start, optimise and return one batch of clips."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        labels_B = balanced_labels(w.batch_size, c.n_classes, index * w.batch_size)
        asked_B, wanted_BK = c.requests(labels_B, generator(c.seed, f"{self.name}/asked/{index}"))
        place = torch.randint(0, len(self.pool_N1MT), (w.batch_size,), generator=rng)
        start, labels_B, asked_B = (
            upload(x, c.compute.device) for x in (self.pool_N1MT[place], labels_B, asked_B)
        )
        m, t = start.shape[2:]
        layers = [
            torch.zeros(
                len(start), 1, -(-m // s), -(-t // s), device=start.device, requires_grad=True
            )
            for s in SCALES
        ]
        optimizer = torch.optim.Adam(layers, lr=w.learning_rate, betas=(0.7, 0.95))
        for iteration in range(w.iterations):
            if iteration == round(0.7 * w.iterations):
                optimizer.param_groups[0]["lr"] *= 0.3
            x = self._refined(start, layers)
            with autocast(c.compute), self.batch_norms or contextlib.nullcontext():
                hidden = c.teacher.hidden(self._heard(x, start, rng))
            terms = {"class": w.class_loss * class_loss(hidden.logits_BK, labels_B, wanted_BK)}
            if self.batch_norms:
                terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
            descend(terms, optimizer)
        with torch.no_grad(), autocast(c.compute):
            mels = self._refined(start, layers)
            logits_BK = c.teacher.hidden(mels).logits_BK
        return Batch(mels, asked_B, True, metrics_of(terms, logits_BK, asked_B, c.output))

    def _refined(self, start_B1MT: Tensor, layers: list[Tensor]) -> Tensor:
        """The clips with their change, in the physical range."""
        x = layers[-1]
        for finer in [*layers[-2::-1], start_B1MT]:  # only the last step computes at full size
            x = finer + F.interpolate(x, size=finer.shape[2:], mode="bilinear")
        # Clamped in the forward pass only: a clip below the floor still gets a gradient.
        return x + (x.clamp(self.floor, self.ceiling) - x).detach()

    def _heard(self, x_B1MT: Tensor, start_B1MT: Tensor, rng: torch.Generator) -> Tensor:
        """From another start, at another level, before a background, and so on."""
        x = self.energies.of(random_gain(random_roll(x_B1MT, rng), 0.15, rng))
        other = self.energies.of(start_B1MT[torch.randperm(len(x), generator=rng).to(x.device)])
        low, high = BACKGROUND_DB
        down_B = low + (high - low) * torch.rand(len(x), generator=rng).to(x.device)
        level_B = x.flatten(1).logsumexp(1) - other.flatten(1).logsumexp(1) - DECIBEL * down_B
        background = other + level_B.detach()[:, None, None, None]
        x = torch.logaddexp(x, background)
        x = random_tempo_and_pitch(x, TEMPO, PITCH * x.shape[2], rng)
        x = random_equaliser(x, EQUALISER_DB, rng)
        x = random_low_pass(x, LOW_PASS, self.energies.of(self.floor), rng)
        return self.energies.back(x)

    def state(self) -> dict[str, Any]:
        """Nothing: a step depends on the seed alone."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
