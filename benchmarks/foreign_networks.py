"""Networks that are not ours, as people build them; nothing in here knows frami_edge."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def shufflenet(classes: int = 10) -> nn.Module:
    """ShuffleNetV2 x0.5 of torchvision on one channel; its pooling is a mean inside `forward`."""
    from torchvision.models import shufflenet_v2_x0_5

    net: nn.Module = shufflenet_v2_x0_5(num_classes=classes)
    net.conv1[0] = nn.Conv2d(1, 24, 3, 2, 1, bias=False)  # type: ignore[operator, index]
    return net


class SubSpectralNorm(nn.Module):
    """BatchNorm of its own for each group of bands (Chang et al. 2021), on (B, C, T, M)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups, self.norm = groups, nn.BatchNorm2d(channels * groups)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        b, c, t, m = x.shape
        split = x.transpose(2, 3).reshape(b, c * self.groups, m // self.groups, t)
        return self.norm(split).reshape(b, c, m, t).transpose(2, 3)


class Broadcast(nn.Module):
    """Convolution along bands, then along time on their mean, added back to every band."""

    def __init__(self, channels: int, groups: int, dilation: int) -> None:
        super().__init__()
        self.bands = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=channels)
        self.sub = SubSpectralNorm(channels, groups)
        self.time = nn.Conv1d(channels, channels, 3, 1, dilation, dilation, groups=channels)
        self.norm = nn.BatchNorm1d(channels)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        wide = self.sub(self.bands(x))
        narrow = nn.functional.silu(self.norm(self.time(wide.mean(3))))
        return torch.relu(x + wide + self.mix(narrow)[..., None])


class Spotter(nn.Module):
    """Like BC-ResNet (Kim et al. 2021), attention pooling, 1-D BatchNorm, log-probabilities.

    Args:
        width: Channels.
        classes: K.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 5, (1, 2), 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.one = nn.Sequential(Broadcast(width, 4, 1), Broadcast(width, 4, 2))
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.down_norm = nn.BatchNorm2d(2 * width)
        self.two = nn.Sequential(Broadcast(2 * width, 2, 1), Broadcast(2 * width, 2, 2))
        self.attention = nn.Linear(2 * width, 1)
        self.last = nn.BatchNorm1d(2 * width)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Log-mels (B, T, M) to log-probabilities (B, K)."""
        x = torch.relu(self.norm(self.stem(x[:, None])))
        x = torch.relu(self.down_norm(self.down(self.one(x))))
        x = self.two(x).mean(3).transpose(1, 2)
        pooled = (x * self.attention(x).softmax(1)).sum(1)
        return self.classify(self.last(pooled)).log_softmax(1)
