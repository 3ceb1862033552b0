"""Statistics pooling: mean and standard deviation over time, the same everywhere.

Shape legend: B batch, C channels, T frames, D = 2C pooled statistics.
Source: D. Snyder et al., *X-vectors*, ICASSP 2018, the statistics pooling layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

POOL_EPS = 1e-5
"""Added to the variance before the root; the same in graphs, trainer and runtime."""


def frame_mask(lengths_B: Tensor, frames: int) -> Tensor:
    """(B, T) bool: True where a frame belongs to the clip and not to its padding."""
    return torch.arange(frames, device=lengths_B.device)[None, :] < lengths_B[:, None]


class StatsPool(nn.Module):
    """Mean and population standard deviation over time: [μ; σ], σ = sqrt(max(var, 0) + eps).

    Two passes (the mean first, then the mean squared distance from it) in float32, because the
    one-pass formula loses the variance of loud, steady sounds at low precision.

    Args:
        eps: Added to the variance before the root.
    """

    def __init__(self, eps: float = POOL_EPS) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, h_BCT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Pool frame features.

        Args:
            h_BCT: Frame features.
            lengths_B: How many frames of each clip count; all of them where None.

        Returns:
            (B, 2C) float32.
        """
        h_BCT = h_BCT.float()
        if lengths_B is None:
            mean_BC = h_BCT.mean(dim=2)
            var_BC = (h_BCT - mean_BC[:, :, None]).square().mean(dim=2)
        else:
            mask_B1T = frame_mask(lengths_B, h_BCT.shape[2])[:, None, :].to(h_BCT.dtype)
            count_B1 = lengths_B[:, None].to(h_BCT.dtype)
            mean_BC = (h_BCT * mask_B1T).sum(dim=2) / count_B1
            var_BC = ((h_BCT - mean_BC[:, :, None]).square() * mask_B1T).sum(dim=2) / count_B1
        return torch.cat([mean_BC, (var_BC.clamp_min(0) + self.eps).sqrt()], dim=1)
