from __future__ import annotations

import numpy as np
import torch

from frami_edge.models import POOL_EPS, StatsPool, frame_mask
from frami_edge_runtime.modelfile import Pooling


def test_mean_and_population_deviation() -> None:
    h = torch.randn(3, 4, 9)
    pooled = StatsPool()(h).numpy()
    x = h.numpy().astype(np.float64)
    expected = np.concatenate([x.mean(2), np.sqrt(x.var(2) + POOL_EPS)], axis=1)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_lengths_leave_out_the_padding() -> None:
    h = torch.randn(2, 4, 9)
    padded = torch.cat([h, torch.full((2, 4, 5), 1e6)], dim=2)
    lengths = torch.tensor([9, 4])
    pooled = StatsPool()(padded, lengths)
    torch.testing.assert_close(pooled[0], StatsPool()(h)[0])
    torch.testing.assert_close(pooled[1], StatsPool()(h[1:, :, :4])[0])


def test_a_loud_steady_sound_keeps_its_small_variance() -> None:
    """The one-pass formula would lose it: 1000² + 0.01² rounds to 1000² in float32."""
    h = 1000 + 0.05 * torch.sign(torch.randn(1, 1, 1000))
    expected = float((h.double().var(correction=0) + POOL_EPS).sqrt())
    assert abs(float(StatsPool()(h)[0, 1]) - expected) < 1e-3


def test_one_frame_has_a_finite_gradient() -> None:
    h = torch.randn(2, 3, 1, requires_grad=True)
    StatsPool()(h).sum().backward()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


def test_half_precision_is_pooled_in_float32() -> None:
    assert StatsPool()(torch.randn(1, 2, 5).bfloat16()).dtype == torch.float32


def test_the_runtime_adds_the_same_eps() -> None:
    assert Pooling().eps == POOL_EPS


def test_the_mask_counts_frames() -> None:
    mask = frame_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]
