"""The built-in teacher family: a small ResNet over log-mels with statistics pooling.

Shape legend: B batch, M mel bands, T frames, C channels, D = 2C pooled statistics, K classes.
Source: K. He et al., *Deep Residual Learning*, CVPR 2016 (basic block); pooling as in x-vectors.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.models.config import TeacherArch
from frami_edge.models.hidden import Hidden
from frami_edge.models.pooling import StatsPool, frame_mask


def _masked(x_BCMT: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Zero the padding, which is then exactly what the convolution pads a lone clip with."""
    if lengths_B is None:
        return x_BCMT
    return x_BCMT * frame_mask(lengths_B, x_BCMT.shape[3])[:, None, None, :]


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.time_stride = stride[1]
        self.shortcut: nn.Module = nn.Identity()
        if stride != (1, 1) or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x_BCMT: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if lengths_B is not None:
            out_B: Tensor | None = (lengths_B + self.time_stride - 1) // self.time_stride
        else:
            out_B = None
        y = _masked(F.relu(self.bn1(self.conv1(x_BCMT))), out_B)
        y = F.relu(self.bn2(self.conv2(y)) + self.shortcut(x_BCMT))
        return _masked(y, out_B), out_B


class ResNetTeacher(nn.Module):
    """Normalised log-mels (B, 1, M, T) to logits (B, K), one frame feature per 4 mel frames.

    Frame features are averaged over frequency, then pooled to [mean; std] over time. With
    ``lengths`` a padded batch gives what each clip alone would give.

    Args:
        arch: Widths and depth.
        n_mels: Mel bands (M).
        n_classes: Classes (K).
    """

    frame_stride = 4
    frame_offset = 0.0

    def __init__(self, arch: TeacherArch, n_mels: int, n_classes: int) -> None:
        super().__init__()
        self.arch = arch
        self.n_mels = n_mels
        first = arch.channels[0]
        self.stem = nn.Conv2d(1, first, 3, (2, 2), padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(first)
        blocks: list[nn.Module] = []
        c_in = first
        for stage, c_out in enumerate(arch.channels):
            for i in range(arch.blocks):
                # Time is halved by the stem and by stage 1 only; frequency by every stage but the
                # first.
                stride = (1, 1) if stage == 0 or i > 0 else (2, 2 if stage == 1 else 1)
                blocks.append(_Block(c_in, c_out, stride))
                c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.pool = StatsPool()
        self.dropout = nn.Dropout(arch.dropout)
        self.channels, self.pooled_size = c_in, 2 * c_in
        self.fc = nn.Linear(2 * c_in, n_classes)

    @property
    def head(self) -> nn.Linear:
        """The affine map from pooled statistics to logits."""
        return self.fc

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features (B, C, ceil(T / 4)), pooled statistics (B, D) and logits (B, K)."""
        n_B = None if lengths_B is None else (lengths_B + 1) // 2
        x = F.relu(self.stem_bn(self.stem(_masked(x_B1MT, lengths_B))))
        x = _masked(x, n_B)
        for block in self.blocks:
            x, n_B = block(x, n_B)
        frames_BCT = x.mean(dim=2)
        pooled_BD = self.pool(frames_BCT, n_B)
        return Hidden(frames_BCT, pooled_BD, self.fc(self.dropout(pooled_BD)))

    def forward(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        return self.hidden(x_B1MT, lengths_B).logits_BK
