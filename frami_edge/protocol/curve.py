"""Accuracy over time, for the picture; it selects nothing."""

from __future__ import annotations

import time
from typing import Any

from frami_edge.evaluation import predict, score
from frami_edge.models import StudentNet
from frami_edge.protocol.clips import Clips
from frami_edge.runs import RunFolder


class Curve:
    """Scores a student in training on the test fold now and then.

    Kept in the manifest, so that a resumed run has the whole of it.

    Args:
        run: Of the student.
        every: Steps between two scores; 0 for none.
        clips: To score on.

    Attributes:
        points: ``step``, ``s`` (seconds of training until then, scoring left out), ``accuracy``.
        scoring_s: Wall seconds that scoring took, since construction.
        scoring_cpu_s: CPU seconds that scoring took.
    """

    def __init__(self, run: RunFolder, every: int, clips: Clips) -> None:
        self._run, self._every, self._clips = run, every, clips
        self.points: list[dict[str, Any]] = list(run.manifest.get("curve", []))
        self._begun = time.monotonic() - (self.points[-1]["s"] if self.points else 0.0)
        self.scoring_s = self.scoring_cpu_s = 0.0

    def watch(self, done: int, student: StudentNet) -> None:
        """After a step; the student goes on training as it was."""
        if not self._every or done % self._every:
            return
        now, cpu = time.monotonic(), time.process_time()
        elapsed = round(now - self._begun - self.scoring_s, 2)
        found = score(predict(student, self._clips.test.mels), self._clips.test.labels)
        student.train()
        kept = [point for point in self.points if point["step"] < done]
        self.points = [*kept, {"step": done, "s": elapsed, "accuracy": found.accuracy}]
        self._run.record(curve=self.points)
        self.scoring_s += time.monotonic() - now
        self.scoring_cpu_s += time.process_time() - cpu
