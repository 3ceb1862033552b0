"""Scores on real clips: accuracy, agreement with the teacher, recall per class; and fold checks.

Shape legend: N clips, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frami_edge.checkpoint import Teacher, TrainedOn
from frami_edge.data.clips import Clip, SoundSet, read_audio, resolve_fold
from frami_edge.data.sets import KNOWN_SETS, load_set, whole_name
from frami_edge.data.store import Features
from frami_edge.errors import CheckpointError, ConfigError, DataError
from frami_edge.io import nfc
from frami_edge.losses import kl_from, same_decision
from frami_edge.opening import OpenedModel
from frami_edge.opening import predict as predict
from frami_edge.progress import Progress, ProgressCallback
from frami_edge.tables import Table, percent
from frami_edge.teachers.selection import OTHER, read_keep, select_classes

log = logging.getLogger("frami_edge")

EVERY = "all"
"""Stands for all folds of a set that no teacher was trained on."""


@dataclass(frozen=True)
class Score:
    """Predictions of one model compared with labels, and with its teacher's predictions.

    Attributes:
        accuracy: Share of clips with the right class, among those that have one of the classes.
        agreement: Share of clips on which model and teacher predict the same class, with detectors
            the same set of classes above 0.5; None without a teacher.
        kl: Mean KL(teacher ‖ model) in nats, with detectors summed over them; None without a
            teacher.
        confusion_KK: Clip counts; rows are true classes, columns predicted ones.
        clips: N.
        detectors: Average precision and d' of each detector over all clips, NaN where there is no
            clip with or without its class; None for a model that chooses one of K.
        silent: Share of clips on which none of the teacher's detectors is above 0.5, which is the
            agreement of a model that never detects anything; None for one that chooses one of K.
    """

    accuracy: float
    agreement: float | None
    kl: float | None
    confusion_KK: Tensor
    clips: int
    detectors: tuple[list[float], list[float]] | None = None
    silent: float | None = None

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over the detectors whose class occurs; None for a model that chooses one of K."""
        if self.detectors is None:
            return None
        found = [ap for ap in self.detectors[0] if not math.isnan(ap)]
        return sum(found) / len(found) if found else None

    def per_class(self) -> list[float | None]:
        """Recall of each class; None where a class has no clip."""
        counts = self.confusion_KK.sum(dim=1)
        hits = self.confusion_KK.diagonal()
        return [int(h) / int(n) if n else None for h, n in zip(hits, counts, strict=True)]


def score(
    logits_NK: Tensor,
    labels_N: Tensor,
    teacher_NK: Tensor | None = None,
    *,
    output: Literal["softmax", "sigmoid"] = "softmax",
    targets_NK: Tensor | None = None,
) -> Score:
    """Compare logits with labels and, where given, with the teacher's logits.

    Args:
        logits_NK: The model's logits.
        labels_N: The class of each clip; -1 for none of them.
        teacher_NK: The teacher's logits.
        output: How logits become scores.
        targets_NK: For detectors: the classes of each clip; None for those in `labels_N`.
    """
    k, known_N = logits_NK.shape[1], labels_N >= 0
    predicted_N = logits_NK.argmax(1)
    pairs = (labels_N * k + predicted_N)[known_N]
    confusion = torch.bincount(pairs, minlength=k * k).view(k, k)
    agreement = kl = detectors = silent = None
    if teacher_NK is not None:
        agreement = float(same_decision(logits_NK, teacher_NK, output).double().mean())
        kl = float(kl_from(teacher_NK, logits_NK, output).mean())
        if output == "sigmoid":
            silent = float((teacher_NK <= 0).all(1).double().mean())
    if output == "sigmoid":
        if targets_NK is None:
            targets_NK = labels_N[:, None] == torch.arange(k)
        columns = list(zip(logits_NK.T, targets_NK.T, strict=True))
        detectors = [average_precision(*c) for c in columns], [d_prime(*c) for c in columns]
    accuracy = float((predicted_N == labels_N)[known_N].double().mean())
    return Score(accuracy, agreement, kl, confusion, len(labels_N), detectors, silent)


def average_precision(scores_N: Tensor, positive_N: Tensor) -> float:
    """Mean of the precision at each positive clip, best score first; NaN without a positive.

    Clips of equal score count as one step.
    Source: M. Everingham et al., *The Pascal VOC Challenge*, IJCV 2010, without interpolation.
    """
    scores, positive = scores_N.double(), positive_N.bool()
    if not positive.any():
        return math.nan
    values, counts = scores.unique(return_counts=True)  # rising
    hits = torch.zeros(len(values), dtype=torch.float64)
    hits.index_add_(0, torch.searchsorted(values, scores), positive.double())
    hits, counts = hits.flip(0), counts.flip(0)
    precision = hits.cumsum(0) / counts.cumsum(0)
    return float((precision * hits).sum() / hits.sum())


