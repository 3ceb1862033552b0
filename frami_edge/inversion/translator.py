"""The translator: a procedural log-mel plus a smooth, class-conditioned change.

It keeps the natural texture of its input and moves it to where the teacher hears the class.
Shape legend: B batch, Z latent size, K classes, M mel bands, T frames.
Source: ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge_runtime.melspec import MelSpec


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
