"""What an export needs of the trainer: facts, calibration mels, accuracy on real clips, a card.

Shape legend: N clips, M mel bands, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.data import Features
from frami_edge.errors import BankError
from frami_edge.inversion.bank import Bank, check_bank
from frami_edge.inversion.procedural import procedural_mels
from frami_edge.models.checkpoint import Loaded
from frami_edge_export import ExportReport, StudentFacts, classify_mels, markdown_card


@dataclass
class CalibrationMels:
    """What sets the int8 ranges, and judges them.

    Attributes:
        mels: (N, 1, M, T) normalised log-mels, none of them from a recording.
        source: ``bank`` or ``procedural``.
        clips: How many of each source of the bank.
        reason: Where they come from, for the user.
    """

    mels: npt.NDArray[np.float32]
    source: str
    clips: dict[str, int]
    reason: str


def facts_of(student: Loaded) -> StudentFacts:
    """What the model file must say, out of the checkpoint's card."""
    card = student.card
    return StudentFacts(
        student.spec, card.labels, card.teacher_sha256, student.sha256, card.licence
    )


def bank_mels(folder: Path, student: Loaded, count: int) -> CalibrationMels:
    """Clips of a bank, as many of each of its sources.

    Raises:
        BankError: No whole bank, an empty one, or one of another teacher, front end or classes.
    """
    bank = Bank.open(folder)
    teacher = student.card.teacher_sha256 or bank.index.teacher_sha256
    check_bank(bank, student.spec, student.card.labels, teacher)
    sources = bank.sources
    if not sources:
        raise BankError(f"The bank in {folder} is empty.", fix="Make it again.")
    each = -(-count // len(sources))
    parts = [bank.read(name, each).mels_N1MT for name in sources]
    clips = {name: len(part) for name, part in zip(sources, parts, strict=True)}
    listed = ", ".join(f"{n} {name}" for name, n in clips.items())
    reason = f"{sum(clips.values())} clips of the bank {folder} ({listed}), no recording among them"
    return CalibrationMels(torch.cat(parts).numpy(), "bank", clips, reason)


def made_mels(student: Loaded, count: int, seed: int) -> CalibrationMels:
    """Procedural clips: shaped noise, tones and impacts through the student's front end."""
    bank = student.card.recipe.get("bank")
    frames = bank.get("frames") if isinstance(bank, Mapping) else None
    if not isinstance(frames, int) or frames < 1:
        frames = max(1, student.spec.frames(student.spec.sample_rate))
    mels = procedural_mels(student.spec, count, frames, seed).numpy()
    reason = f"{count} procedural clips of {frames} mel frames, made for this: no bank was given"
    return CalibrationMels(mels, "procedural", {"procedural": count}, reason)


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