def d_prime(scores_N: Tensor, positive_N: Tensor) -> float:
    """Separation of positive and other clips: sqrt(2) Φ⁻¹(AUC); NaN where one kind is missing.

    Source: S. Hershey et al., *CNN Architectures for Large-Scale Audio Classification*, ICASSP
    2017.
    """
    positive = positive_N.bool()
    p, n = scores_N[positive].double(), scores_N[~positive].double()
    if not len(p) or not len(n):
        return math.nan
    ordered = n.sort().values
    below = torch.searchsorted(ordered, p), torch.searchsorted(ordered, p, right=True)
    auc = torch.stack(below).double().mean(0).sum() / (len(p) * len(n))
    # Half a pair from the ends: a perfect order on a finite set is not an infinite distance.
    end = 0.5 / (len(p) * len(n))
    return float(math.sqrt(2) * torch.special.ndtri(auc.clamp(end, 1 - end)))


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
        heard: Clips of the fold whose audio the teacher was trained on, see `training_clips`.
        notes: What was left out or assumed, in sentences.
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
    heard: int = 0
    notes: tuple[str, ...] = ()
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
            "training_clips": self.heard,
            "notes": list(self.notes),
            "accuracy": self.score.accuracy,
            "agreement": self.score.agreement,
            "kl_nats": self.score.kl,
            "teacher_silent": self.score.silent,
            "teacher_accuracy": self.teacher.accuracy if self.teacher else None,
            "mean_average_precision": self.score.mean_average_precision,
            "recall": dict(zip(self.labels, self.score.per_class(), strict=True)),
            "confusion": self.score.confusion_KK.tolist(),
        }
        theirs = self.teacher.mean_average_precision if self.teacher else None
        found["teacher_mean_average_precision"] = theirs
        for who, scored in (("", self.score), ("teacher_", self.teacher)):
            if scored and scored.detectors:
                names = ("average_precision", "d_prime")
                for what, values in zip(names, scored.detectors, strict=True):
                    plain = [None if math.isnan(value) else value for value in values]
                    found[who + what] = dict(zip(self.labels, plain, strict=True))
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
        """Figures per class, the summary, and the control rows."""
        summary: dict[str, object] = {"accuracy": percent(self.accuracy), "clips": self.score.clips}
        if self.score.detectors:
            summary["mAP"] = percent(self.score.mean_average_precision)
        if self.teacher:
            summary["teacher's accuracy"] = percent(self.teacher.accuracy)
            if self.teacher.detectors:
                summary["teacher's mAP"] = percent(self.teacher.mean_average_precision)
            summary["agreement with it"] = percent(self.agreement)
            summary["mean KL from it in nats"] = self.score.kl
        title, notes = f"{self.kind}: {self.model}", list(self.notes)
        if self.score.silent is not None:
            notes.append(
                f"On {percent(self.score.silent)} of the clips the teacher detects nothing, and a "
                "model that never does agrees."
            )
        row = list(summary.values())
        tables = [self._by_class(), Table(title, list(summary), [row], " ".join(notes))]
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

    def _by_class(self) -> Table:
        """Recall, or average precision and d' of detectors, with the teacher's beside them."""
        columns = ["class", "clips"]
        counts = self.score.confusion_KK.sum(dim=1).tolist()
        rows: list[list[object]] = [
            [label, int(n)] for label, n in zip(self.labels, counts, strict=True)
        ]
        for who, scored in (("", self.score), ("teacher's ", self.teacher)):
            if scored and scored.detectors:
                columns += [f"{who}AP", f"{who}d'"]
                for row, ap, d in zip(rows, *scored.detectors, strict=True):
                    row += [
                        None if math.isnan(ap) else percent(ap, 1),
                        None if math.isnan(d) else d,
                    ]
            elif scored:
                columns.append(f"{who}recall")
                for row, share in zip(rows, scored.per_class(), strict=True):
                    row.append(percent(share, 1))
        return Table(f"Fold {self.fold} of {self.data} by class", columns, rows)

    def __str__(self) -> str:
        return "\n".join(str(table) for table in self.tables())


def logits_of(
    model: OpenedModel, features: Features, progress: ProgressCallback | None = None
) -> Tensor:
    """Logits (N, K) float32 of clips, in their order.

    A checkpoint receives the log-mels, which are of its front end, unless it takes audio. An
    exported file receives the audio itself, through the device's own front end, so that the whole
    path is scored.
    """
    if model.network is not None and not model.takes_audio:
        return model.logits(features.mels)

    def clips() -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        for i, clip in enumerate(features.clips):
            yield read_audio(clip.path)
            if progress:
                progress(Progress("score", i + 1, len(features)))

    return model.logits_of_audio(clips())


