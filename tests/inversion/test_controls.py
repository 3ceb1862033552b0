from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from frami_edge.errors import ConfigError
from frami_edge.sources.noise import smooth_noise_mels, white_noise_mels
from frami_edge_runtime.melspec import MelSpec

Control = Callable[[MelSpec, int, int, int], Tensor]
CONTROLS = [smooth_noise_mels, white_noise_mels]


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(("n", "frames"), [(0, 8), (1, 1), (5, 37)])
def test_size_and_dtype(spec: MelSpec, control: Control, n: int, frames: int) -> None:
    x = control(spec, n, frames, 0)
    assert x.shape == (n, 1, spec.n_mels, frames)
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("control", CONTROLS)
def test_seed_decides_and_the_global_generator_does_not(spec: MelSpec, control: Control) -> None:
    first = control(spec, 4, 20, 1)
    torch.manual_seed(999)
    before = torch.get_rng_state()
    torch.testing.assert_close(control(spec, 4, 20, 1), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(control(spec, 4, 20, 2), first)


@pytest.mark.parametrize("control", CONTROLS)
def test_mean_and_std_are_the_teachers_input_scale(spec: MelSpec, control: Control) -> None:
    x = control(spec, 400, 48, 0)
    assert float(x.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(x.std()) == pytest.approx(1.0, abs=0.06)


def test_smooth_noise_stays_in_range_and_white_noise_does_not_care(spec: MelSpec) -> None:
    low, high = (torch.from_numpy(v)[:, None] for v in (spec.floor, spec.ceiling))
    smooth = smooth_noise_mels(spec, 200, 48, 0)
    assert ((smooth >= low) & (smooth <= high)).all()
    narrow = spec.replace(std=20.0)
    white = white_noise_mels(narrow, 200, 48, 0)
    assert (white < torch.from_numpy(narrow.floor)[:, None]).any()


def test_smooth_noise_is_smooth_and_varies_in_level(spec: MelSpec) -> None:
    def roughness(x: Tensor) -> float:
        return float(x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean())

    smooth, white = smooth_noise_mels(spec, 64, 48, 0), white_noise_mels(spec, 64, 48, 0)
    assert roughness(smooth) < 0.4 * roughness(white)
    assert smooth.mean((1, 2, 3)).std() > 10 * white.mean((1, 2, 3)).std()


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("bad", [(-1, 8, 0), (1, 0, 0), (1, 8, -1)])
def test_impossible_sizes_are_refused(
    spec: MelSpec, control: Control, bad: tuple[int, int, int]
) -> None:
    with pytest.raises(ConfigError):
        control(spec, *bad)
