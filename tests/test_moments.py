"""The fast moments are those of `torch.var_mean`, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from frami_edge.distributed import channel_moments


def expected(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance in double precision."""
    var_C, mean_C = torch.var_mean(x.double(), [d for d in range(x.ndim) if d != 1], correction=0)
    return mean_C, var_C


@pytest.mark.parametrize(
    "shape",
    [(6, 5), (4, 5, 7), (4, 5, 7, 9), (4, 5, 7, 1), (4, 5, 1, 9), (1, 5, 3, 2), (4, 1, 2, 3)],
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_moments_and_their_gradient(shape: tuple[int, ...], last: bool, offset: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) + offset
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for moments, leaf in ((channel_moments(mine), mine), (expected(theirs), theirs)):
        mean_C, var_C = moments
        weights = torch.arange(1, len(mean_C) + 1)
        ((weights * mean_C).sum() + (weights * var_C.square()).sum()).backward()
        assert leaf.grad is not None
    for a, b in zip(channel_moments(x), expected(x), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-3, atol=2e-4)


def test_a_constant_channel_has_no_variance() -> None:
    mean_C, var_C = channel_moments(torch.full((3, 2, 4), 7.0))
    assert mean_C.tolist() == [7, 7]
    assert var_C.tolist() == [0, 0]