def open_fold(
    known: TrainedOn | None,
    data: str,
    fold: str | int | None,
    root: Path | None,
    *,
    who: str,
) -> tuple[SoundSet, str, list[Clip]]:
    """The data set, the fold to score on and its clips, after every check.

    `known` is what the model's teacher was trained on, `who` names the model in errors. Without a
    `fold` it is the one that the teacher held out.

    Raises:
        DataError: The set is missing, the fold is unknown, or the teacher was trained on it.
    """
    sounds = load_set(data, root)
    if fold is None and known and same_set(known, sounds) and known.test_fold in sounds.folds:
        fold = known.test_fold
    if fold is None and len(sounds.folds) > 1:
        raise DataError(
            f"{who} does not record which fold of {sounds.name} its teacher held out.",
            fix="Give --fold all for a set that it was not trained on, else --teacher FILE or a "
            f"--fold of {', '.join(sounds.folds)}.",
        )
    if str(fold) == EVERY:
        key, clips = EVERY, list(sounds.clips)
    else:
        key = resolve_fold(sounds, None if fold is None else str(fold))
        clips = [clip for clip in sounds.clips if clip.fold == key]
    check_held_out(known, sounds, key)
    for note in sounds.notes:
        log.warning("%s: %s", sounds.name, note)
    if known is None:
        log.warning(
            "It is not known whether the teacher was trained on fold %s: give the teacher's "
            "checkpoint, or trained_on in its description.",
            key,
        )
    return sounds, key, clips


def label_targets(
    labels: Sequence[str],
    data: SoundSet,
    *,
    selection: bool,
    label_map: Mapping[str, Sequence[str]] | None = None,
) -> Tensor:
    """(D, K) bool: which of the model's K labels are right for each of the set's D classes.

    Args:
        labels: The model's labels.
        data: The set.
        selection: Whether the model knows a part of the classes: classes that match none are then
            `other`, or none of its detectors.
        label_map: The model's labels for classes of the set; others match by name.

    Raises:
        DataError: They do not match.
    """
    spelled = {nfc(label): label for label in labels}
    if not selection and label_map is None:
        if missing := [name for name in data.labels if nfc(name) not in spelled]:
            extra = sorted(set(labels) - set(data.labels))
            more = f"; not in the data: {', '.join(extra[:5])}" if extra else ""
            raise DataError(
                f"The labels of {data.name} and of the model do not match: the data has "
                f"{len(data.labels)} classes, the model {len(labels)}; unknown to the model: "
                f"{', '.join(missing[:5])}{more}.",
                fix="Score the model on the data set that its teacher was trained for, or give "
                "--label-map FILE.",
            )
        own = [labels.index(spelled[nfc(name)]) for name in data.labels]
        return torch.eye(len(labels), dtype=torch.bool)[own]
    label_map = {
        nfc(name): [spelled.get(nfc(label), label) for label in some]
        for name, some in (label_map or {}).items()
    }
    unknown = sorted(set(label_map) - set(data.labels))
    unknown += sorted({label for some in label_map.values() for label in some} - set(labels))
    if unknown:
        raise DataError(
            f"The label map names '{unknown[0]}', no class of {data.name} or of the model.",
            fix=f"The model knows {', '.join(labels[:12])}; the set {', '.join(data.labels[:12])}.",
        )
    targets = torch.zeros(len(data.labels), len(labels), dtype=torch.bool)
    for d, name in enumerate(data.labels):
        for label in label_map.get(name, ()) or _same_name(name, labels):
            targets[d, labels.index(label)] = True
    if not targets.any():
        raise DataError(
            f"No class of {data.name} has the name of one of the model's labels.",
            fix="Name the classes of `keep` as the set does, or give --label-map FILE, a csv with "
            "a class of the set and a label of the model per line.",
        )
    if OTHER in labels:
        targets[~targets.any(1), labels.index(OTHER)] = True
    return targets


def labels_of(targets_NK: Tensor) -> Tensor:
    """(N,) the first right label of each clip; -1 for none."""
    return torch.where(targets_NK.any(1), targets_NK.int().argmax(1), -1)


def _same_name(name: str, labels: Sequence[str]) -> list[str]:
    try:
        ((_, index),) = read_keep([name], labels).items()
    except (ConfigError, ValueError):
        return []
    return [labels[i] for i in index]


