"""Losses of the published methods, as in their papers.

Shape legend: B batch, M mel bands, T frames, K classes, C channels, D pooled state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.distributed import Rows
from frami_edge.inversion.bn_loss import BatchNormStatistics


class PublishedBatchNorm(BatchNormStatistics):
    """``Σ_l ‖μ_l - μ̄_l‖₂ + ‖σ²_l - σ̄²_l‖₂`` (Yin et al., *DeepInversion*, CVPR 2020, eq. 4).

    Args:
        model: Teacher.
        momentum: Share of earlier batches' moments that is mixed in; 0.9 in G. Fang et al., *Up to
            100x Faster Data-Free Knowledge Distillation*, AAAI 2022; 0 elsewhere.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.0) -> None:
        super().__init__(model)
        self.momentum = momentum
        self.earlier: dict[int, tuple[Tensor, Tensor]] = {}
        self.means: list[Tensor] = []

    def __enter__(self) -> PublishedBatchNorm:
        """Attach the hooks."""
        self.means.clear()
        super().__enter__()
        return self

    def _hook(self, index: int) -> Any:
        observe = super()._hook(index)

        def both(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            observe(module, inputs)
            self.means.append(inputs[0].flatten(2).mean(2) if inputs[0].ndim > 2 else inputs[0])

        return both

    def instance_means(self) -> Tensor:
        """(B, ΣC) mean of every BatchNorm's input over time and bands: the features of CMI."""
        return torch.cat(self.means, dim=1)

    def loss(self, rows: Rows | None = None) -> Tensor:
        """The sum of norms."""
        terms = []
        for i, (mean_C, var_C) in self._observed.items():
            layer = self.layers[i][1]
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, var = mean_C, var_C
            if self.momentum and i in self.earlier:
                old_mean, old_var = self.earlier[i]
                mean = self.momentum * old_mean + (1 - self.momentum) * mean_C
                var = self.momentum * old_var + (1 - self.momentum) * var_C
            terms.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())
        return torch.stack(terms).sum()

    @torch.no_grad()
    def remember(self) -> None:
        """Mix the latest batch into the earlier ones."""
        m = self.momentum
        for i, (mean_C, var_C) in self._observed.items():
            old = self.earlier.get(i, (mean_C.detach(), var_C.detach()))
            self.earlier[i] = (
                m * old[0] + (1 - m) * mean_C.detach(),
                m * old[1] + (1 - m) * var_C.detach(),
            )


def balance_loss(logits_BK: Tensor) -> Tensor:
    """``Σ p̄ log p̄``, p̄ the batch's mean answer: classes should be equally frequent.

    Source: H. Chen et al., *DAFL*, ICCV 2019 (information entropy loss).
    """
    p_K = logits_BK.softmax(1).mean(0)
    return (p_K * p_K.clamp_min(1e-12).log()).sum()


def divergence(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """``KL(teacher ‖ student)``, mean over clips: what ZSKT's generator raises.

    Source: P. Micaelli and A. Storkey, *Zero-shot Knowledge Transfer*, NeurIPS 2019.
    """
    t, s = teacher_BK.log_softmax(1), student_BK.log_softmax(1)
    return F.kl_div(s, t, log_target=True, reduction="batchmean")


def jensen_shannon(a_BK: Tensor, b_BK: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence of two softened answers, in nats.

    Source: H. Yin et al., *DeepInversion*, CVPR 2020 (adaptive DeepInversion).
    """
    a, b = (a_BK / temperature).log_softmax(1), (b_BK / temperature).log_softmax(1)
    middle = (0.5 * (a.exp() + b.exp())).clamp_min(1e-12).log()
    one = F.kl_div(middle, a, log_target=True, reduction="batchmean")
    return 0.5 * (one + F.kl_div(middle, b, log_target=True, reduction="batchmean"))


def total_variation(x_B1MT: Tensor) -> Tensor:
    """Sum of the l2 norms of the differences of neighbours in band, time and both diagonals."""
    x = x_B1MT
    return (
        (x[:, :, 1:] - x[:, :, :-1]).norm()
        + (x[..., 1:] - x[..., :-1]).norm()
        + (x[:, :, 1:, :-1] - x[:, :, :-1, 1:]).norm()
        + (x[:, :, 1:, 1:] - x[:, :, :-1, :-1]).norm()
    )
