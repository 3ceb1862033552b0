"""What an export needs of the trainer: facts, and accuracy on real clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from frami_edge.data import Features
from frami_edge.models.checkpoint import Loaded
from frami_edge_export import StudentFacts, classify_mels


def facts_of(student: Loaded) -> StudentFacts:
    """What the model file must say, out of the checkpoint's card."""
    card = student.card
    return StudentFacts(
        student.spec, card.labels, card.teacher_sha256, student.sha256, card.licence
    )


def accuracy_on(features: Features) -> Callable[[str | Path], float]:
    """The share of real clips that a streaming model file answers rightly; for the report only."""
    mels = [mel.numpy() for mel in features.mels]
    labels_N = features.labels.numpy()

    def evaluate(path: str | Path) -> float:
        return float((classify_mels(path, mels).argmax(axis=1) == labels_N).mean())

    return evaluate
