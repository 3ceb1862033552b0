"""Depthwise-separable 2-D convolutions without padding along time.

Shape legend: B batch, C channels, M' mel bands that are left, T frames.
"""

from __future__ import annotations

from torch import Tensor, nn

from frami_edge.models.config import StudentArch
from frami_edge.models.trunks import Trunk


def _conv_bn_relu(
    c_in: int,
    c_out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> list[nn.Module]:
    conv = nn.Conv2d(
        c_in, c_out, kernel, stride, padding=(kernel[0] // 2, 0), groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


class FrequencyMean(nn.Module):
    """(B, C, M', T) to (B, C, T)."""

    def forward(self, x_BCMT: Tensor) -> Tensor:
        """Mean over the frequency axis."""
        return x_BCMT.mean(dim=2)


def build_trunk(arch: StudentArch) -> Trunk:
    """Stem, blocks of a depthwise and a 1x1 convolution, a last 1x1, mean over frequency.

    The first two layers stride by 2 in time, the first four by 2 in frequency.
    """
    layers: list[nn.Module] = []
    c_in, field, jump = 1, 1, 1
    for i, (c, k) in enumerate(zip(arch.channels, arch.time_kernels, strict=True)):
        stride = (2 if i < 4 else 1, 2 if i < 2 else 1)
        if i == 0:
            layers += _conv_bn_relu(c_in, c, (3, k), stride)
        else:
            layers += _conv_bn_relu(c_in, c_in, (3, k), stride, groups=c_in)
            layers += _conv_bn_relu(c_in, c, (1, 1))
        field, jump = field + (k - 1) * jump, jump * stride[1]
        c_in = c
    layers += _conv_bn_relu(c_in, arch.out_channels, (1, 1))
    return Trunk(nn.Sequential(*layers, FrequencyMean()), field, jump)
