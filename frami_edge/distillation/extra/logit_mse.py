"""Squared difference of the logits."""

from __future__ import annotations

from torch import Tensor

from frami_edge.models.hidden import Hidden


def loss(student: Hidden, teacher: Hidden) -> Tensor:
    """``mean (z_s - z_t)²`` over clips and classes.

    Source: T. Kim et al., *Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in
    Knowledge Distillation*, IJCAI 2021: what the logits term tends to as its temperature grows, but
    for the mean of the logits.
    """
    return (student.logits_BK.float() - teacher.logits_BK.float()).square().mean()
