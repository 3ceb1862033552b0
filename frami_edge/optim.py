"""Schedules and parameter groups shared by the training loops."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def cosine_with_warmup(step: int, total: int, warmup: float) -> float:
    """Factor of the learning rate: linear rise over ``warmup`` of the steps, then a half cosine."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: decay for matrices and kernels, none for biases and BatchNorm."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
