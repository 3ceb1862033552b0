"""What a network shows of itself: the hidden states before and after the statistics pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass
class Hidden:
    """One forward pass, opened up.

    Attributes:
        frames_BCT: Frame features, before the pooling.
        pooled_BD: [mean; std] of them, after the pooling (D = 2C).
        logits_BK: Class scores.
    """

    frames_BCT: Tensor
    pooled_BD: Tensor
    logits_BK: Tensor


class TeacherLike(Protocol):
    """What inversion and distillation ask of a teacher; foreign ones come wrapped to meet it."""

    channels: int
    """C of the frame features."""
    frame_stride: int
    """Mel frames from one frame feature to the next."""
    frame_offset: float
    """Mel frame at which frame feature 0 is centred."""

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features, pooled statistics and logits of normalised log-mels."""
        ...

    @property
    def head(self) -> nn.Linear:
        """The affine map from pooled statistics to logits."""
        ...
