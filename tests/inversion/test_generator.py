from __future__ import annotations

import pytest
import torch

from frami_edge.sources.generator import Generator, PhysicalRange, balanced_labels
from frami_edge.sources.translator import Translator
from frami_edge_runtime.melspec import MelSpec


def bounds(spec: MelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    floor, ceiling = torch.from_numpy(spec.floor), torch.from_numpy(spec.ceiling)
    return floor[None, None, :, None] - 1e-5, ceiling[None, None, :, None] + 1e-5


@pytest.mark.parametrize("gain", [1.0, 100.0])
@pytest.mark.parametrize("frames", [8, 17, 96])
def test_every_output_is_what_the_front_end_could_give(
    spec: MelSpec, frames: int, gain: float
) -> None:
    torch.manual_seed(0)
    model = Generator(spec, 5, frames, latent=8, width=8)
    with torch.no_grad():
        model.out.weight.mul_(gain)
        mels = model(3 * torch.randn(12, 8), balanced_labels(12, 5))
    assert mels.shape == (12, 1, spec.n_mels, frames)
    floor, ceiling = bounds(spec)
    assert (mels >= floor).all()
    assert (mels <= ceiling).all()
    assert torch.isfinite(mels).all()


def test_the_class_matters(spec: MelSpec) -> None:
    torch.manual_seed(0)
    model = Generator(spec, 5, 16, latent=8, width=8).eval()
    z = torch.randn(4, 8)
    one, other = model(z, torch.zeros(4, dtype=torch.int64)), model(z, torch.ones(4).long())
    assert (one - other).abs().max() > 1e-3


def test_the_range_is_smooth_around_the_training_mean(spec: MelSpec) -> None:
    squash = PhysicalRange(spec).double()
    u = torch.zeros(1, 1, spec.n_mels, 1, requires_grad=True)
    y = squash(u)
    assert y.abs().max() < 1e-5
    y.sum().backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad, torch.ones_like(u), atol=1e-4, rtol=1e-4)


def test_the_range_holds_for_any_input(spec: MelSpec) -> None:
    floor, ceiling = bounds(spec)
    for u in (-1e9, -5.0, 5.0, 1e9):
        y = PhysicalRange(spec)(torch.full((1, 1, spec.n_mels, 1), u))
        assert ((y >= floor) & (y <= ceiling)).all()


def test_a_mean_outside_the_range_still_gives_numbers(spec: MelSpec) -> None:
    y = PhysicalRange(spec.replace(mean=-30.0))(torch.zeros(1, 1, spec.n_mels, 1))
    assert torch.isfinite(y).all()


def test_labels_take_turns() -> None:
    seen = torch.cat([balanced_labels(8, 5, 8 * i) for i in range(5)])
    assert torch.bincount(seen).tolist() == [8] * 5


@pytest.mark.parametrize("frames", [16, 30])
def test_the_translator_stays_inside_and_starts_near_its_input(spec: MelSpec, frames: int) -> None:
    torch.manual_seed(0)
    model = Translator(spec, 5, latent=8, width=8)
    x = torch.randn(6, 1, spec.n_mels, frames)
    y, change = model(x, torch.randn(6, 8), balanced_labels(6, 5))
    floor, ceiling = bounds(spec)
    assert y.shape == x.shape == change.shape
    assert ((y >= floor) & (y <= ceiling)).all()
    assert change.abs().mean() < x.abs().mean()


def test_what_the_translator_clamps_still_learns(spec: MelSpec) -> None:
    torch.manual_seed(0)
    model = Translator(spec, 5, latent=8, width=8)
    y, _ = model(torch.full((4, 1, spec.n_mels, 16), -99.0), torch.randn(4, 8), torch.arange(4))
    y.sum().backward()
    assert model.gain.weight.grad is not None
    assert model.gain.weight.grad.abs().sum() > 0
