"""Statistics pooling outside the graph: float64 sums over a clip, a window or an endless stream.

All three give [mean; std] of the trunk frames h_t (C,), with std = sqrt(max(var, 0) + eps) and the
population variance; they differ in the weight of a frame. Sums of x and x^2 in float64 lose nothing
that float32 could show, even over a day of frames, and cost less than Welford's update.

Source: Snyder et al., *X-vectors* (2018), statistics pooling.
Shape legend: C channels, D = 2 C, n trunk frames of one push.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.state import check_alike, require

Frames = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]


def mean_std(frames: npt.NDArray[np.floating], eps: float) -> npt.NDArray[np.float64]:
    """Statistics of whole clips (..., C, T') at once, in two passes: (..., D) float64 [mean; std].

    `WholeClip` gives the same frame by frame.
    """
    h = frames.astype(np.float64)
    return np.concatenate([h.mean(axis=-1), np.sqrt(h.var(axis=-1) + eps)], axis=-1)


class StreamPool(ABC):
    """Accumulates frames and gives their statistics at any time.

    Args:
        channels: C.
        eps: Added to the variance, under the root.
        arrays: All that the subclass accumulates, by name; it keeps references to them.
    """

    def __init__(self, channels: int, eps: float, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.channels = channels
        self.eps = eps
        self.count = 0
        """Frames since the last reset."""
        self.slots = 0
        """Frame periods since the last reset: frames, and the periods that `skip` passed over."""
        self._arrays = arrays

    def push(self, frames_Cn: Frames, at: float = 0.0) -> None:
        """Take (C, n) float32 frames; ``at`` is when they begin, for `SlidingWindow.begins`."""
        self._add(frames_Cn, at)
        self.count += frames_Cn.shape[1]
        self.slots += frames_Cn.shape[1]

    def skip(self, slots: int) -> None:
        """Let time pass without frames, in frame periods."""
        self.slots += slots

    def reset(self) -> None:
        """Forget all frames and periods."""
        self.count = self.slots = 0
        for array in self._arrays.values():
            array[...] = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to pool: no frame yet, or all are forgotten."""
        return self._weight_and_sums()[0] == 0

    def pooled(self) -> npt.NDArray[np.float32]:
        """(D,) float32 [mean; std], rounded once.

        Raises:
            StreamError: No frame has been pushed.
        """
        weight, sums = self._weight_and_sums()
        if weight == 0:
            raise StreamError("There are no frames to pool.", fix="Push at least one frame.")
        mean, square = sums / weight
        std = np.sqrt(np.maximum(square - mean * mean, 0.0) + self.eps)
        return np.concatenate([mean, std]).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """All that future statistics depend on, as plain integers and arrays."""
        arrays = {name: array.copy() for name, array in self._arrays.items()}
        return {"count": self.count, "slots": self.slots, **arrays}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of a pool with the same options.

        Raises:
            StreamError: The state does not fit; the pool is unchanged then.
        """
        check_alike(state, self.state(), "the pool")
        for name, array in self._arrays.items():
            require(state[name].shape == array.shape, name)
        self.count, self.slots = state["count"], state["slots"]
        for name, array in self._arrays.items():
            array[...] = state[name]

    @abstractmethod
    def _add(self, frames_Cn: Frames, at: float) -> None:
        """Accumulate frames; ``count`` and ``slots`` are still those before them."""

    @abstractmethod
    def _weight_and_sums(self) -> tuple[float, Sums]:
        """Total weight, and weighted sums (2, C) of x and x^2."""


class WholeClip(StreamPool):
    """Every frame since the start, with equal weight.

    Offline definition over frames h_0 .. h_{n-1}: mean = sum_t h_t / n, var = sum_t h_t^2 / n -
    mean^2. The sums are taken frame by frame in order, so the grouping of pushes cannot change a
    bit.
    """

    def __init__(self, channels: int, eps: float) -> None:
        self._sums = np.zeros((2, channels))
        super().__init__(channels, eps, {"sums": self._sums})

    def _add(self, frames_Cn: Frames, at: float) -> None:
        _add_in_order(self._sums, frames_Cn)

    def _weight_and_sums(self) -> tuple[float, Sums]:
        return float(self.count), self._sums


class SlidingWindow(StreamPool):
    """The latest ``blocks`` blocks of ``block`` frame periods each, frames with equal weight.

    Offline definition after n periods, with b = ``block`` and W = ``blocks`` b: the plain
    statistics of the frames in periods max(0, b ceil(n / b) - W) .. n - 1. At whole blocks, where a
    stream gives its results, these are exactly the last W periods (all, while there are fewer).
    Without gaps every period has its frame; those that `skip` passed over have none. Nothing is
    ever subtracted, so nothing drifts: a ring holds the sums of each block.

    Args:
        channels: C.
        eps: Added to the variance, under the root.
        block: Frame periods per block.
        blocks: Blocks in the window.
    """

    def __init__(self, channels: int, eps: float, *, block: int, blocks: int) -> None:
        self.block = block
        self.blocks = blocks
        self._ring = np.zeros((blocks, 2, channels))
        self._filled = np.zeros(blocks, np.int64)  # frames in each block
        self._begins = np.zeros(blocks)  # when the first of them begins
        arrays = {"ring": self._ring, "filled": self._filled, "begins": self._begins}
        super().__init__(channels, eps, arrays)

    @property
    def begins(self) -> float:
        """``at`` of the oldest block that has frames; there must be one."""
        end = -(-self.slots // self.block)
        for block in range(max(0, end - self.blocks), end):
            if self._filled.item(block % self.blocks):
                return self._begins.item(block % self.blocks)
        raise StreamError("There are no frames to pool.", fix="Push at least one frame.")

    def skip(self, slots: int) -> None:
        """Let time pass: blocks that it enters start empty, old ones leave the window."""
        first = -(-self.slots // self.block)
        end = -(-(self.slots + slots) // self.block)
        for block in range(max(first, end - self.blocks), end):
            index = block % self.blocks
            self._ring[index] = self._filled[index] = 0
        self.slots += slots

    def hold(self, at: float) -> None:
        """Let one block pass whose frames are not known, from a whole block on.

        Statistics mean nothing until ``blocks`` others were pushed; `begins` stays right.
        """
        index = self.slots // self.block % self.blocks
        self._filled[index], self._begins[index] = self.block, at
        self.count += self.block
        self.slots += self.block

    def _add(self, frames_Cn: Frames, at: float) -> None:
        done, n = 0, frames_Cn.shape[1]
        while done < n:
            index, used = divmod(self.slots + done, self.block)
            index %= self.blocks
            if used == 0:
                self._ring[index] = self._filled[index] = 0
            if self._filled[index] == 0:
                self._begins[index] = at
            step = min(n - done, self.block - used)
            _add_in_order(self._ring[index], frames_Cn[:, done : done + step])
            self._filled[index] += step
            done += step

    def _weight_and_sums(self) -> tuple[float, Sums]:
        return float(self._filled.sum()), np.add.reduce(self._ring, axis=0)


class Forgetting(StreamPool):
    """Every frame since the start, with a weight that halves every ``half_life`` frames.

    Offline definition after n frame periods, the sums over those t that have a frame: w_t =
    2^(-(n - 1 - t) / half_life), mean = sum_t w_t h_t / sum_t w_t, var = sum_t w_t h_t^2 /
    sum_t w_t - mean^2. Memory does not grow: right for streams without an end.

    Args:
        channels: C.
        eps: Added to the variance, under the root.
        half_life: Half-life in frames, positive.
    """

    def __init__(self, channels: int, eps: float, *, half_life: float) -> None:
        self.half_life = half_life
        self._weight = np.zeros(1)
        self._sums = np.zeros((2, channels))
        super().__init__(channels, eps, {"weight": self._weight, "sums": self._sums})

    def skip(self, slots: int) -> None:
        """Let time pass: earlier frames weigh less against those that follow."""
        kept = 2.0 ** (-slots / self.half_life)
        self._sums *= kept
        self._weight[0] *= kept
        self.slots += slots

    def _add(self, frames_Cn: Frames, at: float) -> None:
        n = frames_Cn.shape[1]
        weights = np.exp2(-np.arange(n - 1, -1, -1) / self.half_life)
        kept = 2.0 ** (-n / self.half_life)
        x = frames_Cn.astype(np.float64)
        self._sums *= kept
        self._sums[0] += np.add.reduce(x * weights, axis=1)
        self._sums[1] += np.add.reduce(x * x * weights, axis=1)
        self._weight[0] = self._weight[0] * kept + weights.sum()

    def _weight_and_sums(self) -> tuple[float, Sums]:
        return float(self._weight[0]), self._sums


def _add_in_order(sums_2C: Sums, frames_Cn: Frames) -> None:
    channels, n = frames_Cn.shape
    terms = np.empty((2, channels, n + 1))
    terms[:, :, 0] = sums_2C
    terms[0, :, 1:] = frames_Cn
    np.multiply(terms[0, :, 1:], terms[0, :, 1:], out=terms[1, :, 1:])
    # accumulate adds strictly from left to right; reduce would add in pairs, by length.
    np.add.accumulate(terms, axis=2, out=terms)
    sums_2C[:] = terms[:, :, -1]
