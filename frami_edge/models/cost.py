"""What a network costs: multiply-accumulates, counted from the layers that run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frami_edge_runtime.melspec import MelSpec


@torch.no_grad()
def macs(model: nn.Module, spec: MelSpec, frames: int) -> int:
    """Multiply-accumulates of convolutions and linear layers, for one clip."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += module.weight.numel()
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            total += module.weight.numel() * output[0, 0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules()]
    try:
        device = next(model.parameters()).device
        model(torch.zeros(1, 1, spec.n_mels, frames, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return total


def macs_per_second(model: nn.Module, spec: MelSpec) -> int:
    """Multiply-accumulates for each second of a long stream: the difference of two lengths."""
    one_s = max(1, round(1 / spec.hop_s))
    ten, twenty = macs(model, spec, 10 * one_s), macs(model, spec, 20 * one_s)
    return (twenty - ten) // 10
