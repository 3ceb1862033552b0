"""Procedural log-mels, moved by the translator to where the teacher hears each class.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.config import TranslatorConfig
from frami_edge.device import autocast, generator, upload
from frami_edge.distributed import Rows, share_batch_norms, sum_gradients
from frami_edge.losses import BatchNormStatistics, class_loss
from frami_edge.sources.base import Batch, Context, as_module, named_seed
from frami_edge.sources.generator import balanced_labels
from frami_edge.sources.procedural import shared_procedural
from frami_edge_runtime.melspec import MelSpec

# --- The translator: a procedural log-mel plus a smooth, class-conditioned change
# It keeps the natural texture of its input and moves it to where the teacher hears the class.
# Shape legend: B batch, Z latent size, K classes, M mel bands, T frames.
# Source: ours.


class Translator(nn.Module):
    """``y = soft_clamp(x + smooth(x, class, z) + gain)``, learned against the teacher.

    The change is made at a quarter of the resolution and interpolated, so that it cannot write
    texture.

    Args:
        spec: Front end of the teacher.
        n_classes: K.
        latent: Size of z.
        width: Channels of the coarse network.
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
        self.register_buffer(
            "floor", torch.from_numpy(spec.floor)[None, None, :, None], persistent=False
        )
        self.register_buffer(
            "ceiling", torch.from_numpy(spec.ceiling)[None, None, :, None], persistent=False
        )

    def forward(self, x_B1MT: Tensor, z_BZ: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Translate.

        Returns:
            The new log-mels (B, 1, M, T) float32 in the physical range, and the change that was
            asked for, whose size is penalised.
        """
        condition = torch.cat([z_BZ, F.one_hot(labels_B, self.n_classes).to(z_BZ.dtype)], dim=1)
        coarse = F.avg_pool2d(x_B1MT, 4, ceil_mode=True)
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        h = F.leaky_relu(self.bn0(self.entry(coarse)) * (1 + scale) + shift, 0.2)
        h = h + F.leaky_relu(self.bn1(self.conv1(h)), 0.2)
        h = h + F.leaky_relu(self.bn2(self.conv2(h)), 0.2)
        low = self.out(h) + self.band_bias(condition)[:, None, :, None]
        change = F.interpolate(
            low.float(), size=x_B1MT.shape[2:], mode="bilinear", align_corners=False
        )
        change = change + self.gain(condition).float()[:, :, None, None]
        y = x_B1MT + change
        # Leaky beyond the range in the backward pass only: a clip pushed under the floor can
        # return.
        inside = y.clamp(self.floor, self.ceiling)
        return y + (inside - y).detach(), change


# --- Procedural log-mels, moved by the translator to where the teacher hears each class


class Translation:
    """Procedural log-mels moved to where the teacher hears each class; see `Translator`."""

    name = "translator"

    def __init__(self, context: Context) -> None:
        self.context, config = context, context.config.translator
        self.config: TranslatorConfig = config
        self.steps = config.steps
        torch.manual_seed(named_seed(context.seed, self.name))
        self.translator = Translator(context.spec, context.n_classes).to(context.compute.device)
        share_batch_norms(self.translator)
        if context.compute.channels_last:
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
        z, x, own = (upload(rows.take(part), c.compute.device) for part in (z, x, labels))
        labels = upload(labels, c.compute.device)
        terms: dict[str, Tensor] = {}
        with autocast(c.compute):
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