def read_label_map(path: Path) -> dict[str, list[str]]:
    """A csv without a header: a class of the data set and a label of the model per line.

    Raises:
        DataError: It cannot be read, or a line has not two values.
    """
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"The label map {path} cannot be read: {reason}.", fix="Give a csv file in UTF-8."
        ) from None
    found: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        values = [nfc(value.strip()) for value in row]
        if len(values) != 2 or not all(values):
            raise DataError(
                f"Line {number} of {path} has {len(values)} values.",
                fix='Write two per line, such as: crying_baby,"Baby cry, infant cry"',
            )
        found.setdefault(values[0], []).append(values[1])
    return found


def check_held_out(known: TrainedOn | None, data: SoundSet, fold: str) -> None:
    """By names: the teacher must not have been trained on the clips that a model is scored on.

    Where the names do not decide, and the teacher's card holds hashes of its clips,
    `training_clips` compares the audio.

    Raises:
        DataError: The teacher held out another fold of this set, or was trained on a set that
            shares its recordings.
    """
    if known is None or (same_set(known, data) and known.test_fold == fold):
        return
    if not same_set(known, data):
        if known.audio or _recordings(known.data) != _recordings(data.name):
            return
        raise DataError(
            f"The teacher was trained on {known.data}, which has the clips of {data.name} in other "
            "folds. A score on its training clips would mean nothing.",
            fix=f"Use --data {known.data}, or train a teacher on {data.name}.",
        )
    if known.audio and data.name.startswith("folder:"):  # two folders may have one name
        return
    raise DataError(
        f"The teacher was trained on {data.name}: it held out fold {known.test_fold}, not {fold}. "
        "A score on its training clips would mean nothing.",
        fix=f"Use --fold {known.test_fold}, or a teacher that holds out these clips.",
    )


def same_set(known: TrainedOn, data: SoundSet) -> bool:
    """Whether a teacher was trained on this set, or on a part of it, by name."""
    return whole_name(known.data) == whole_name(data.name)


def _recordings(name: str) -> str:
    """The download that a set is cut from: several sets share their clips."""
    name = whole_name(name)
    return next((info.part_of or info.name for info in KNOWN_SETS if info.name == name), name)


@dataclass(frozen=True)
class TrainingClips:
    """Which clips of a fold a teacher was trained on, compared by their samples.

    The official folds of a published set are scored as they are; in any other set these clips are
    left out of the score.
    """

    heard: Sequence[bool]
    """One value per clip that could be read."""
    kept: bool
    """They are part of an official fold, so they are scored all the same."""
    note: str
    """What a result has to say about it; "" where there are none."""

    @property
    def count(self) -> int:
        """Number of them."""
        return sum(self.heard)

    def left_out(self, features: Features) -> Features:
        """The clips to be scored."""
        if self.kept or not self.count:
            return features
        return features.only([not heard for heard in self.heard])


def training_clips(
    features: Features, known: TrainedOn | None, data: SoundSet, fold: str
) -> TrainingClips:
    """Compare the clips of a fold with those that a teacher was trained on, where these are known.

    Raises:
        DataError: The teacher was trained on all of them.
    """
    if known is None or not known.audio:
        note = ""
        if known and not (same_set(known, data) and known.test_fold == fold):
            note = (
                f"The teacher was trained on {known.data}, and its card holds no hashes of the "
                "clips: copies of them under another name are not noticed, and would be scored."
            )
            log.warning(note)
        return TrainingClips([False] * len(features), False, note)
    heard = known.heard(features.audio)
    count, official = sum(heard), not data.name.startswith("folder:")
    kept = official and same_set(known, data) and known.test_fold == fold
    if not count:
        return TrainingClips(heard, kept, "")
    if count == len(features) and not kept:
        raise DataError(
            f"The teacher was trained on all {count} clips: fold {fold} of {data.name}. A score on "
            "its training clips would mean nothing.",
            fix="Score it on clips that it was not trained on.",
        )
    note = f"{count} of {len(features)} clips have the same audio as a training clip of the teacher"
    note += ": the official fold is scored as it is." if kept else " and are left out of the score."
    log.warning(note)
    return TrainingClips(heard, kept, note)


def as_selected(model: OpenedModel, teacher: OpenedModel) -> OpenedModel:
    """The teacher with the classes of the model: those of the student's card, or by their labels.

    Raises:
        ConfigError: The teacher lacks one of them.
    """
    if teacher.labels == model.labels or not isinstance(teacher.network, Teacher):
        return teacher
    if teacher.network.card.keep is not None:
        return teacher
    known = model.network.card.keep if model.network else None
    if known is None and set(model.labels) - {OTHER} <= set(teacher.labels):
        known = {label: (label,) for label in model.labels if label in teacher.labels}
    if known is None:
        return teacher
    return OpenedModel.of_network(teacher.path, select_classes(teacher.network, known))


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
