"""Pooling against its offline definitions, in float64."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.pooling import Forgetting, SlidingWindow, WholeClip, mean_std

C, EPS = 6, 1e-5
SPREAD = np.array([[0.1], [1], [5], [0], [20], [2]])
FRAMES = np.random.default_rng(1).normal(3.0, SPREAD, (C, 400)).astype(np.float32)
BLOCK, BLOCKS, HALF_LIFE = 4, 5, 12.5
MAKE = {
    "whole": lambda: WholeClip(C, EPS),
    "window": lambda: SlidingWindow(C, EPS, block=BLOCK, blocks=BLOCKS),
    "forget": lambda: Forgetting(C, EPS, half_life=HALF_LIFE),
}


def by_definition(kind, n):
    weights = np.ones(n)
    if kind == "window":
        weights[: max(0, BLOCK * -(-n // BLOCK) - BLOCK * BLOCKS)] = 0
    if kind == "forget":
        weights = 2.0 ** (-(n - 1 - np.arange(n)) / HALF_LIFE)
    x = FRAMES[:, :n].astype(np.float64)
    mean = np.average(x, axis=1, weights=weights)
    var = np.average((x - mean[:, None]) ** 2, axis=1, weights=weights)
    return np.concatenate([mean, np.sqrt(var + EPS)])


@pytest.mark.parametrize("kind", MAKE)
@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(any))
def test_meets_its_definition(kind, sizes):
    pool, n = MAKE[kind](), 0
    for size in sizes:
        pool.push(FRAMES[:, n : n + size])
        n += size
    pooled = pool.pooled()
    assert (pool.count, pooled.dtype, pooled.shape) == (n, np.float32, (2 * C,))
    assert np.allclose(pooled, by_definition(kind, n), rtol=2e-7, atol=1e-6)
    pool.reset()
    assert pool.empty
    with pytest.raises(StreamError, match="no frames"):
        pool.pooled()


def test_whole_clips_at_once_are_pooled_alike():
    clips_BCT = np.stack([FRAMES[:, :200], FRAMES[:, 200:]])
    pooled_BD = mean_std(clips_BCT, EPS)
    np.testing.assert_allclose(pooled_BD[0], by_definition("whole", 200), rtol=1e-12)
    for clip_CT, pooled_D in zip(clips_BCT, pooled_BD, strict=True):
        pool = WholeClip(C, EPS)
        pool.push(clip_CT)
        np.testing.assert_allclose(pool.pooled(), pooled_D, rtol=2e-7, atol=1e-6)


def test_a_day_of_frames_is_exact():
    rng = np.random.default_rng(0)
    block = np.maximum(rng.normal(0.2, 1.0, (2, 2160)), 0).astype(np.float32)
    pool = WholeClip(2, EPS)
    for _ in range(1000):  # 2.16 million frames: 24 h at 40 ms
        pool.push(block)
    for channel in range(2):
        values = [Fraction(float(v)) for v in block[channel]]
        mean = sum(values) / len(values)
        var = sum(v * v for v in values) / len(values) - mean * mean
        exact = [float(mean), float(var + Fraction(EPS)) ** 0.5]
        assert np.allclose(pool.pooled()[channel::2], exact, rtol=1e-6, atol=0)
