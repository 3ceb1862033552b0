"""The model over the lanes: runs of equal length that are due in several lanes go in one call.

Shape legend: B lanes in a call, M mel bands, T mel frames, C channels, n trunk frames, D = 2 C,
K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from frami_edge_runtime._lane import Lane
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.result import Result

MOST_LANES: Final = 64
"""Lanes in one call; more gain nothing on a CPU and only take memory."""


class Driver:
    """Runs one model for any number of lanes.

    Args:
        model: What runs trunk and head.
    """

    def __init__(self, model: Backend) -> None:
        """Keep the model."""
        self._model = model
        self._most = max(1, min(MOST_LANES, model.max_batch))

    def advance(
        self, lanes: Sequence[Lane], results: Sequence[list[Result]], *, wanted: bool = True
    ) -> None:
        """Make all runs that are due.

        Args:
            lanes: Those that were given audio, or ended.
            results: For each lane the list that its results go to.
            wanted: Whether results that fall due are wanted.

        Raises:
            ModelFileError: The model failed; the lanes are useless until they are reset.
        """
        active = list(range(len(lanes)))
        while active:
            by_run: dict[int, list[int]] = {}
            for i in active:
                if run := lanes[i].trunk.due():
                    by_run.setdefault(run, []).append(i)
            active, due = [], []
            for run, members in by_run.items():
                active += members
                for part in _parts(members, self._most):
                    inputs = [lanes[i].trunk.input(run) for i in part]
                    # A copy in any case: the backend needs it contiguous.
                    frames_BCn = self._model.frames(np.concatenate(inputs))
                    for i, frames_Cn in zip(part, frames_BCn, strict=True):
                        if lanes[i].take(frames_Cn) and wanted:
                            due.append(i)
            if due:
                found = self.results([lanes[i] for i in due], last=False)
                for i, result in zip(due, found, strict=True):
                    results[i].append(result)

    def results(self, lanes: Sequence[Lane], *, last: bool) -> list[Result]:
        """The result of each lane from what it has pooled; ``last`` if its clip has ended.

        Raises:
            ModelFileError: The model failed, or gave NaN; the lanes are useless until reset.
        """
        found = []
        for part in _parts(list(range(len(lanes))), self._most):
            pooled_BD = np.stack([lanes[i].pool.pooled() for i in part])
            logits_BK = self._model.logits(pooled_BD)
            if not np.isfinite(logits_BK).all():
                raise ModelFileError(
                    f"{self._model.name} gave logits that are not finite.",
                    fix="The model is damaged: export it again with frami-edge export.",
                )
            found += [
                lanes[i].result(logits_K, last=last)
                for i, logits_K in zip(part, logits_BK, strict=True)
            ]
        return found


def _parts(members: list[int], most: int) -> Iterator[list[int]]:
    for start in range(0, len(members), most):
        yield members[start : start + most]
