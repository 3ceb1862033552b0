"""The baselines' losses are the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from frami_edge.losses import (
    PublishedBatchNorm,
    balance_loss,
    divergence,
    jensen_shannon,
    split_contrast,
    total_variation,
)
from frami_edge.models import ResNetTeacher

K = 5


def test_balance_is_the_negative_entropy_of_the_mean_answer() -> None:
    assert balance_loss(torch.zeros(4, K)).item() == pytest.approx(-math.log(K))
    one = torch.eye(K)[[0, 0, 0]] * 50
    assert balance_loss(one).item() == pytest.approx(0, abs=1e-5)
    each = torch.eye(K) * 50
    assert balance_loss(each).item() == pytest.approx(-math.log(K), abs=1e-5)


def test_divergence_is_from_the_teacher() -> None:
    t, s = torch.randn(6, K), torch.randn(6, K)
    p, q = t.log_softmax(1), s.log_softmax(1)
    torch.testing.assert_close(divergence(t, s), (p.exp() * (p - q)).sum(1).mean())
    assert divergence(t, t).item() == pytest.approx(0, abs=1e-6)


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    a, b = torch.randn(6, K), torch.randn(6, K)
    torch.testing.assert_close(jensen_shannon(a, b, 3), jensen_shannon(b, a, 3))
    p, q = (a / 3).softmax(1), (b / 3).softmax(1)
    m = (p + q) / 2
    wanted = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    torch.testing.assert_close(jensen_shannon(a, b, 3), wanted)
    apart = torch.eye(K)[[0]] * 300, torch.eye(K)[[1]] * 300
    assert jensen_shannon(*apart, 1).item() == pytest.approx(math.log(2), abs=1e-4)


def test_total_variation_of_a_ramp_over_bands() -> None:
    x = torch.arange(3.0)[None, None, :, None].expand(1, 1, 3, 4)
    # 8 differences of 1 along bands, none along time, 6 of 1 on each diagonal.
    assert total_variation(x).item() == pytest.approx(8**0.5 + 2 * 6**0.5)


def test_the_batch_norm_loss_is_a_sum_of_norms_and_mixes_earlier_moments(
    teacher: ResNetTeacher,
) -> None:
    first, second = torch.randn(6, 1, 16, 24), 2 * torch.randn(6, 1, 16, 24)
    watch = PublishedBatchNorm(teacher, momentum=0.9)

    def moments(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with PublishedBatchNorm(teacher) as plain:
            teacher.hidden(x)
        return list(plain._observed.values())

    def wanted(found: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        total = 0.0
        for (_, layer), (mean, var) in zip(watch.layers, found, strict=True):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            total += float((mean - layer.running_mean).norm() + (var - layer.running_var).norm())
        return total

    with watch:
        teacher.hidden(first)
    assert watch.loss().item() == pytest.approx(wanted(moments(first)), rel=1e-5)
    watch.remember()
    with watch:
        teacher.hidden(second)
    mixed = [
        (0.1 * m + 0.9 * om, 0.1 * v + 0.9 * ov)
        for (m, v), (om, ov) in zip(moments(second), moments(first), strict=True)
    ]
    assert watch.loss().item() == pytest.approx(wanted(mixed), rel=1e-4)
    assert watch.instance_means(6).shape == (6, sum(m.num_features for _, m in watch.layers))


def test_the_contrast_is_a_mean_over_the_batch_and_one_over_the_memory() -> None:
    q, k = F.normalize(torch.randn(7, 4), dim=1), F.normalize(torch.randn(7, 4), dim=1)
    log_p = (q @ k.T / 0.1).log_softmax(1).diagonal()
    wanted = -log_p[:3].mean() - log_p[3:].mean()
    torch.testing.assert_close(split_contrast(q, k, 3, 0.1), wanted)
    alone = (q[:3] @ k[:3].T / 0.1).log_softmax(1).diagonal().mean()
    torch.testing.assert_close(split_contrast(q[:3], k[:3], 3, 0.1), -alone)
