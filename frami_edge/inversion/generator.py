"""The conditional generator: noise and a class in, a normalised log-mel out.

Shape legend: B batch, Z latent size, K classes, M mel bands, T frames, C channels.
Source: the layer plan follows the small generator of G. Fang et al., *Contrastive Model Inversion*,
IJCAI 2021; the class input, the smooth physical range and the sizes are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge_runtime.melspec import MelSpec


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
