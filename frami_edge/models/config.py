"""Shapes of the built-in networks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from frami_edge.config import Strict

Width = Annotated[int, Field(ge=4, le=1024)]


class TeacherArch(Strict):
    """A ResNet with statistics pooling."""

    channels: tuple[Width, ...] = Field((16, 32, 64), min_length=1, max_length=16)
    """Channels of each stage; the last is C of the frame features."""
    blocks: int = Field(2, ge=1, le=8)
    """Residual blocks a stage."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Before the head, in training."""


class StudentArch(Strict):
    """A depthwise-separable CNN without padding along time."""

    channels: tuple[Width, ...] = Field((24, 48, 64, 96, 96), max_length=32)
    """Channels of the stem and of each depthwise-separable block."""
    time_kernels: tuple[int, ...] = (3, 3, 3, 3, 3)
    """Kernel sizes along time, one a layer: 1 or 3, the first two 3. They decide the receptive
    field: 31 mel frames
    for all threes; (3, 3, 3, 1, 1) gives 15, for sounds as short as spoken digits."""
    out_channels: Width = 64
    """C of the frame features, after a last 1x1 convolution: the teacher's own C where its head is
    reused, so that frame features match without a further projector."""

    @model_validator(mode="after")
    def _layers_match(self) -> StudentArch:
        if len(self.channels) != len(self.time_kernels):
            raise ValueError("channels and time_kernels need the same length")
        if len(self.channels) < 2:
            raise ValueError("channels needs at least two layers: the stem and one block")
        if set(self.time_kernels) - {1, 3}:
            raise ValueError("time_kernels may hold 1 and 3 only")
        if self.time_kernels[:2] != (3, 3):
            # These two stride by 2: a kernel of 1 would leave every other frame unheard.
            raise ValueError("time_kernels must start with 3, 3")
        return self


STUDENT_PRESETS: dict[str, StudentArch] = {
    "tiny": StudentArch(channels=(16, 24, 32, 48, 48)),
    "small": StudentArch(),
    "base": StudentArch(channels=(32, 64, 128, 192, 256), out_channels=128),
    "large": StudentArch(channels=(48, 96, 192, 320, 448), out_channels=192),
}
"""Students by size, from about 12 k to 350 k parameters (10 classes)."""
