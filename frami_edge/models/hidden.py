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
        pooled_BD: After the pooling; [mean; std] of them in our own networks (D = 2C).
        logits_BK: Class scores.
    """

    frames_BCT: Tensor
    pooled_BD: Tensor
    logits_BK: Tensor


class TeacherLike(Protocol):
    """What inversion and distillation ask of a teacher; foreign ones come wrapped to meet it."""

    channels: int
    """C of the frame features."""
    pooled_size: int
    """D of the pooled state: 2C after statistics pooling, C after a mean."""
    frame_stride: int
    """Mel frames from one frame feature to the next."""
    frame_offset: float
    """Mel frame at which frame feature 0 is centred."""

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features, pooled statistics and logits of normalised log-mels."""
        ...

    @property
    def head(self) -> nn.Linear | None:
        """The affine map from pooled state to logits; None where that way is not affine."""
        ...
