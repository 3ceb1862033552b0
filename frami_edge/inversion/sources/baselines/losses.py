"""Losses of the published methods.

Shape legend: B batch, M mel bands, T frames, K classes, C channels, N rows with a memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.distributed import Rows
from frami_edge.inversion.bn_loss import BatchNormStatistics


class PublishedBatchNorm(BatchNormStatistics):
    """``Σ_l ‖μ_l - μ̄_l‖₂ + ‖σ²_l - σ̄²_l‖₂``: a plain sum of norms over the layers.

    Source: H. Yin et al., *Dreaming to Distill* (DeepInversion), CVPR 2020; CMI, DFQ and
    Fast-Datafree use it too. With ``momentum`` m the batch's moments are first mixed with the
    running ones of earlier batches, ``(1 - m) μ + m μ_ema``, and so is σ² (G. Fang et al., *Up to
    100x Faster Data-Free Knowledge Distillation*, AAAI 2022).

    Args:
        model: Teacher.
        momentum: m.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.0) -> None:
        super().__init__(model)
        self.momentum = momentum
        self.earlier: list[Tensor] = []
        self._means: dict[int, Tensor] = {}

    def __enter__(self) -> PublishedBatchNorm:
        """Attach the hooks."""
        self._means.clear()
        super().__enter__()
        return self

    def _hook(self, index: int) -> Any:
        observe = super()._hook(index)

        def both(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            observe(module, inputs)
            x = inputs[0].float()
            self._means[index] = x.flatten(2).mean(2) if x.ndim > 2 else x

        return both

    def instance_means(self, clips: int) -> Tensor:
        """(B, ΣC) mean of every BatchNorm's input over time and bands, clip by clip.

        Layers that see something else than ``clips`` rows are left out.
        """
        return torch.cat([m for m in self._means.values() if len(m) == clips], dim=1)

    def loss(self, rows: Rows | None = None) -> Tensor:
        """The sum of norms; `rows` is not for here, every process has the whole batch."""
        terms = []
        for place, (i, (mean_C, var_C)) in enumerate(self._observed.items()):
            layer = self.layers[i][1]
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, var = mean_C, var_C
            if self.earlier:
                old_mean, old_var = self.earlier[place]
                mean = torch.lerp(mean, old_mean, self.momentum)
                var = torch.lerp(var, old_var, self.momentum)
            terms.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())
        return torch.stack(terms).sum()

    @torch.no_grad()
    def remember(self) -> None:
        """Mix the latest moments into those of earlier batches."""
        latest = [torch.stack(pair).detach() for pair in self._observed.values()]
        m = self.momentum
        if self.earlier:
            latest = [
                torch.lerp(new, old, m) for new, old in zip(latest, self.earlier, strict=True)
            ]
        self.earlier = latest if m else []


def balance_loss(logits_BK: Tensor) -> Tensor:
    """``Σ_k p̄_k log p̄_k``, p̄ the batch's mean answer: classes should be equally frequent.

    Source: H. Chen et al., *Data-Free Learning of Student Networks* (DAFL), ICCV 2019.
    """
    p_K = logits_BK.float().softmax(1).mean(0)
    return (p_K * p_K.clamp_min(1e-12).log()).sum()


def divergence(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """``KL(teacher ‖ student)``, mean over clips: what ZSKT's generator raises.

    Source: P. Micaelli and A. Storkey, *Zero-shot Knowledge Transfer*, NeurIPS 2019.
    """
    t, s = teacher_BK.float().log_softmax(1), student_BK.float().log_softmax(1)
    return F.kl_div(s, t, log_target=True, reduction="batchmean")


def jensen_shannon(a_BK: Tensor, b_BK: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence of two softened answers, in nats, mean over clips.

    Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020 (adaptive DeepInversion).
    """
    a, b = ((x.float() / temperature).log_softmax(1) for x in (a_BK, b_BK))
    middle = (0.5 * (a.exp() + b.exp())).clamp_min(1e-12).log()
    sides = [F.kl_div(middle, x, log_target=True, reduction="batchmean") for x in (a, b)]
    return 0.5 * (sides[0] + sides[1])


def total_variation(x_B1MT: Tensor) -> Tensor:
    """Sum of the l2 norms of the differences of neighbours in band, time and both diagonals.

    Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020, whose prior on images it is.
    """
    x = x_B1MT
    differences = (
        x[:, :, 1:] - x[:, :, :-1],
        x[..., 1:] - x[..., :-1],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        x[:, :, 1:, 1:] - x[:, :, :-1, :-1],
    )
    return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()


def split_contrast(query_NE: Tensor, key_NE: Tensor, current: int, temperature: float) -> Tensor:
    """``Σ_part -mean_{i ∈ part} log( exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ) )``.

    The parts are the first ``current`` rows, those of the running batch, and the rest, those of a
    memory: one mean over all would thin out what reaches the generator.
    Source: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    """
    own = torch.arange(len(query_NE), device=query_NE.device)
    each_N = F.cross_entropy(query_NE @ key_NE.T / temperature, own, reduction="none")
    loss = each_N[:current].mean()
    return loss if len(each_N) == current else loss + each_N[current:].mean()
