"""The loss of the fine-tuning.

Per batch of synthetic mels it is

    L = KL(softmax(z) ‖ softmax(z_q)) + w_f mean((h_q - h)² / var h)
        + w_s mean((s_q - s)² / var s) + w_z mean((z_q - z)² / var z)

with frames h (B, C, T), pooled statistics s (B, D) and logits z (B, K) of the fp32 graph, their
int8 counterparts marked q, and variances per channel over the first batches. The KL alone hardly
moves a student that already agrees; the distances do.

Shape legend: B batch, C channels, T trunk frames, D = 2C, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from frami_edge_export.parity import Head
from frami_edge_export.qat.options import QatOptions

Array = npt.NDArray[np.float32]


class QatLoss:
    """How far the int8 graph is from the fp32 graph, each distance in units of its variance.

    Args:
        head: Pooling's eps and the affine head, which stay float.
        frames_BCT: fp32 trunk frames of the first batches: the variances are taken from them.
        options: The weights w.
    """

    def __init__(self, head: Head, frames_BCT: Array, options: QatOptions) -> None:
        self._weight_KD = torch.from_numpy(head.weight.astype(np.float32))
        self._bias_K = torch.from_numpy(head.bias.astype(np.float32))
        self._eps = head.eps
        self._options = options
        h_BCT = torch.from_numpy(frames_BCT)
        self._var_C1 = _raised(h_BCT.var(dim=(0, 2)))[:, None]
        s_BD = self._pooled(h_BCT)
        self._var_D = _raised(s_BD.var(dim=0))
        self._var_K = _raised(self._logits(s_BD).var(dim=0))

    def __call__(self, found_BCT: Tensor, expected_BCT: Array) -> Tensor:
        """A scalar."""
        h_BCT = torch.from_numpy(expected_BCT)
        s_BD, found_BD = self._pooled(h_BCT), self._pooled(found_BCT)
        z_BK, found_BK = self._logits(s_BD), self._logits(found_BD)
        kl = F.kl_div(
            found_BK.log_softmax(1), z_BK.log_softmax(1), log_target=True, reduction="batchmean"
        )
        frames = ((found_BCT - h_BCT).square() / self._var_C1).mean()
        pooled = ((found_BD - s_BD).square() / self._var_D).mean()
        logits = ((found_BK - z_BK).square() / self._var_K).mean()
        w = self._options
        return kl + w.frame_weight * frames + w.pooled_weight * pooled + w.logit_weight * logits

    def _logits(self, s_BD: Tensor) -> Tensor:
        return F.linear(s_BD, self._weight_KD, self._bias_K)

    def _pooled(self, h_BCT: Tensor) -> Tensor:
        mean_BC = h_BCT.mean(dim=2)
        var_BC = (h_BCT - mean_BC[:, :, None]).square().mean(dim=2)
        return torch.cat([mean_BC, torch.sqrt(var_BC + self._eps)], dim=1)


def _raised(variance: Tensor) -> Tensor:
    """Small variances are raised, so that dead channels stay harmless."""
    return variance.clamp_min(0.05 * float(variance.mean()) + 1e-12)
