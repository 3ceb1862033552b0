"""A gate that lets the model rest while the input is steady and quiet.

It looks at samples only. Two levels are watched in blocks of a quarter second: of the input, and of
its first difference, in which a soft sound at high frequencies stands out from rumble. Each is
compared with the least that it was lately. Samples are kept as long as the stream may need them: it
goes back to before an onset and computes from there.

Positions are samples from the start of the segment, at the model's rate.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.monitor import INT16_SCALE

Block = npt.NDArray[np.float32]

BLOCK_S: Final = 0.25
RISE_DB: Final = 4.0
"""Above the least recent level, which a block of steady noise stays within."""
PRE_ROLL_S: Final = 0.25
"""Before the first block that is not quiet: answers are exact from there on, at least."""
_RECOVERY_DB_PER_S: Final = 1.0  # how fast a new, louder background is accepted
_QUIETEST: Final = 1e-9  # -90 dB: differences of what is below are none


class Gate:
    """Cuts samples into blocks, judges them, and keeps them.

    Args:
        level_db: A block at or above this level, dB of full scale without DC, is never quiet.
        sample_rate: Hz of the samples.

    Raises:
        StreamError: The level is no number between -200 and 0.
    """

    def __init__(self, level_db: float, sample_rate: int) -> None:
        if not (isinstance(level_db, (int, float)) and -200 <= level_db <= 0):
            raise StreamError(
                f"gate_db must be a level from -200 to 0 dB, not {level_db!r}.",
                fix="Use about 10 dB more than the empty room has.",
            )
        self._block = max(2, round(BLOCK_S * sample_rate))
        self._ones = np.ones(self._block, np.float32)  # a product is faster than a sum
        self._steps = np.empty(self._block - 1, np.float32)
        # As factors of power, since a logarithm is not needed.
        self._level = 10 ** (level_db / 10)
        self._rise = 10 ** (RISE_DB / 10)
        self._recovery = 10 ** (_RECOVERY_DB_PER_S * self._block / sample_rate / 10)
        self.reset()

    def reset(self) -> None:
        """Forget all; the next sample has position 0."""
        self.judged = 0
        """Where the last judged block ends."""
        self.loud_to = 0
        """Where the last block that was not quiet ends."""
        self._blocks: deque[Block] = deque()  # judged ones that are kept
        self._whole: deque[Block] = deque()  # to be judged
        self._last, self._filled = np.empty(self._block, np.float32), 0
        self._floors = math.inf, math.inf

    def push(self, samples: npt.NDArray[Any]) -> None:
        """Append (N,) samples, int16 or float."""
        x = samples * INT16_SCALE if samples.dtype.kind == "i" else samples
        while len(x) >= (room := self._block - self._filled):
            self._last[self._filled :] = x[:room]
            self._whole.append(self._last)
            self._last, self._filled = np.empty(self._block, np.float32), 0
            x = x[room:]
        end = self._filled + len(x)
        self._last[self._filled : end] = x
        self._filled = end

    def next(self) -> Block | None:
        """Judge the next block and return it; None until it is complete."""
        if not self._whole:
            return None
        block = self._whole.popleft()
        self._blocks.append(block)
        self.judged += self._block
        if not self._is_quiet(block):
            self.loud_to = self.judged
        return block

    def since(self, position: int) -> Block:
        """The judged samples from this position on; they must not be forgotten."""
        start = position - self.judged + len(self._blocks) * self._block
        return np.concatenate(self._blocks)[start:]

    def forget(self, position: int) -> None:
        """Samples before this position are not needed any more."""
        whole = (position - self.judged) // self._block + len(self._blocks)
        for _ in range(min(whole, len(self._blocks))):
            self._blocks.popleft()

    @property
    def rest(self) -> Block:
        """Samples behind the last judged block, once `next` gives None."""
        return self._last[: self._filled]

    def _is_quiet(self, block: Block) -> bool:
        np.subtract(block[1:], block[:-1], self._steps)
        dc = float(block.dot(self._ones)) / self._block
        power = float(block.dot(block)) / self._block - dc * dc + _QUIETEST
        of_steps = float(self._steps.dot(self._steps)) / self._block + _QUIETEST
        floor, steps_floor = self._floors
        grown = self._recovery
        self._floors = min(power, floor * grown), min(of_steps, steps_floor * grown)
        loud = power >= self._level or power >= floor * self._rise
        return not loud and of_steps < steps_floor * self._rise
