"""The model over the lanes: runs of equal length that are due in several lanes go in one call.

Shape legend: B lanes in a call, M mel bands, T mel frames, C channels, n trunk frames, D = 2 C,
K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._lane import Lane
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.errors import ModelFileError, StreamError
from frami_edge_runtime.result import Result

_T = TypeVar("_T")
CPU_LANES: Final = 16
"""Lanes in one call on a CPU; measured: 8 to 16 take least for each, 64 overflow its cache."""
GPU_LANES: Final = 256
"""Elsewhere; bounds the memory."""
MOST_LOST: Final = 1 << 48
"""Samples; over ten years at any rate."""


class Driver:
    """Runs one model for any number of lanes.

    Whatever raises `ModelFileError` resets all lanes that it was given: they would be useless.

    Args:
        model: What runs trunk and head.
    """

    def __init__(self, model: Backend) -> None:
        """Keep the model."""
        self._model = model
        lanes = CPU_LANES if model.kind == "cpu" else GPU_LANES
        self._most = max(1, min(lanes, model.max_batch))

    def push(self, lanes: Sequence[Lane], chunks: Sequence[npt.NDArray[Any]]) -> list[list[Result]]:
        """Take samples that `check_samples` has passed; give the results that became final."""
        for lane, x in zip(lanes, chunks, strict=True):
            lane.hear(x)
        return self._advance(lanes)

    def gap(self, lane: Lane, lost: int, *, keep_pooling: bool) -> list[Result]:
        """See `Stream.gap`; ``lost`` has passed `check_lost`."""
        lane.end()
        results = self._advance([lane], wanted=keep_pooling)[0]
        if not keep_pooling and lane.time.stretch and not lane.pool.empty:
            results = self._results([lane], last=True)
        lane.lose(lost, keep_pooling=keep_pooling)
        return results

    def flush(self, lanes: Sequence[Lane]) -> list[Result | None]:
        """The last result of each lane, None where there is nothing to say; all are reset."""
        try:
            found = [i for i, lane in enumerate(lanes) if lane.time.stretch]
            for i in found:
                lanes[i].end()
            self._advance([lanes[i] for i in found], wanted=False)
            found = [i for i in found if not lanes[i].pool.empty]
            results: list[Result | None] = [None] * len(lanes)
            for i, result in zip(
                found, self._results([lanes[i] for i in found], last=True), strict=True
            ):
                results[i] = result
            return results
        finally:
            for lane in lanes:
                lane.reset()

    def _advance(self, lanes: Sequence[Lane], *, wanted: bool = True) -> list[list[Result]]:
        results: list[list[Result]] = [[] for _ in lanes]
        try:
            active = list(range(len(lanes)))
            while active:
                due, active = self._round(lanes, active)
                if due and wanted:
                    answers = self._results([lanes[i] for i in due], last=False)
                    for i, result in zip(due, answers, strict=True):
                        results[i].append(result)
        except ModelFileError:
            for lane in lanes:
                lane.reset()
            raise
        return results

    def _round(self, lanes: Sequence[Lane], active: list[int]) -> tuple[list[int], list[int]]:
        """Make at most one run of each lane; give where results are due, and where runs were."""
        by_run: dict[int, list[int]] = {}
        for i in active:
            if run := lanes[i].trunk.due():
                by_run.setdefault(run, []).append(i)
        due, ran = [], []
        for run, members in by_run.items():
            ran += members
            for part in _parts(members, self._most):
                # A copy also for one: backends need it contiguous.
                mel_BMT = np.concatenate([lanes[i].trunk.input(run) for i in part])
                for i, frames_Cn in zip(part, self._model.frames(mel_BMT), strict=True):
                    if lanes[i].take(frames_Cn):
                        due.append(i)
        return due, ran

    def _results(self, lanes: Sequence[Lane], *, last: bool) -> list[Result]:
        """The result of each lane from what it has pooled; ``last`` if its clip has ended."""
        found: list[Result] = []
        for part in _parts(lanes, self._most):
            logits_BK = self._model.logits(np.stack([lane.pool.pooled() for lane in part]))
            if not np.isfinite(logits_BK).all():
                for lane in lanes:
                    lane.reset()
                raise ModelFileError(
                    f"{self._model.name} gave logits that are not finite.",
                    fix="The model is damaged: export it again with frami-edge export.",
                )
            found += [
                lane.result(logits_K, last=last)
                for lane, logits_K in zip(part, logits_BK, strict=True)
            ]
        return found


def check_lost(lost_samples: Any) -> int:
    """A number of lost samples as a plain integer.

    Raises:
        StreamError: Not an integer of 0..2^48.
    """
    integer = isinstance(lost_samples, (int, np.integer)) and not isinstance(lost_samples, bool)
    if not integer or not 0 <= lost_samples <= MOST_LOST:
        raise StreamError(
            f"lost_samples must be a whole number in 0..{MOST_LOST}, not "
            f"{str(lost_samples)[:40]!r}.",
            fix="Give how many samples were lost, or 0 if that is not known.",
        )
    return int(lost_samples)


def _parts(members: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(members), most):
        yield members[start : start + most]
