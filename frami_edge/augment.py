"""Augmentation of clips, shared by teacher training and distillation.

Shape legend: B batch, M mel bands, T frames, N samples. Every function takes normalised log-mels
(B, 1, M, T) and a generator; crops and blends take audio (B, N) as well.
No time reversal (an impact is not a swell) and no zero padding (0 is the mean, not silence).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.device import upload
from frami_edge_runtime.melspec import MelSpec


def random_crop(x_B1MT: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """One random stretch of ``frames`` frames (samples) per clip; shorter clips stay whole."""
    b, t = x_B1MT.shape[0], x_B1MT.shape[-1]
    if frames >= t:
        return x_B1MT
    start_B = torch.randint(0, t - frames + 1, (b,), generator=generator)
    index_BT = upload(start_B[:, None] + torch.arange(frames), x_B1MT.device)
    around = [1] * (x_B1MT.ndim - 2)
    return x_B1MT.gather(-1, index_BT.view(b, *around, frames).expand(*x_B1MT.shape[:-1], frames))


def random_stretch(x_B1MT: Tensor, shortest: float, generator: torch.Generator) -> Tensor:
    """A random stretch of at least that share of the frames; the whole batch has one length."""
    share = shortest + (1 - shortest) * float(torch.rand((), generator=generator))
    return random_crop(x_B1MT, max(1, round(share * x_B1MT.shape[3])), generator)


def random_roll(x_B1MT: Tensor, generator: torch.Generator) -> Tensor:
    """Start each clip at a random frame (sample) and wrap around."""
    b, t = x_B1MT.shape[0], x_B1MT.shape[-1]
    shift_B = torch.randint(0, t, (b,), generator=generator)
    index_BT = upload((shift_B[:, None] + torch.arange(t)) % t, x_B1MT.device)
    return x_B1MT.gather(-1, index_BT.view(b, *[1] * (x_B1MT.ndim - 2), t).expand_as(x_B1MT))


def random_gain(x_B1MT: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add N(0, std²) to each clip: a change of loudness, in units of the front end's std."""
    gain_B = torch.randn(x_B1MT.shape[0], generator=generator).to(x_B1MT.dtype)
    gain_B = upload(gain_B, x_B1MT.device)
    return x_B1MT + std * gain_B[:, None, None, None]


