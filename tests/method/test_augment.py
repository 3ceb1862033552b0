import pytest
import torch

from frami_edge.augment import (
    DECIBEL,
    Energies,
    mix_pairs,
    overlay_pairs,
    random_crop,
    random_equaliser,
    random_low_pass,
    random_masks,
    random_tempo_and_pitch,
)
from frami_edge.device import generator
from frami_edge.sources.procedural import procedural_mels


def seeded(name="x"):
    return generator(0, name)


@pytest.fixture
def x():
    """Every value tells its clip, band and frame."""
    b, m, t = 6, 8, 20
    grid = torch.arange(b)[:, None, None] * 10_000 + torch.arange(m)[:, None] * 100
    return (grid + torch.arange(t)).float()[:, None]


def test_a_crop_is_one_stretch_of_each_clip(x):
    starts = set()
    for i in range(20):
        y = random_crop(x, 9, seeded(str(i)))
        assert y.shape == (6, 1, 8, 9)
        start = y[:, 0, 0, 0] - x[:, 0, 0, 0]
        starts |= set(start.tolist())
        wanted = [x[b, :, :, int(s) : int(s) + 9] for b, s in enumerate(start)]
        assert torch.equal(y, torch.stack(wanted))
    assert starts == set(range(12)), "first and last stretch must be possible"
    assert random_crop(x, 20, seeded()) is x
    assert random_crop(x, 99, seeded()) is x


def test_masks_are_one_stripe_of_each_kind(x):
    widest = [0, 0]
    for i in range(50):
        y = random_masks(x, 3, 5, seeded(str(i)), value=-1.0)
        hit = (y == -1)[:, 0]
        assert torch.equal(y[~hit[:, None]], x[~hit[:, None]])
        for clip in hit:
            for axis, limit in ((0, 3), (1, 5)):
                index = clip.all(dim=1 - axis).nonzero()[:, 0]
                # A stripe of width w touches at most ceil(w) cells whose index lies inside it.
                assert len(index) <= limit
                widest[axis] = max(widest[axis], len(index))
                if len(index):
                    assert index.tolist() == list(range(int(index[0]), int(index[-1]) + 1))
    assert widest == [3, 5]
    assert torch.equal(random_masks(x, 0, 0, seeded()), x)


def test_blends_keep_the_larger_share_of_the_clip_itself(x):
    y, partner, lam = mix_pairs(x, 1.0, seeded())
    assert ((lam >= 0.5) & (lam <= 1)).all()
    assert sorted(partner.tolist()) == list(range(6))
    weight = lam[:, None, None, None]
    torch.testing.assert_close(y, weight * x + (1 - weight) * x[partner])


def test_sounds_are_changed_as_energies(spec):
    x = procedural_mels(spec, 6, 40, 0)
    energies = Energies(spec)
    log_e = energies.of(x)
    assert torch.allclose(energies.back(log_e), x, atol=1e-5)
    rng = torch.Generator().manual_seed(0)
    overlaid = overlay_pairs(log_e, 1.0, rng)
    louder_B = overlaid.flatten(1).logsumexp(1) - log_e.flatten(1).logsumexp(1)
    # A sound that is 0 to 20 dB weaker adds at most 3 dB and at least 0.04 dB.
    assert (louder_B > 0.04 * DECIBEL).all()
    assert (louder_B < 3.02 * DECIBEL).all()
    assert torch.equal(overlay_pairs(log_e, 0.0, rng), log_e)
    tilted = random_equaliser(log_e, 6.0, rng) - log_e
    assert torch.allclose(tilted, tilted[..., :1].expand_as(tilted), atol=1e-5)
    assert torch.allclose(random_tempo_and_pitch(log_e, 0.0, 0.0, rng), log_e, atol=1e-4)
    floor_M1 = energies.of(torch.from_numpy(spec.floor)[:, None])
    silent_BM = (random_low_pass(log_e, 1.0, floor_M1, rng) == floor_M1).all(3)[:, 0]
    assert not silent_BM[:, : spec.n_mels // 2].any()
    assert (silent_BM.diff(dim=1).sum(1) <= 1).all(), "all bands above one"
    assert len({int(n) for n in silent_BM.sum(1)}) > 1
    assert torch.equal(random_low_pass(log_e, 0.0, floor_M1, rng), log_e)
    moved = random_tempo_and_pitch(log_e, 0.25, 4.0, rng)
    assert moved.shape == log_e.shape
    assert moved.max() <= log_e.max() + 1e-4
