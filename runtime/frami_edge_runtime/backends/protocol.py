"""The one thing that a stream knows about what runs its model.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.modelfile import ModelInfo

UNBOUNDED: Final = 1 << 30
"""A limit that nothing reaches: what a backend without limits states."""


class Backend(Protocol):
    """A loaded model: its trunk, its head and what its file says about them.

    Any thread may call `frames` and `logits` at any time; a backend that owns buffers locks them.
    Results belong to the caller: no later call changes them.
    """

    @property
    def kind(self) -> str:
        """``cpu``, ``cuda``, ``tensorrt-ep`` or ``tensorrt``."""
        ...

    @property
    def name(self) -> str:
        """The model file's name, for messages."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What the model file says about itself."""
        ...

    @property
    def sha256(self) -> str:
        """64 hex digits of the model file: a saved stream state belongs to them."""
        ...

    @property
    def max_batch(self) -> int:
        """Largest B of one call of `frames`: so many streams can be batched, >= 1."""
        ...

    @property
    def max_mel_frames(self) -> int:
        """Largest T of one call of `frames`, at least the receptive field."""
        ...

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32.

        Raises:
            ModelFileError: The model cannot be run on this shape, or failed.
        """
        ...

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head: (B, D) float32 to (B, K) float32; any B >= 1.

        Raises:
            ModelFileError: The head failed.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds outside Python; calling it twice is allowed."""
        ...