def random_volume(x_BN: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Multiply each clip of audio by exp(N(0, std²)): a change of loudness of 8.7 std dB."""
    gain_B = (std * torch.randn(x_BN.shape[0], generator=generator)).exp()
    return x_BN * upload(gain_B.to(x_BN.dtype), x_BN.device)[:, None]


def random_masks(
    x_B1MT: Tensor, mel_bands: int, frames: int, generator: torch.Generator, value: float = 0.0
) -> Tensor:
    """Overwrite one random stripe of up to ``mel_bands`` bands and one of up to ``frames`` frames.

    Source: D. Park et al., *SpecAugment*, Interspeech 2019, one mask of each kind.
    """
    b, _, m, t = x_B1MT.shape
    masked = torch.zeros(b, 1, m, t, dtype=torch.bool, device=x_B1MT.device)
    for size, limit, shape in ((m, mel_bands, (b, 1, m, 1)), (t, frames, (b, 1, 1, t))):
        if limit <= 0:
            continue
        width_B = torch.rand(b, generator=generator) * min(limit, size)
        start_B = torch.rand(b, generator=generator) * (size - width_B)
        index = torch.arange(size)[None, :]
        stripe = (index >= start_B[:, None]) & (index < (start_B + width_B)[:, None])
        masked |= upload(stripe, x_B1MT.device).view(shape)
    return x_B1MT.masked_fill(masked, value)


def mix_pairs(
    x_B1MT: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend each clip with another of its batch: x ← λ x + (1 - λ) x', λ ~ U(1/2, 1).

    Source: H. Zhang et al., *mixup*, ICLR 2018, with α = 1; λ and 1 - λ give the same blend with
    the partners exchanged, so the clip itself takes the larger one.

    Returns:
        The blended batch, the partner of each clip (B,) int64, and λ (B,), which is 1 where a clip
        is unchanged.
    """
    b = x_B1MT.shape[0]
    partner_B = torch.randperm(b, generator=generator).to(x_B1MT.device)
    lam_B = 0.5 + 0.5 * torch.rand(b, generator=generator)
    lam_B[torch.rand(b, generator=generator) >= probability] = 1.0
    lam_B = lam_B.to(x_B1MT.device, x_B1MT.dtype)
    weight = lam_B.view(b, *[1] * (x_B1MT.ndim - 1))
    return weight * x_B1MT + (1 - weight) * x_B1MT[partner_B], partner_B, lam_B


# --- In the energy domain: what happens to sounds, for which the front end must be known

DECIBEL = math.log(10) / 10
"""One decibel of energy as a natural logarithm."""


class Energies(nn.Module):
    """Normalised log-mels of one front end as natural logarithms of energy, and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        # The logarithm of a magnitude is half that of its energy.
        self.scale = spec.log_scale / (2 if spec.power == 1 else 1)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(spec, name), dtype=torch.float32).reshape(-1, 1)
            self.register_buffer(name, value, persistent=False)

    def of(self, x_B1MT: Tensor) -> Tensor:
        """Log energies of normalised log-mels."""
        return (x_B1MT * self.std + self.mean) / self.scale

    def back(self, x_B1MT: Tensor) -> Tensor:
        """Normalised log-mels of log energies."""
        return (x_B1MT * self.scale - self.mean) / self.std


def overlay_pairs(x_B1MT: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Add to some clips another of the batch, 0 to 20 dB weaker; log energies."""
    b = x_B1MT.shape[0]
    partner = x_B1MT[torch.randperm(b, generator=rng)]
    level_B = x_B1MT.flatten(1).logsumexp(1) - partner.flatten(1).logsumexp(1)
    level_B = level_B - 20 * DECIBEL * torch.rand(b, generator=rng)
    level_B[torch.rand(b, generator=rng) >= probability] = -torch.inf
    return torch.logaddexp(x_B1MT, partner + level_B[:, None, None, None])


def random_equaliser(x_B1MT: Tensor, std_db: float, rng: torch.Generator) -> Tensor:
    """Another spectrum: a smooth curve of N(0, std²) dB at six points over the bands."""
    b, _, m, _ = x_B1MT.shape
    points = torch.randn(b, 1, 6, generator=rng)
    curve_B1M = F.interpolate(points, size=m, mode="linear", align_corners=True)
    return x_B1MT + std_db * DECIBEL * upload(curve_B1M[..., None], x_B1MT.device)


def random_low_pass(
    x_B1MT: Tensor, probability: float, floor_M1: Tensor, rng: torch.Generator
) -> Tensor:
    """Take everything above a random band in the upper half from some clips; log energies.

    So sound recordings at a lower rate, or behind a codec. ``floor_M1`` is what digital silence is.
    """
    b, _, m, _ = x_B1MT.shape
    top_B = m * (0.5 + 0.5 * torch.rand(b, generator=rng))
    top_B[torch.rand(b, generator=rng) >= probability] = m
    above_BM = upload(torch.arange(m) >= top_B[:, None], x_B1MT.device)
    return torch.where(above_BM[:, None, :, None], floor_M1, x_B1MT)


def random_tempo_and_pitch(
    x_B1MT: Tensor, tempo: float, bands: float, rng: torch.Generator
) -> Tensor:
    """Play each clip up to ``tempo`` faster or slower, and up to ``bands`` bands higher or lower.

    A clip that becomes too short starts again; edges in frequency repeat.
    """
    b, _, m, t = x_B1MT.shape
    rate_B = torch.exp((2 * torch.rand(b, generator=rng) - 1) * math.log1p(tempo))
    shift_B = (2 * torch.rand(b, generator=rng) - 1) * bands
    at_BT = (torch.arange(t) * rate_B[:, None]) % t
    band_BM = (torch.arange(m) - shift_B[:, None]).clamp(0, m - 1)
    grid = torch.stack(
        torch.broadcast_tensors(
            (2 * at_BT / max(1, t - 1) - 1)[:, None, :],
            (2 * band_BM / max(1, m - 1) - 1)[:, :, None],
        ),
        dim=-1,
    )
    grid = upload(grid, x_B1MT.device)
    return F.grid_sample(x_B1MT, grid, padding_mode="border", align_corners=True)
