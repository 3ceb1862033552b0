"""One of the two models of a comparison, whatever its form, and its answers to a batch of clips.

Shape legend: N clips, B batch, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.comparing.clips import Batch
from frami_edge.describing.onnx_file import CLASSIFIER_KEY, WAVEFORM_KEY, read_info, read_onnx
from frami_edge.errors import CheckpointError, ModelFileError
from frami_edge.evaluation import predict
from frami_edge.models.checkpoint import TrainedOn, load_checkpoint
from frami_edge.models.student import Student
from frami_edge.onnx_session import OnnxSession
from frami_edge.teachers.opening import DESCRIPTIONS, open_teacher
from frami_edge_export.mels import classify_mels
from frami_edge_runtime import Classifier, MelSpec
from frami_edge_runtime.backends.choose import open_backend
from frami_edge_runtime.modelfile import METADATA_KEY, ModelInfo
from frami_edge_runtime.pooling import mean_std

Logits = npt.NDArray[np.float32]
Kind = Literal["student", "teacher", "streaming", "classifier", "waveform", "engine"]
ENGINES = (".engine", ".plan", ".trt")
_KINDS: dict[str, Kind] = {
    METADATA_KEY: "streaming",
    CLASSIFIER_KEY: "classifier",
    WAVEFORM_KEY: "waveform",
}
_BATCH_FRAMES = 4096
"""Mel frames of one run, at least one clip: bounds memory."""
_RUN_FRAMES = 64
"""Trunk frames of one run of an engine, as in the runtime."""


@dataclass
class Side:
    """A model, what it says of itself, and how to ask it.

    Attributes:
        path: Its file.
        kind: What it is.
        labels: (K,) class names.
        spec: Front end.
        answer: Logits (N, K) float32 to a batch of clips.
        precision: ``fp32``, ``fp16`` or ``int8``.
        receptive_field: In mel frames; None where it has none.
        stride: In mel frames.
        context: Mel frames before and after a clip; None where it has none.
        pool_eps: Added to the variance in the pooling.
        student_sha256: The student's checkpoint, where known.
        teacher_sha256: The teacher's, where known.
        heard: Real clips behind it, where it says so.
        classifier: The runtime's, for a model that streams.
    """

    path: Path
    kind: Kind
    labels: tuple[str, ...]
    spec: MelSpec
    answer: Callable[[Batch], Logits]
    precision: str = "fp32"
    receptive_field: int | None = None
    stride: int | None = None
    context: tuple[int, int] | None = None
    pool_eps: float | None = None
    student_sha256: str | None = None
    teacher_sha256: str | None = None
    heard: TrainedOn | None = None
    classifier: Classifier | None = None


def open_side(path: Path, backend: str = "auto") -> Side:
    """Open a checkpoint, a teacher's YAML, an ONNX file of `frami-edge export`, or an engine.

    Args:
        path: By its suffix.
        backend: Of the runtime, for a streaming file or an engine.

    Raises:
        CheckpointError: No such file, or no sound checkpoint.
        ModelFileError: No sound model of `frami-edge export`, or an engine that cannot run here.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder, not a model." if path.is_dir() else f"There is no model {path}.",
            fix="Give a .safetensors checkpoint, an .onnx file of `frami-edge export`, or an "
            ".engine.",
        )
    suffix = path.suffix.lower()
    if suffix in ENGINES:
        return _engine(path, backend)
    if suffix == ".onnx":
        return _onnx(path, backend)
    return _checkpoint(path)


def _checkpoint(path: Path) -> Side:
    loaded = open_teacher(path) if path.suffix.lower() in DESCRIPTIONS else load_checkpoint(path)
    model, card = loaded.model, loaded.card

    def answer(batch: Batch) -> Logits:
        mels = [torch.from_numpy(mel) for mel in batch.mels_for(loaded.spec)]
        logits: Logits = predict(model, mels).numpy()
        return logits

    side = Side(
        path, card.kind, card.labels, loaded.spec, answer,
        stride=None, heard=card.heard, teacher_sha256=card.teacher_sha256,
    )  # fmt: skip
    if isinstance(model, Student):
        side.receptive_field, side.stride = model.receptive_field, model.stride
        side.context, side.pool_eps = model.context, model.pool_eps
        side.student_sha256 = loaded.sha256
    else:
        side.teacher_sha256 = loaded.sha256
    return side


