"""Scores on real clips: accuracy, agreement with the teacher, recall per class; and fold checks.

Shape legend: N clips, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frami_edge.checkpoint import Student, TrainedOn
from frami_edge.data.decoding import read_audio
from frami_edge.data.sets import Clip, SoundSet, known_sets, load_set, resolve_fold
from frami_edge.data.store import Features
from frami_edge.errors import CheckpointError, DataError
from frami_edge.opening import OpenedModel
from frami_edge.opening import predict as predict
from frami_edge.progress import Progress, ProgressCallback
from frami_edge.tables import Table, percent

log = logging.getLogger("frami_edge")


@dataclass(frozen=True)
class Score:
    """Predictions of one model compared with labels, and with its teacher's predictions.

    Attributes:
        accuracy: Share of clips with the right class.
        agreement: Share of clips on which model and teacher predict the same class; None without a
            teacher.
        kl: Mean KL(teacher ‖ model) in nats; None without a teacher.
        confusion_KK: Clip counts; rows are true classes, columns predicted ones.
        clips: N.
    """

    accuracy: float
    agreement: float | None
    kl: float | None
    confusion_KK: Tensor
    clips: int

    def per_class(self) -> list[float | None]:
        """Recall of each class; None where a class has no clip."""
        counts = self.confusion_KK.sum(dim=1)
        hits = self.confusion_KK.diagonal()
        return [int(h) / int(n) if n else None for h, n in zip(hits, counts, strict=True)]


def score(logits_NK: Tensor, labels_N: Tensor, teacher_NK: Tensor | None = None) -> Score:
    """Compare logits with labels and, where given, with the teacher's logits."""
    k = logits_NK.shape[1]
    predicted_N = logits_NK.argmax(1)
    confusion = torch.bincount(labels_N * k + predicted_N, minlength=k * k).view(k, k)
    agreement = kl = None
    if teacher_NK is not None:
        agreement = float((predicted_N == teacher_NK.argmax(1)).double().mean())
        t, s = teacher_NK.log_softmax(1), logits_NK.log_softmax(1)
        kl = float((t.exp() * (t - s)).sum(1).mean())
    accuracy = float((predicted_N == labels_N).double().mean())
    return Score(accuracy, agreement, kl, confusion, len(labels_N))


