from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge.data.store import collate, length_buckets

LENGTHS = st.lists(st.integers(1, 3_000), min_size=0, max_size=200)


def _waste(lengths: list[int], batch: list[int]) -> float:
    chosen = [lengths[i] for i in batch]
    return 1 - sum(chosen) / (len(chosen) * max(chosen))


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 32), st.one_of(st.none(), st.integers(0, 9)), st.floats(0, 0.9))
def test_every_clip_once_and_little_waste(
    lengths: list[int], size: int, seed: int | None, max_waste: float
) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = length_buckets(lengths, size, generator=generator, max_waste=max_waste)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(1 <= len(b) <= size for b in batches)
    assert all(_waste(lengths, b) <= max_waste + 1e-9 for b in batches)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(2, 32))
def test_no_batch_is_smaller_than_asked(lengths: list[int], size: int) -> None:
    batches = length_buckets(lengths, size, generator=None, min_batch=2)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) >= min(2, len(lengths)) for b in batches)


def test_order_is_fixed_without_and_random_with_a_generator() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(20, 200, 300)]
    assert length_buckets(lengths, 16, generator=None) == length_buckets(
        lengths, 16, generator=None
    )
    one, two, again = (
        length_buckets(lengths, 16, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 1)
    )
    assert one == again
    assert one != two
    neighbours = [
        {frozenset((a, b)) for batch in x for a in batch for b in batch} for x in (one, two)
    ]
    assert neighbours[0] != neighbours[1], "epochs differ in composition, not only in order"


def test_equal_lengths_fill_their_batches() -> None:
    batches = length_buckets([100] * 70, 32, generator=torch.Generator().manual_seed(0))
    assert sorted(len(b) for b in batches) == [6, 32, 32]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"max_waste": 1.0}, {"min_batch": 0}])
def test_sizes_are_checked(bad: dict[str, float]) -> None:
    arguments = {"batch_size": 4, "max_waste": 0.1, "min_batch": 1} | bad
    with pytest.raises(ValueError, match="length_buckets needs"):
        length_buckets([1, 2], generator=None, **arguments)


def test_padding_lies_right_and_at_the_floor() -> None:
    mels = [torch.randn(3, n) for n in (5, 9, 7)]
    floor = np.array([-1.0, -2.0, -3.0], dtype=np.float32)
    x_B1MT, lengths_B = collate(mels, [2, 0], pad_value=floor)
    assert x_B1MT.shape == (2, 1, 3, 7)
    assert lengths_B.tolist() == [7, 5]
    assert lengths_B.dtype == torch.int64
    assert torch.equal(x_B1MT[0, 0], mels[2])
    assert torch.equal(x_B1MT[1, 0, :, :5], mels[0])
    assert torch.equal(x_B1MT[1, 0, :, 5:], torch.from_numpy(floor)[:, None].expand(3, 2))
    scalar, _ = collate(mels, [0, 1], pad_value=-7.5)
    assert (scalar[0, 0, :, 5:] == -7.5).all()
    x_B1MT.zero_()
    assert mels[2].abs().sum() > 0, "the batch is a copy"