def _onnx(path: Path, backend: str) -> Side:
    model = read_onnx(path)
    found = read_info(model)
    if found is None:
        raise ModelFileError(
            f"{path} carries no description of frami-edge: labels and front end are unknown.",
            fix="Compare files of `frami-edge export`; `frami-edge inspect` shows what it is.",
        )
    key, info = found
    kind = _KINDS[key]
    if kind == "streaming":
        classifier = Classifier(path, backend=backend)
        answer: Callable[[Batch], Logits] = lambda b: classify_mels(path, b.mels_for(info.mel))  # noqa: E731
        if classifier.backend != "cpu":
            answer = _through(path, backend)
        return _described(path, kind, info, answer, classifier)
    session = OnnxSession(path, path.name)

    def run(x: npt.NDArray[np.float32]) -> Logits:
        return session.run(x)[0]

    if kind == "waveform":
        rate = info.mel.sample_rate
        return _described(
            path, kind, info,
            lambda b: np.concatenate([run(x[None]) for x in b.audio_for(rate)]),
        )  # fmt: skip
    return _described(path, kind, info, lambda b: _by_length(run, b.mels_for(info.mel)))


def _engine(path: Path, backend: str) -> Side:
    classifier = Classifier(path, backend=backend)
    return _described(path, "engine", classifier.info, _through(path, backend), classifier)


def _through(path: Path, backend: str) -> Callable[[Batch], Logits]:
    """Answers of the runtime's backend to log-mels: the trunk in runs, float64 pooling, head."""
    model = open_backend(path, backend)
    info = model.info
    field, stride = info.receptive_field, info.stride
    most = min(_RUN_FRAMES, (model.max_mel_frames - field) // stride + 1)
    around = ((0, 0), (info.context.left, info.context.right))

    def answer(batch: Batch) -> Logits:
        rows = []
        for mel_MT in batch.mels_for(info.mel):
            x_MT = np.pad(mel_MT, around, constant_values=info.context.value)
            parts = []
            for first in range(0, total := info.trunk_frames(mel_MT.shape[1]), most):
                last = min(first + most, total) - 1
                run_MT = x_MT[:, first * stride : last * stride + field]
                parts.append(model.frames(np.ascontiguousarray(run_MT[None, None]))[0])
            pooled_D = mean_std(np.concatenate(parts, axis=1), info.pooling.eps)
            rows.append(model.logits(pooled_D[None].astype(np.float32))[0])
        return np.stack(rows)

    return answer


def _described(
    path: Path,
    kind: Kind,
    info: ModelInfo,
    answer: Callable[[Batch], Logits],
    classifier: Classifier | None = None,
) -> Side:
    return Side(
        path, kind, info.labels, info.mel, answer, info.precision, info.receptive_field,
        info.stride, (info.context.left, info.context.right), info.pooling.eps,
        info.student_sha256, info.teacher_sha256, None, classifier,
    )  # fmt: skip


def _by_length(
    run: Callable[[npt.NDArray[np.float32]], Logits], mels: list[npt.NDArray[np.float32]]
) -> Logits:
    """Clips of one length share runs."""
    groups: dict[int, list[int]] = {}
    for i, mel in enumerate(mels):
        groups.setdefault(mel.shape[1], []).append(i)
    rows: dict[int, Logits] = {}
    for length, indices in groups.items():
        step = max(1, _BATCH_FRAMES // length)
        for start in range(0, len(indices), step):
            some = indices[start : start + step]
            rows.update(zip(some, run(np.stack([mels[i] for i in some])[:, None]), strict=True))
    return np.stack([rows[i] for i in range(len(mels))])
