"""Synthetic clips that calibrate int8, and what an export takes from a student's card.

None of the clips comes from a recording. Shape legend: N clips, M mel bands, T frames.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.bank import Bank, check_bank
from frami_edge.checkpoint import Student
from frami_edge.data.store import Features
from frami_edge.errors import BankError
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export.calibration import classify_mels
from frami_edge_export.graph import StudentFacts

log = logging.getLogger("frami_edge")

NOISE: Final = frozenset({"smooth_noise", "white_noise"})


@dataclass(frozen=True)
class CalibrationMels:
    """Clips that set the int8 ranges and judge the result.

    Attributes:
        mels: (N, 1, M, T) normalised log-mels.
        source: `bank` or `procedural`.
        clips: Number of clips from each source of the bank.
    """

    mels: npt.NDArray[np.float32]
    source: str
    clips: dict[str, int]

    def __str__(self) -> str:
        listed = ", ".join(f"{n} {name}" for name, n in self.clips.items())
        return f"{len(self.mels)} synthetic clips from the {self.source} ({listed})"


def calibration_mels(
    student: Student,
    bank: Bank | str | os.PathLike[str] | None = None,
    *,
    count: int = 1024,
    seed: int = 0,
) -> CalibrationMels:
    """Clips for int8: of the student's bank, or procedural ones.

    Clips of a bank are mixed by the weights of the student's recipe. Noise in a bank counts only
    for a student that was trained on it.

    Args:
        student: The student that is exported.
        bank: Its bank, or the bank's folder.
        count: N, about.
        seed: Seeds the procedural clips.

    Raises:
        BankError: The bank is damaged or empty, or belongs to another teacher, front end or
            classes.
    """
    recipe = student.card.recipe.get("bank")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    if bank is None:
        frames = recipe.get("frames")
        if not isinstance(frames, int) or frames < 1:
            frames = max(1, student.mel.frames(student.mel.sample_rate))
        mels = procedural_mels(student.mel, count, frames, seed).numpy()
        return CalibrationMels(mels, "procedural", {"procedural": count})
    wanted = recipe.get("sources")
    opened = bank if isinstance(bank, Bank) else Bank.open(Path(bank))
    owner = student.card.teacher_sha256 or opened.index.teacher_sha256
    check_bank(opened, student.mel, student.labels, owner)
    shares = dict(wanted) if isinstance(wanted, Mapping) else {}
    return CalibrationMels(*_mixed(opened, shares, count))


def _mixed(
    bank: Bank, shares: Mapping[str, float], count: int
) -> tuple[npt.NDArray[np.float32], str, dict[str, int]]:
    weights = {name: float(shares[name]) for name in bank.sources if shares.get(name)}
    if not weights:  # a bank of other sources than the recipe's, or a card without a recipe
        weights = dict.fromkeys([n for n in bank.sources if n not in NOISE] or bank.sources, 1.0)
    if not weights:
        raise BankError(f"The bank in {bank.folder} is empty.", fix="Make it again.")
    total = sum(weights.values())
    parts = {n: bank.read(n, math.ceil(count * w / total)).mels_N1MT for n, w in weights.items()}
    mels = torch.cat(list(parts.values())).numpy()
    return mels, "bank", {n: len(part) for n, part in parts.items()}


def facts_of(student: Student) -> StudentFacts:
    """What the model file records, from the checkpoint's card."""
    card = student.card
    return StudentFacts(student.mel, card.labels, card.teacher_sha256, student.sha256, card.licence)


def accuracy_on(features: Features) -> Callable[[str | Path], float]:
    """A function that gives the accuracy of a streaming model file on real clips."""
    mels = [mel.numpy() for mel in features.mels]
    labels_N = features.labels.numpy()

    def accuracy(path: str | Path) -> float:
        return float((classify_mels(path, mels).argmax(axis=1) == labels_N).mean())

    return accuracy
