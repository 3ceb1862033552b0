"""Trunks of students, one file each: `student.trunk: NAME` in a config.

A file holds `build(arch) -> Trunk`: from the fields of `StudentArch` to a module that maps
normalised log-mels (B, 1, M, T) to frame features (B, arch.out_channels, T'). **Nothing in it may
pad along time or look at the whole clip**: T' = (T - receptive_field) // stride + 1, and a frame
depends on its receptive field alone. The export checks this, and refuses a trunk that breaks it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Trunk(NamedTuple):
    """What a student streams.

    Attributes:
        module: (B, 1, M, T) to (B, C, T').
        receptive_field: Mel frames that one frame feature sees.
        stride: Mel frames between frame features.
    """

    module: nn.Module
    receptive_field: int
    stride: int
