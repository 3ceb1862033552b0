"""A model to be scored, whatever its form: a checkpoint of ours, or an exported ONNX file.

Shape legend: N clips, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frami_edge.checkpoint import TrainedOn
from frami_edge.data.decoding import read_audio
from frami_edge.data.sets import SoundSet, known_sets, resolve_fold
from frami_edge.data.store import Features
from frami_edge.errors import CheckpointError, DataError
from frami_edge.opening import OpenedModel
from frami_edge.opening import predict as predict

# --- Scores on real clips: accuracy, agreement with the teacher, per-class table
# Shape legend: N clips, M mel bands, T frames, K classes.


@dataclass
class Score:
    """How one model did on some clips.

    Attributes:
        accuracy: Share of clips with the right class.
        agreement: Share on which the teacher says the same; None without a teacher.
        kl: Mean KL(teacher ‖ model) in nats; None without a teacher.
        confusion_KK: Rows are true classes, columns answers.
        clips: N.
    """

    accuracy: float
    agreement: float | None
    kl: float | None
    confusion_KK: Tensor
    clips: int

    def per_class(self) -> list[float | None]:
        """Recall of each class; None where it has no clip."""
        counts = self.confusion_KK.sum(dim=1)
        hits = self.confusion_KK.diagonal()
        return [int(h) / int(n) if n else None for h, n in zip(hits, counts, strict=True)]


def score(logits_NK: Tensor, labels_N: Tensor, teacher_NK: Tensor | None = None) -> Score:
    """Compare logits with labels and, where given, with the teacher's logits."""
    k = logits_NK.shape[1]
    answer_N = logits_NK.argmax(1)
    confusion = torch.bincount(labels_N * k + answer_N, minlength=k * k).view(k, k)
    agreement = kl = None
    if teacher_NK is not None:
        agreement = float((answer_N == teacher_NK.argmax(1)).double().mean())
        t, s = teacher_NK.log_softmax(1), logits_NK.log_softmax(1)
        kl = float((t.exp() * (t - s)).sum(1).mean())
    return Score(
        float((answer_N == labels_N).double().mean()), agreement, kl, confusion, len(labels_N)
    )


class Labelled(Protocol):
    """A model that names its classes."""

    @property
    def labels(self) -> tuple[str, ...]:
        """(K,) class names, in the order of the logits."""


def check_labels(card: Labelled, data: SoundSet) -> None:
    """Model and data must name the same classes in the same order.

    Raises:
        DataError: They do not.
    """
    if tuple(card.labels) == tuple(data.labels):
        return
    missing = sorted(set(data.labels) - set(card.labels))
    extra = sorted(set(card.labels) - set(data.labels))
    what = f"the data has {len(data.labels)} classes, the model {len(card.labels)}"
    if missing:
        what += f"; unknown to the model: {', '.join(missing[:5])}"
    if extra:
        what += f"; not in the data: {', '.join(extra[:5])}"
    if not missing and not extra:
        what = "they hold the same classes in another order"
    raise DataError(
        f"The labels of {data.name} and of the model do not match: {what}.",
        fix="Score the model on the data set that its teacher was made for.",
    )


def held_out_fold(
    asked: str | None, heard: TrainedOn | None, data: SoundSet, *, who: str, options: str
) -> str:
    """The fold to score on: the one asked for, else the one that the teacher held out.

    Args:
        asked: By the user; None where nobody did.
        heard: What the teacher was trained on, where its card says so.
        data: The set.
        who: What does not say it, for the error.
        options: That would.

    Raises:
        DataError: The set has no such fold, or several and nothing names one.
    """
    if asked is None and heard is not None and heard.data == data.name:
        asked = heard.test_fold
    if asked is None and len(data.folds) > 1:
        raise DataError(
            f"{who} does not say which fold of {data.name} its teacher held out.",
            fix=f"Give {options}; the folds are {', '.join(data.folds)}.",
        )
    return resolve_fold(data, asked)


def check_unheard(heard: TrainedOn | None, data: SoundSet, fold: str) -> None:
    """Nobody is scored on clips that the teacher was trained on.

    Raises:
        DataError: The teacher held out another fold of this set, or was trained on another view of
            the same clips.
    """
    if heard is None or (heard.data, heard.test_fold) == (data.name, fold):
        return
    if heard.data != data.name:
        if _recordings(heard.data) != _recordings(data.name):
            return
        raise DataError(
            f"The teacher was trained on {heard.data}, which has the clips of {data.name} in other "
            "folds. A score on clips that it heard would mean nothing.",
            fix=f"Use --data {heard.data}, or train a teacher on {data.name}.",
        )
    raise DataError(
        f"The teacher was trained on fold {fold} of {data.name}: it held out fold "
        f"{heard.test_fold}. A score on clips that it heard would mean nothing.",
        fix=f"Use --fold {heard.test_fold}, or train a teacher that holds out fold {fold}.",
    )


def _recordings(name: str) -> str:
    """The download that a set is cut from: several sets share their clips."""
    return next((info.part_of or info.name for info in known_sets() if info.name == name), name)


def class_rows(
    labels: Sequence[str], student: Score, teacher: Score | None
) -> list[tuple[str, str, str, str]]:
    """(class, clips, recall, teacher's recall), for a table."""
    show: Callable[[float | None], str] = lambda v: "-" if v is None else f"{100 * v:.1f} %"  # noqa: E731
    counts = student.confusion_KK.sum(dim=1).tolist()
    theirs = teacher.per_class() if teacher else [None] * len(labels)
    return [
        (label, str(int(n)), show(mine), show(other))
        for label, n, mine, other in zip(labels, counts, student.per_class(), theirs, strict=True)
    ]


# --- A model to be scored, whatever its form: a checkpoint of ours, or an exported ONNX file


def logits_of(
    model: OpenedModel, features: Features, done: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Logits (N, K) float32 of clips, in their order.

    A checkpoint answers the log-mels. An exported file answers the audio itself, through the
    device's own front end, so that its score is that of the whole path.

    Args:
        model: The opened model.
        features: Clips, with log-mels of this model's front end.
        done: Called with the number of clips finished so far.
    """
    if model.network is not None:
        logits = model.logits(features.mels)
        done(len(features))
        return logits

    def clips() -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        for i, clip in enumerate(features.clips):
            done(i)
            yield read_audio(clip.path)

    logits = model.logits_of_audio(clips())
    done(len(features))
    return logits


def check_teacher(candidate: OpenedModel, teacher: OpenedModel) -> None:
    """The teacher given must be the one that the candidate learned from, where it names it.

    Raises:
        CheckpointError: It is another one, no teacher, or of other classes.
    """
    if teacher.kind != "teacher":
        raise CheckpointError(
            f"{teacher.path} holds no teacher but a model of the kind {teacher.kind}.",
            fix="Give the teacher's checkpoint, teacher.safetensors.",
        )
    if candidate.teacher_sha256 not in (None, teacher.sha256):
        raise CheckpointError(
            f"{candidate.path} learned from another teacher than {teacher.path}.",
            fix="Give the checkpoint that it was distilled from.",
        )
    if candidate.labels != teacher.labels:
        raise CheckpointError(
            f"{candidate.path} and {teacher.path} know different classes.",
            fix="Give the checkpoint that it was distilled from.",
        )
