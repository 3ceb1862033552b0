"""A gate that skips the model while the input is steady and quiet.

Two levels are watched in blocks of 0.2 s: of the input, and of its first difference, in which a
soft sound at high frequencies stands out from rumble. Each is compared with the least that it was
lately. A pre-roll of audio is kept, so that what follows a closed gate is answered exactly.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.monitor import INT16_SCALE

BLOCK_S: Final = 0.2
RISE_DB: Final = 4.0
"""Above the least recent level, which a block of steady noise stays within."""
PRE_ROLL_S: Final = 0.25
"""Before the first block that is not quiet: answers are exact from there on."""
OPEN_S: Final = 0.25
"""The gate stays open for a window and this long after the last such block."""
_RECOVERY_DB_PER_S: Final = 1.0  # how fast a new, louder background is accepted
_QUIETEST_DB: Final = -90.0
_QUIETEST: Final = 10 ** (_QUIETEST_DB / 10)


class Gate:
    """Judges blocks, and keeps those that the model has not received.

    Args:
        level_db: A block at or above this level, dB of full scale without DC, is never quiet.
        sample_rate: Hz of the samples.
        kept: Samples of pre-roll.
        step: Samples that are dropped at once.
        open_for: Quiet samples after which the gate closes.

    Raises:
        StreamError: The level is no number between -200 and 0.
    """

    def __init__(
        self, level_db: float, sample_rate: int, *, kept: int, step: int, open_for: int
    ) -> None:
        if not (isinstance(level_db, (int, float)) and -200 <= level_db <= 0):
            raise StreamError(
                f"gate_db must be a level from -200 to 0 dB, not {level_db!r}.",
                fix="Use about 10 dB more than the empty room has.",
            )
        self._level_db = level_db
        self._block = max(2, round(BLOCK_S * sample_rate))
        self._rise_db = _RECOVERY_DB_PER_S * self._block / sample_rate
        self._kept, self.step, self._open_for = kept, step, open_for
        self.reset()

    def reset(self) -> None:
        """Forget all; the gate is open."""
        self.pending = np.zeros(0, np.float32)
        """Samples that the model has not received."""
        self._judged = 0  # of them
        self._waiting: list[npt.NDArray[Any]] = []  # behind them, as they came
        self._fresh = 0  # samples that are not judged
        self._quiet = 0  # samples since the last block that was not
        self._floor_db: tuple[float, float] | None = None

    def push(self, samples: npt.NDArray[Any]) -> None:
        """Append (N,) samples, int16 or float."""
        self._waiting.append(samples)
        self._fresh += len(samples)

    def next(self) -> npt.NDArray[np.float32] | int | None:
        """What to do next: run these samples, drop `step` pending ones (an int), or wait (None)."""
        if self._fresh < self._block:  # nothing can be judged yet
            return None
        self.gather()
        while len(self.pending) - self._judged >= self._block:
            self._judge(self.pending[self._judged : self._judged + self._block])
            self._judged += self._block
            if self._quiet <= self._open_for:
                return self.take(self._judged)
            if self._judged >= self._kept + self.step:
                self.take(self.step)
                return self.step
        self._fresh = len(self.pending) - self._judged
        return None

    def gather(self) -> None:
        """Move all samples to `pending`."""
        parts = [self.pending]
        for samples in self._waiting:
            x = samples.astype(np.float32)
            parts.append(x * INT16_SCALE if samples.dtype.kind == "i" else x)
        if len(parts) > 1:
            self.pending = np.concatenate(parts)
            self._waiting.clear()

    def take(self, samples: int) -> npt.NDArray[np.float32]:
        """Remove the oldest pending samples and return them."""
        taken, self.pending = self.pending[:samples], self.pending[samples:]
        self._judged = max(0, self._judged - samples)
        return taken

    def _judge(self, block: npt.NDArray[np.float32]) -> None:
        steps = block[1:] - block[:-1]
        dc = float(block.sum()) / len(block)
        level_db = _db(float(block @ block) / len(block) - dc * dc)
        steps_db = _db(float(steps @ steps) / len(steps))
        if self._floor_db is None:
            self._floor_db = level_db, steps_db
        floor, steps_floor = self._floor_db
        quiet = level_db < min(self._level_db, floor + RISE_DB) and steps_db < steps_floor + RISE_DB
        self._quiet = self._quiet + self._block if quiet else 0
        rise = self._rise_db
        self._floor_db = min(level_db, floor + rise), min(steps_db, steps_floor + rise)


def _db(power: float) -> float:
    return 10 * math.log10(power) if power > _QUIETEST else _QUIETEST_DB
