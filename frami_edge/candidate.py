"""A model to be scored, whatever its form: a checkpoint of ours, or an exported ONNX file.

Shape legend: N clips, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from frami_edge.data import Features, read_audio
from frami_edge.errors import CheckpointError
from frami_edge.evaluation import predict
from frami_edge.frontend import resample
from frami_edge.io import sha256_file
from frami_edge.models.checkpoint import Loaded, TrainedOn, load_checkpoint
from frami_edge.teachers.opening import DESCRIPTIONS, open_teacher
from frami_edge_runtime import Classifier, MelSpec

Done = Callable[[int], None]


@dataclass
class Candidate:
    """A model, and what it says of itself.

    Attributes:
        path: Its file.
        kind: Teacher or student checkpoint, or exported model.
        labels: (K,) class names.
        spec: Front end.
        sha256: Of the file.
        teacher_sha256: The teacher behind it, where it names one.
        heard: Real clips behind it, where it says so; an ONNX file does not.
        model: What answers.
    """

    path: Path
    kind: Literal["teacher", "student", "onnx"]
    labels: tuple[str, ...]
    spec: MelSpec
    sha256: str
    teacher_sha256: str | None
    heard: TrainedOn | None
    model: Loaded | Classifier

    def logits(self, features: Features, done: Done = lambda _: None) -> Tensor:
        """(N, K) float32 of clips, in their order.

        A checkpoint answers to the log-mels. An ONNX file answers to the audio itself, through the
        device's own front end, so that its score is that of the whole path.

        Args:
            features: Clips, with log-mels of this candidate's front end.
            done: Called with the number of clips answered so far.
        """
        if isinstance(self.model, Loaded):
            logits = predict(self.model.model, features.mels)
            done(len(features))
            return logits
        rows = []
        for i, clip in enumerate(features.clips, start=1):
            samples, rate = read_audio(clip.path)
            # The trainer's resampler: the runtime's own is optional.
            at_rate = resample(torch.from_numpy(samples), rate, self.spec.sample_rate)
            rows.append(torch.from_numpy(self.model.classify(at_rate.numpy()).logits.copy()))
            done(i)
        return torch.stack(rows)


def open_candidate(path: Path) -> Candidate:
    """A model by its file's suffix: `.onnx`, a teacher's YAML description, or a checkpoint.

    Raises:
        CheckpointError: No such file, or no sound checkpoint.
        ModelFileError: No sound model of `frami-edge export`.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder, not a model." if path.is_dir() else f"There is no model {path}.",
            fix="Give a teacher's or student's .safetensors file, or an .onnx file of `frami-edge "
            "export`.",
        )
    if path.suffix.lower() == ".onnx":
        classifier = Classifier(path)
        info = classifier.info
        return Candidate(
            path, "onnx", info.labels, info.mel, sha256_file(path), info.teacher_sha256, None,
            classifier,
        )  # fmt: skip
    loaded = open_teacher(path) if path.suffix.lower() in DESCRIPTIONS else load_checkpoint(path)
    card = loaded.card
    return Candidate(
        path, card.kind, card.labels, loaded.spec, loaded.sha256, card.teacher_sha256, card.heard,
        loaded,
    )  # fmt: skip


def check_teacher(candidate: Candidate, teacher: Candidate) -> None:
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
