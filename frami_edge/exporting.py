"""Synthetic clips that calibrate int8, and what an export takes from a student's card.

None of the clips comes from a recording. Shape legend: N clips, M mel bands, T frames.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.bank import Bank, check_bank
from frami_edge.checkpoint import Student, Teacher
from frami_edge.config import BASELINES, BankConfig
from frami_edge.data.store import Features
from frami_edge.device import Compute, choose_compute
from frami_edge.errors import BankError, TeacherError
from frami_edge.inversion import invert
from frami_edge.progress import ProgressCallback
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export.calibration import classify_mels
from frami_edge_export.graph import StudentFacts

log = logging.getLogger("frami_edge")

NOISE: Final = frozenset({"smooth_noise", "white_noise"})
SMALL_BURN_IN: Final = 20
"""Steps whose clips are discarded where a bank only calibrates."""


@dataclass(frozen=True)
class CalibrationMels:
    """Clips that set the int8 ranges and judge the result.

    Attributes:
        mels: (N, 1, M, T) normalised log-mels.
        source: `bank`, `teacher` or `procedural`.
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
    *,
    bank: Bank | str | os.PathLike[str] | None = None,
    teacher: Teacher | None = None,
    count: int = 1024,
    seed: int = 0,
    compute: Compute | None = None,
    progress: ProgressCallback | None = None,
) -> CalibrationMels:
    """Clips for int8: of the student's bank, of a small bank made now, or procedural ones.

    Clips of a bank are mixed by the weights of the student's recipe. Noise in a bank counts only
    for a student that was trained on it.

    Args:
        student: The student that is exported.
        bank: Its bank, or the bank's folder.
        teacher: Its teacher, from which a small bank is made with the student's recipe and few
            steps.
        count: N, about.
        seed: Seeds a small bank and the procedural clips.
        compute: Where a small bank is made; None to choose.
        progress: Called after each step of a small bank.

    Raises:
        BankError: The bank is damaged or empty, or belongs to another teacher, front end or
            classes.
        TeacherError: The student was distilled from another teacher.
    """
    recipe = student.card.recipe.get("bank")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    wanted = recipe.get("sources")
    shares = dict(wanted) if isinstance(wanted, Mapping) else {}
    known = student.card.teacher_sha256
    if bank is not None:
        opened = bank if isinstance(bank, Bank) else Bank.open(Path(bank))
        owner = known or opened.index.teacher_sha256
        check_bank(opened, student.mel, student.labels, owner)
        return CalibrationMels(*_mixed(opened, shares, count, "bank"))
    if teacher is None:
        frames = recipe.get("frames")
        if not isinstance(frames, int) or frames < 1:
            frames = max(1, student.mel.frames(student.mel.sample_rate))
        mels = procedural_mels(student.mel, count, frames, seed).numpy()
        return CalibrationMels(mels, "procedural", {"procedural": count})
    if known not in (None, teacher.sha256):
        raise TeacherError(
            f"The student was distilled from the teacher {known[:12] if known else ''}, and this "
            f"teacher is {teacher.sha256[:12]}.",
            fix="Give the teacher that the student was distilled from.",
        )
    config = small_bank(recipe, count)
    compute = compute or choose_compute()
    with tempfile.TemporaryDirectory(prefix="frami-calibration-bank-") as folder:
        made = invert(teacher, config, Path(folder), compute, seed, progress=progress)
        check_bank(made, student.mel, student.labels, teacher.sha256)
        return CalibrationMels(*_mixed(made, config.shares, count, "teacher"))


def small_bank(recipe: Mapping[str, Any], count: int) -> BankConfig:
    """The recipe's bank, with steps for about `count` clips."""
    full = BankConfig.model_validate(recipe)
    fewer = {}
    for name in ("inversion", "translator"):
        source = getattr(full, name)
        if name == "inversion" and set(BASELINES) & set(full.shares):
            continue  # the baselines' budget, which batch-wise methods need in full
        wanted = math.ceil(count * full.shares.get(name, 0) / source.batch_size)
        burn_in = min(source.burn_in, SMALL_BURN_IN)
        steps = min(source.steps, burn_in + max(wanted, 1))
        fewer[name] = source.model_copy(update={"steps": steps, "burn_in": burn_in})
    clips = {"procedural_clips": count, "control_clips": count, "shard_clips": max(count, 1)}
    return full.model_copy(update=fewer | clips)


def _mixed(
    bank: Bank, shares: Mapping[str, float], count: int, source: str
) -> tuple[npt.NDArray[np.float32], str, dict[str, int]]:
    weights = {name: float(shares[name]) for name in bank.sources if shares.get(name)}
    if not weights:  # a bank of other sources than the recipe's, or a card without a recipe
        weights = dict.fromkeys([n for n in bank.sources if n not in NOISE] or bank.sources, 1.0)
    if not weights:
        raise BankError(f"The bank in {bank.folder} is empty.", fix="Make it again.")
    total = sum(weights.values())
    parts = {n: bank.read(n, math.ceil(count * w / total)).mels_N1MT for n, w in weights.items()}
    mels = torch.cat(list(parts.values())).numpy()
    return mels, source, {n: len(part) for n, part in parts.items()}


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
