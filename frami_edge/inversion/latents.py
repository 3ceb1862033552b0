"""The noise of a batch, which learns along with the generator.

Shape legend: B batch, Z latent size.
Source: latents learned with a generator follow G. Fang et al., *Contrastive Model Inversion*, IJCAI
2021, and *Up to 100x Faster Data-Free Knowledge Distillation*, AAAI 2022. Both throw the generator
away, or pull it back, after a batch; here it goes on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frami_edge.device import upload
from frami_edge.inversion.config import InversionConfig


class Latents:
    """z of the whole batch, new every ``batch_steps`` steps.

    One generator for all clips gives them one texture; a batch that is kept for some steps and
    whose noise learns too gets clips of its own.

    Args:
        config: ``batch_size``, ``latent``, ``batch_steps``, ``latent_rate``.
        device: Where z lies.
    """

    def __init__(self, config: InversionConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.z_BZ = torch.zeros(config.batch_size, config.latent, device=device)
        self.optimizer: torch.optim.Optimizer | None = None

    def batch(self, step: int) -> int:
        """Which batch a step belongs to."""
        return step // self.config.batch_steps

    def ends(self, step: int) -> bool:
        """Whether a step is the last one of its batch."""
        return (step + 1) % self.config.batch_steps == 0

    def at(self, step: int, rng: torch.Generator) -> Tensor:
        """(B, Z) of a step, all rows on every process; drawn from ``rng`` where a batch begins."""
        if step % self.config.batch_steps == 0:
            c = self.config
            self._take(upload(torch.randn(c.batch_size, c.latent, generator=rng), self.device))
        return self.z_BZ

    def _take(self, z_BZ: Tensor) -> None:
        self.z_BZ = z_BZ
        if self.config.batch_steps > 1 and self.config.latent_rate:
            z_BZ.requires_grad_()
            rate = self.config.latent_rate
            self.optimizer = torch.optim.Adam([z_BZ], lr=rate, betas=(0.5, 0.999))

    def state(self) -> dict[str, Any]:
        """The noise and its optimiser, where they outlive a step."""
        kept = {"z": self.z_BZ.detach()} if self.config.batch_steps > 1 else {}
        return kept | ({"optimizer": self.optimizer.state_dict()} if self.optimizer else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        if "z" in state:
            self._take(state["z"].to(self.device))
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
