"""What an export needs of the trainer: facts, and accuracy on real clips."""

from __future__ import annotations

import math
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
from frami_edge.device import Compute
from frami_edge.errors import BankError, TeacherError
from frami_edge.inversion import OnStep, context_of, make_bank, ready
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export.calibration import classify_mels
from frami_edge_export.graph import StudentFacts

# --- Mels that set int8 ranges and judge them: from a bank, from the teacher, or procedural
# None of them ever comes from a recording.
#
# Shape legend: N clips, M mel bands, T frames.

CONTROLS: Final = frozenset({"smooth_noise", "white_noise"})
SMALL_BURN_IN: Final = 20
"""Steps thrown away where a bank only calibrates: ranges ask less of a clip than a student does."""


@dataclass
class CalibrationMels:
    """What sets the int8 ranges, and judges them.

    Attributes:
        mels: (N, 1, M, T) normalised log-mels, none of them from a recording.
        source: ``bank``, ``teacher`` or ``procedural``.
        clips: How many of each source of the bank.
        reason: Where they come from, for the user.
    """

    mels: npt.NDArray[np.float32]
    source: str
    clips: dict[str, int]
    reason: str


def bank_mels(folder: Path, student: Student, count: int) -> CalibrationMels:
    """Clips of a bank, mixed as the student learned from it.

    A bank may hold control sources (noise); they count only for a student that was taught on them.

    Raises:
        BankError: No whole bank, an empty one, or one of another teacher, front end or classes.
    """
    bank = Bank.open(folder)
    teacher = student.card.teacher_sha256 or bank.index.teacher_sha256
    check_bank(bank, student.spec, student.card.labels, teacher)
    mels, clips = _mixed(bank, _shares(student), count)
    reason = f"{len(mels)} clips of the bank {folder} ({_listed(clips)}), no recording among them"
    return CalibrationMels(mels, "bank", clips, reason)


def teacher_mels(
    student: Student,
    teacher: Teacher,
    count: int,
    seed: int,
    compute: Compute,
    on_step: OnStep = lambda *_: None,
) -> CalibrationMels:
    """A small bank made for this from the teacher, with the student's own recipe but fewer steps.

    Raises:
        TeacherError: The student was taught by another teacher, or the teacher cannot be inverted.
    """
    known = student.card.teacher_sha256
    if known is not None and known != teacher.sha256:
        raise TeacherError(
            f"The student was taught by {known[:12]}, and this teacher is {teacher.sha256[:12]}.",
            fix="Give --teacher the checkpoint that the student was distilled from.",
        )
    config = small_bank(_recipe(student), count)
    context = context_of(ready(teacher, compute), config, compute, seed)
    with tempfile.TemporaryDirectory(prefix="frami-calibration-bank-") as folder:
        bank = make_bank(Path(folder), context, student.card.labels, teacher.sha256, on_step)
        check_bank(bank, student.spec, student.card.labels, teacher.sha256)
        mels, clips = _mixed(bank, config.shares, count)
    reason = f"{len(mels)} clips made for this from the teacher ({_listed(clips)}), seed {seed}"
    return CalibrationMels(mels, "teacher", clips, reason)


def made_mels(student: Student, count: int, seed: int) -> CalibrationMels:
    """Procedural clips: shaped noise, tones and impacts through the student's front end."""
    frames = _recipe(student).get("frames")
    if not isinstance(frames, int) or frames < 1:
        frames = max(1, student.spec.frames(student.spec.sample_rate))
    mels = procedural_mels(student.spec, count, frames, seed).numpy()
    reason = f"{count} procedural clips of {frames} mel frames, made for this: no bank was given"
    return CalibrationMels(mels, "procedural", {"procedural": count}, reason)


def small_bank(recipe: Mapping[str, Any], count: int) -> BankConfig:
    """The recipe's bank, with as many clips of each source as ``count`` asks for."""
    full = BankConfig.model_validate(recipe)
    learned = {}
    for name in ("inversion", "translator"):
        source = getattr(full, name)
        if name == "inversion" and set(BASELINES) & set(full.shares):
            # Their budget, of which a batch-wise method cannot do with less.
            continue
        wanted = math.ceil(count * full.shares.get(name, 0) / source.batch_size)
        burn_in = min(source.burn_in, SMALL_BURN_IN)
        steps = min(source.steps, burn_in + max(wanted, 1))
        learned[name] = source.model_copy(update={"steps": steps, "burn_in": burn_in})
    made = {"procedural_clips": count, "control_clips": count, "shard_clips": max(count, 1)}
    return full.model_copy(update=learned | made)


def _recipe(student: Student) -> Mapping[str, Any]:
    bank = student.card.recipe.get("bank")
    return bank if isinstance(bank, Mapping) else {}


def _shares(student: Student) -> dict[str, float]:
    sources = _recipe(student).get("sources")
    return dict(sources) if isinstance(sources, Mapping) else {}


def _mixed(
    bank: Bank, shares: Mapping[str, float], count: int
) -> tuple[npt.NDArray[np.float32], dict[str, int]]:
    weights = {name: float(shares[name]) for name in bank.sources if shares.get(name)}
    if not weights:  # a bank of other sources than the recipe's, or a card without one
        weights = dict.fromkeys([n for n in bank.sources if n not in CONTROLS] or bank.sources, 1.0)
    if not weights:
        raise BankError(f"The bank in {bank.folder} is empty.", fix="Make it again.")
    total = sum(weights.values())
    parts = {n: bank.read(n, math.ceil(count * w / total)).mels_N1MT for n, w in weights.items()}
    return torch.cat(list(parts.values())).numpy(), {n: len(part) for n, part in parts.items()}


def _listed(clips: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in clips.items())


# --- What an export needs of the trainer: facts, and accuracy on real clips


def facts_of(student: Student) -> StudentFacts:
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
