"""The real clips of one fold, and what its teacher says to them: for scores alone."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from frami_edge.checkpoint import Teacher
from frami_edge.data.sets import SoundSet
from frami_edge.data.store import Features, FeatureStore
from frami_edge.evaluation import predict, score


class Clips:
    """Log-mels by the teacher's front end, and the teacher's answers, each computed once.

    Args:
        data: The set.
        fold: The test fold.
        teacher: Teacher and on its device.
        known: Answers of teachers that were asked before, by their hash; new ones are added. They
            are small, log-mels are not.
    """

    def __init__(
        self, data: SoundSet, fold: str, teacher: Teacher, known: dict[str, Tensor]
    ) -> None:
        self._data, self._fold, self._teacher, self._known = data, fold, teacher, known
        self._store = FeatureStore(teacher.spec)

    @cached_property
    def train(self) -> Features:
        """What the teacher was trained on: for the control rows on real audio."""
        return self._store.load(self._data.split(self._fold)[0])

    @cached_property
    def test(self) -> Features:
        """The held-out fold."""
        return self._store.load(self._data.split(self._fold)[1])

    @cached_property
    def every(self) -> Features:
        """All clips of the set; a data-free student has heard none of them."""
        return self._store.load(list(self._data.clips))

    @property
    def teacher_test(self) -> Tensor:
        """(N, K) logits of the teacher on `test`."""
        return self._answers("test", self.test)

    @property
    def teacher_every(self) -> Tensor:
        """(N, K) logits of the teacher on `every`."""
        return self._answers("every", self.every)

    def _answers(self, part: str, features: Features) -> Tensor:
        key = f"{self._teacher.sha256}/{part}"
        if key not in self._known:
            self._known[key] = predict(self._teacher.model, features.mels)
        return self._known[key]

    @cached_property
    def teacher_accuracy(self) -> float:
        """Of the teacher on `test`."""
        return score(self.teacher_test, self.test.labels).accuracy
