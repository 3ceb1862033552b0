"""Further distillation terms, one file each: `distill.extra: {NAME: WEIGHT}` in a config.

A file holds `loss(student, teacher) -> Tensor`: from both sides' hidden states and logits of one
batch (`frami_edge.models.hidden.Hidden`) to a scalar that is a **mean over clips**, so that several
processes give the same gradient as one. Its name is the file's.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # configs are read without torch
    from torch import Tensor

    from frami_edge.models.hidden import Hidden

    Loss = Callable[[Hidden, Hidden], Tensor]


def extra_names() -> tuple[str, ...]:
    """Every term that there is a file for."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def extra_loss(name: str) -> Loss:
    """The term of that name, one of `extra_names`."""
    found: Loss = import_module(f"{__name__}.{name}").loss
    return found
