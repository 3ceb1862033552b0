"""The sparring student: trained along with the generator, for the adversarial term only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import random_crop
from frami_edge.config import STUDENT_PRESETS, InversionConfig
from frami_edge.device import Compute, autocast, upload
from frami_edge.losses import logits_loss
from frami_edge.models import StudentNet, TeacherLike
from frami_edge_runtime.melspec import MelSpec

# --- The conditional generator: noise and a class in, a normalised log-mel out
# Shape legend: B batch, Z latent size, K classes, M mel bands, T frames, C channels.
# Source: the layer plan follows the small generator of G. Fang et al., *Contrastive Model Inversion*,
# IJCAI 2021; the class input, the smooth physical range and the sizes are ours.


class PhysicalRange(nn.Module):
    """Squash into what the front end can give: [floor, ceiling] of each mel band.

    ``y = f + (c - f) sigmoid(a + u / ((c - f) s (1 - s)))`` with s = sigmoid(a) = -f / (c - f): an
    input of 0 gives 0, the mean of the training data, with slope 1.
    """

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        floor_M, ceiling_M = torch.from_numpy(spec.floor), torch.from_numpy(spec.ceiling)
        width_M = ceiling_M - floor_M
        # A training mean outside the range (a broken front end) would have no logit.
        s_M = (-floor_M / width_M).clamp(0.02, 0.98)
        self.register_buffer("floor", floor_M[None, None, :, None], persistent=False)
        self.register_buffer("width", width_M[None, None, :, None], persistent=False)
        self.register_buffer("start", torch.logit(s_M)[None, None, :, None], persistent=False)
        self.register_buffer(
            "slope", (1 / (width_M * s_M * (1 - s_M)))[None, None, :, None], persistent=False
        )

    def forward(self, u_B1MT: Tensor) -> Tensor:
        """Any real numbers to normalised log-mels inside the range."""
        u = u_B1MT.float()
        y: Tensor = self.floor + self.width * torch.sigmoid(self.start + self.slope * u)  # type: ignore[operator]
        return y


class Generator(nn.Module):
    """(z, class) to a normalised log-mel.

    Args:
        spec: Front end of the teacher; the output stays in its physical range.
        n_classes: K.
        frames: T of the output.
        latent: Size of z.
        width: Channels of the first, coarsest layer.
    """

    def __init__(
        self, spec: MelSpec, n_classes: int, frames: int, latent: int = 128, width: int = 64
    ) -> None:
        super().__init__()
        self.latent, self.n_classes, self.frames, self.width = latent, n_classes, frames, width
        m, t = spec.n_mels, frames
        self.sizes = [(-(-m // 4), -(-t // 4)), (-(-m // 2), -(-t // 2)), (m, t)]
        self.start = nn.Linear(latent + n_classes, width * self.sizes[0][0] * self.sizes[0][1])
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 4)
        self.out = nn.Conv2d(width // 4, 1, 3, padding=1)
        self.range = PhysicalRange(spec)

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """Latents (B, Z) and classes (B,) to (B, 1, M, T) float32."""
        condition = torch.cat([z_BZ, F.one_hot(labels_B, self.n_classes).to(z_BZ.dtype)], dim=1)
        x = self.start(condition).view(-1, self.width, *self.sizes[0])
        x = self.bn0(x)
        x = F.interpolate(x, size=self.sizes[1])
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        x = F.interpolate(x, size=self.sizes[2])
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        mel: Tensor = self.range(self.out(x))
        return mel


def balanced_labels(n: int, n_classes: int, offset: int = 0) -> Tensor:
    """(n,) int64 class targets that take turns, so that no class is left out."""
    return (torch.arange(n) + offset) % n_classes


# --- The noise of a batch, which learns along with the generator
# Shape legend: B batch, Z latent size.
# Source: latents learned with a generator follow G. Fang et al., *Contrastive Model Inversion*, IJCAI
# 2021, and *Up to 100x Faster Data-Free Knowledge Distillation*, AAAI 2022. Both throw the generator
# away, or pull it back, after a batch; here it goes on.


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


# --- The sparring student: trained along with the generator, for the adversarial term only


class SparringStudent:
    """A tiny student that learns the teacher's logits on the latest synthetic clips.

    Args:
        teacher: Frozen.
        spec: Front end, for the number of mel bands.
        n_classes: K.
        compute: Device and precision.
    """

    def __init__(
        self, teacher: TeacherLike, spec: MelSpec, n_classes: int, compute: Compute
    ) -> None:
        self.teacher, self.compute = teacher, compute
        self.student = StudentNet(STUDENT_PRESETS["tiny"], spec.n_mels, n_classes).to(
            compute.device
        )
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=2e-3)

    def logits(self, x_B1MT: Tensor) -> Tensor:
        """(B, K) with a gradient to the clips; BatchNorm uses its running statistics."""
        self.student.eval()
        logits: Tensor = self.student(x_B1MT)
        return logits

    def learn(self, x_B1MT: Tensor, generator: torch.Generator) -> None:
        """One distillation step on random stretches of the clips."""
        self.student.train()
        frames = max(self.student.receptive_field, round(0.75 * x_B1MT.shape[3]))
        x = random_crop(x_B1MT, frames, generator)
        with autocast(self.compute):
            with torch.no_grad():
                target = self.teacher.hidden(x).logits_BK
            guess = self.student(x)
        loss = logits_loss(guess, target, temperature=2.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