@dataclass(frozen=True)
class Control:
    """One control row: the student's network, distilled again on other clips."""

    what: str
    """Description of what it was trained on."""
    score: Score
    facts: Mapping[str, Any]
    """Steps, seed, and the real clips that were used."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `frami_edge.evaluate`; printing it shows tables.

    Attributes:
        model: Path of the model's file, or its kind for a model in memory.
        kind: Kind of the model, such as `student`.
        labels: (K,) class names.
        score: The model's score.
        teacher: The teacher's score; None without a teacher.
        rejected: Clips of the fold that could not be read.
        controls: Control rows by name.
    """

    model: str
    kind: str
    sha256: str
    data: str
    fold: str
    labels: tuple[str, ...]
    score: Score
    teacher: Score | None = None
    rejected: int = 0
    controls: Mapping[str, Control] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of clips with the right class."""
        return self.score.accuracy

    @property
    def agreement(self) -> float | None:
        """Share of clips on which model and teacher predict the same class."""
        return self.score.agreement

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found: dict[str, Any] = {
            "model": self.model,
            "kind": self.kind,
            "sha256": self.sha256,
            "data": self.data,
            "fold": self.fold,
            "clips": self.score.clips,
            "rejected": self.rejected,
            "accuracy": self.score.accuracy,
            "agreement": self.score.agreement,
            "kl_nats": self.score.kl,
            "teacher_accuracy": self.teacher.accuracy if self.teacher else None,
            "recall": dict(zip(self.labels, self.score.per_class(), strict=True)),
            "confusion": self.score.confusion_KK.tolist(),
        }
        if self.controls:
            found["controls"] = {
                name: {
                    "accuracy": row.score.accuracy,
                    "agreement": row.score.agreement,
                    "kl_nats": row.score.kl,
                    **row.facts,
                }
                for name, row in self.controls.items()
            }
        return found

    def tables(self) -> list[Table]:
        """Recall per class, the summary, and the control rows."""
        where = f"Fold {self.fold} of {self.data}"
        shown = 4 if self.teacher else 3
        by_class = Table(
            f"{where} by class",
            ("class", "clips", "recall", "teacher's recall")[:shown],
            [row[:shown] for row in class_rows(self.labels, self.score, self.teacher)],
        )
        columns = ["accuracy", "clips"]
        row: list[object] = [percent(self.accuracy), self.score.clips]
        if self.teacher:
            columns += ["teacher's accuracy", "agreement with it", "mean KL from it in nats"]
            row += [percent(self.teacher.accuracy), percent(self.agreement), self.score.kl]
        tables = [by_class, Table(f"{self.kind}: {self.model}", columns, [row])]
        if self.controls and self.teacher:
            scores = {"teacher": self.teacher, "student": self.score}
            scores |= {c.what: c.score for c in self.controls.values()}
            rows = [
                (what, percent(s.accuracy), percent(s.agreement), s.kl)
                for what, s in scores.items()
            ]
            names = ("", "accuracy", "agreement with the teacher", "KL from it in nats")
            caption = f"Last step, {self.score.clips} clips of fold {self.fold} of {self.data}."
            title = "Controls: same network, recipe, seed and steps, other clips"
            tables.append(Table(title, names, rows, caption))
        return tables

    def accuracies(self) -> dict[str, float]:
        """Accuracy of teacher, student and controls by name."""
        rows = {"teacher": self.teacher, "student": self.score}
        rows |= {name.replace("_", " "): c.score for name, c in self.controls.items()}
        return {name: s.accuracy for name, s in rows.items() if s}

    def __str__(self) -> str:
        return "\n".join(str(table) for table in self.tables())


def class_rows(
    labels: Sequence[str], student: Score, teacher: Score | None
) -> list[tuple[str, str, str, str]]:
    """(class, clips, recall, teacher's recall), for a table."""
    counts = student.confusion_KK.sum(dim=1).tolist()
    theirs = teacher.per_class() if teacher else [None] * len(labels)
    return [
        (label, str(int(n)), percent(mine, 1) or "-", percent(other, 1) or "-")
        for label, n, mine, other in zip(labels, counts, student.per_class(), theirs, strict=True)
    ]


def logits_of(
    model: OpenedModel, features: Features, progress: ProgressCallback | None = None
) -> Tensor:
    """Logits (N, K) float32 of clips, in their order.

    A checkpoint receives the log-mels, which are of its front end. An exported file receives the
    audio itself, through the device's own front end, so that the whole path is scored.
    """
    if model.network is not None:
        return model.logits(features.mels)

    def clips() -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        for i, clip in enumerate(features.clips):
            yield read_audio(clip.path)
            if progress:
                progress(Progress("score", i + 1, len(features)))

    return model.logits_of_audio(clips())


def open_fold(
    model: OpenedModel | Student,
    known: TrainedOn | None,
    data: str,
    fold: str | int | None,
    root: Path | None,
    *,
    who: str,
) -> tuple[SoundSet, str, list[Clip]]:
    """The data set, the fold to score on and its clips, after every check.

    Args:
        model: The model to score.
        known: What its teacher was trained on, where known.
        data: Name of the data set, or `folder:PATH`.
        fold: Fold that the user named; None for the one that the teacher held out.
        root: Data root.
        who: The model, for errors.

    Raises:
        DataError: The set is missing or has other classes, the fold is unknown, or the teacher was
            trained on it.
    """
    sounds = load_set(data, root)
    check_labels(model.labels, sounds)
    if fold is None and known is not None and known.data == sounds.name:
        fold = known.test_fold
    if fold is None and len(sounds.folds) > 1:
        raise DataError(
            f"{who} does not record which fold of {sounds.name} its teacher held out.",
            fix=f"Give --teacher FILE, or --fold; the folds are {', '.join(sounds.folds)}.",
        )
    key = resolve_fold(sounds, None if fold is None else str(fold))
    check_held_out(known, sounds, key)
    if known is None:
        log.warning(
            "It is not known whether the teacher was trained on fold %s: give the teacher's "
            "checkpoint, or trained_on in its description.",
            key,
        )
    return sounds, key, [clip for clip in sounds.clips if clip.fold == key]


def check_labels(labels: Sequence[str], data: SoundSet) -> None:
    """Model and data must name the same classes in the same order.

    Raises:
        DataError: They do not.
    """
    if tuple(labels) == tuple(data.labels):
        return
    missing = sorted(set(data.labels) - set(labels))
    extra = sorted(set(labels) - set(data.labels))
    what = f"the data has {len(data.labels)} classes, the model {len(labels)}"
    if missing:
        what += f"; unknown to the model: {', '.join(missing[:5])}"
    if extra:
        what += f"; not in the data: {', '.join(extra[:5])}"
    if not missing and not extra:
        what = "they name the same classes in another order"
    raise DataError(
        f"The labels of {data.name} and of the model do not match: {what}.",
        fix="Score the model on the data set that its teacher was trained for.",
    )


def check_held_out(known: TrainedOn | None, data: SoundSet, fold: str) -> None:
    """The teacher must not have been trained on the clips that a model is scored on.

    Raises:
        DataError: The teacher held out another fold of this set, or was trained on a set that
            shares its recordings.
    """
    if known is None or (known.data, known.test_fold) == (data.name, fold):
        return
    if known.data != data.name:
        if _recordings(known.data) != _recordings(data.name):
            return
        raise DataError(
            f"The teacher was trained on {known.data}, which has the clips of {data.name} in other "
            "folds. A score on its training clips would mean nothing.",
            fix=f"Use --data {known.data}, or train a teacher on {data.name}.",
        )
    raise DataError(
        f"The teacher was trained on fold {fold} of {data.name}: it held out fold "
        f"{known.test_fold}. A score on its training clips would mean nothing.",
        fix=f"Use --fold {known.test_fold}, or train a teacher that holds out fold {fold}.",
    )


def _recordings(name: str) -> str:
    """The download that a set is cut from: several sets share their clips."""
    return next((info.part_of or info.name for info in known_sets() if info.name == name), name)


def check_teacher(model: OpenedModel, teacher: OpenedModel) -> None:
    """`teacher` must be the teacher that the model was distilled from, where the model names it.

    Raises:
        CheckpointError: It is another teacher, no teacher, or has other classes.
    """
    if teacher.kind != "teacher":
        problem = f"{teacher.path} is not a teacher but a model of the kind {teacher.kind}"
    elif model.teacher_sha256 not in (None, teacher.sha256):
        problem = f"{model.path} was distilled from another teacher than {teacher.path}"
    elif model.labels != teacher.labels:
        problem = f"{model.path} and {teacher.path} have different classes"
    else:
        return
    raise CheckpointError(f"{problem}.", fix="Give the teacher that it was distilled from.")
