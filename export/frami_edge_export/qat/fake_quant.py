"""Rounding to int8 grids that gradients pass through.

Straight-through estimator: forward rounds as QuantizeLinear and DequantizeLinear do, backward is
the identity where nothing was clipped. Source: S. Esser et al., *Learned Step Size Quantization*,
ICLR 2020, for the gradient of the scale.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

WEIGHT_LEVELS: Final = 127
"""Weights are symmetric: -127..127."""


class _FakeQuant(torch.autograd.Function):
    """``clamp(round(x / s) + z, low, high) - z) s`` with gradients for x and s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        y: Tensor = torch.fake_quantize_per_tensor_affine(x, scale.detach(), zero, low, high)
        ctx.save_for_backward(x, y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (g,) = gradients
        x, y, scale = ctx.saved_tensors
        # What was rounded moved by at most half a step; what was clipped moved further.
        kept = (y - x).abs() <= 0.50001 * scale
        g_scale = None
        if ctx.needs_input_grad[1]:
            # d y / d s is round(x / s) - x / s inside, and the level clipped to outside.
            g_scale = (g * torch.where(kept, y - x, y)).sum() / scale
        return g * kept, g_scale, None, None, None


def fake_quant(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """An activation on its int8 grid.

    Args:
        x: Any shape, float32.
        scale: () step size, positive.
        zero: () int32 level that stands for 0.
        low: Least level: 0 or -128.
        high: Greatest level: 255 or 127.
    """
    y: Tensor = _FakeQuant.apply(x, scale, zero, low, high)
    return y


def weight_scales(weight: Tensor) -> Tensor:
    """(C_out,) step of each output channel: its largest magnitude is level 127."""
    largest = weight.detach().abs().flatten(1).amax(dim=1)
    # A channel of zeros has no magnitude; any step represents it.
    return torch.where(largest > 0, largest / WEIGHT_LEVELS, torch.ones_like(largest))


def fake_quant_weight(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """A convolution's weight (C_out, ...) on the int8 grid of each output channel.

    Args:
        weight: float32.
        scale: (C_out,); by default `weight_scales`, which follow the weight.
    """
    steps = weight_scales(weight) if scale is None else scale
    zeros = torch.zeros(len(steps), dtype=torch.int32)
    y: Tensor = torch.fake_quantize_per_channel_affine(
        weight, steps, zeros, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS
    )
    return y
