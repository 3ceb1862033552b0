"""What an export needs of the trainer: facts, accuracy on real clips, a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from frami_edge.data import Features
from frami_edge.models.checkpoint import Loaded
from frami_edge_export import ExportReport, StudentFacts, classify_mels, markdown_card


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


def model_card(report: ExportReport, student: Loaded, data: Mapping[str, Any] | None) -> str:
    """``MODEL.md``: what the files are, how they were proven, and how to run them.

    Args:
        report: Of the export.
        student: The checkpoint that was exported.
        data: Set, fold and clips that the accuracy was measured on; None where it was not.
    """
    card, spec, info = student.card, student.spec, report.calibration
    heard = card.heard
    rows = [
        ("classes", f"{len(card.labels)}: {', '.join(card.labels[:20])}"),
        ("input", f"mono at {spec.sample_rate} Hz, any length; other rates are resampled"),
        ("front end", f"{spec.n_mels} mel bands, {1000 * spec.hop_s:g} ms hop"),
        ("student", f"`{student.sha256}`"),
        ("teacher", f"`{card.teacher_sha256}`" if card.teacher_sha256 else "not named"),
        ("the teacher heard", _heard(heard.data, heard.test_fold) if heard else "not said"),
        ("the student heard", "no recording"),
        ("calibration", f"{info.samples} synthetic clips ({info.source})" if info else "none"),
        ("accuracy measured on", _measured(data) if data else "nothing: no --data was given"),
        ("licence", card.licence or "not said"),
    ]
    lines = ["", "## The model", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows]
    if report.recommended:
        lines += [
            "", "## Run it", "", "```python",
            "from frami_edge_runtime import Classifier", "",
            f'result = Classifier("{report.recommended}").classify(samples, sample_rate)',
            "print(result.label, result.score)", "```",
        ]  # fmt: skip
    return markdown_card(report) + "\n".join(lines) + "\n"


def _heard(data: str, fold: str) -> str:
    return f"{data} without fold {fold}"


def _measured(data: Mapping[str, Any]) -> str:
    return f"fold {data['fold']} of {data['name']}, {data['clips']} clips"
