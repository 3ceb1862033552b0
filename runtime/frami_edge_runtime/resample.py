"""From the microphone's rate to the model's, by soxr, which is an extra: it is LGPL-2.1."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import INT16_SCALE
from frami_edge_runtime.errors import AudioError


class Resampler:
    """Streaming resampler of soxr's HQ quality; any chunking gives the same samples.

    Args:
        rate_in: Hz.
        rate_out: Hz.

    Raises:
        AudioError: soxr is not installed.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        """Open a soxr stream."""
        # Imported here: most devices record at the model's rate and do not have it.
        try:
            soxr: Any = importlib.import_module("soxr")
        except ImportError:
            raise AudioError(
                f"The samples are at {rate_in} Hz, the model wants {rate_out} Hz, and soxr is not "
                "installed.",
                fix=f"Record at {rate_out} Hz, or: pip install 'frami-edge-runtime[resample]'.",
            ) from None
        self._new_stream: Any = soxr.ResampleStream
        self._rates = rate_in, rate_out
        self.reset()

    def push(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Take (N,) int16 or float32 samples, give (N',) float32 that became ready."""
        scaled = x * INT16_SCALE if x.dtype.kind == "i" else x
        return self._chunk(np.ascontiguousarray(scaled, np.float32), last=False)

    def flush(self) -> npt.NDArray[np.float32]:
        """The samples still owed; then as new."""
        tail = self._chunk(np.empty(0, np.float32), last=True)
        self.reset()
        return tail

    def reset(self) -> None:
        """Forget everything."""
        self._stream: Any = self._new_stream(*self._rates, 1, dtype="float32")

    def _chunk(self, x: npt.NDArray[np.float32], *, last: bool) -> npt.NDArray[np.float32]:
        return np.asarray(self._stream.resample_chunk(x, last=last), np.float32)
