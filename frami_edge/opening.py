"""The one opener of model files: checkpoints, teacher descriptions, exported ONNX files, engines.

Shape legend: N clips, B batch, M mel bands, T mel frames, C channels, K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from frami_edge.checkpoint import Student, Teacher, TrainedOn, load_checkpoint, teacher_assets
from frami_edge.data.store import collate, length_buckets
from frami_edge.errors import CheckpointError
from frami_edge.frontend import resample
from frami_edge.io import sha256_file
from frami_edge.teachers.hugging_face import PREFIX
from frami_edge.teachers.opening import DESCRIPTIONS, describe_hugging_face, open_teacher
from frami_edge.teachers.selection import OTHER
from frami_edge_runtime.backends import Backend, open_session, run_session
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import (
    CLASSIFIER_KEY,
    METADATA_KEY,
    WAVEFORM_KEY,
    ModelInfo,
    parse_object,
    read_model_info,
)
from frami_edge_runtime.pooling import mean_std

Array = npt.NDArray[np.float32]
Kind = Literal["teacher", "student", "streaming", "classifier", "waveform", "engine"]

ENGINES: Final = (".engine", ".plan", ".trt")
ORT: Final = ".ort"
"""ONNX Runtime's own format, of one version and its optimisations."""


@torch.no_grad()
def predict(network: nn.Module, mels: Sequence[Tensor], batch_size: int = 64) -> Tensor:
    """Logits (N, K) float32 of whole clips (M, T_i), each at its own length, in the order given.

    Clips are batched by length, and padding is masked out.
    """
    device = next(network.parameters()).device
    rows: dict[int, Tensor] = {}
    network.eval()
    for indices in length_buckets([m.shape[1] for m in mels], batch_size, generator=None):
        x, n = collate(mels, indices, pad_value=0.0)
        logits = network(x.to(device), n.to(device)).float().cpu()
        rows.update(zip(indices, logits, strict=True))
    return torch.stack([rows[i] for i in range(len(mels))])


@dataclass(eq=False)
class OpenedModel:
    """A model file, ready to use.

    Attributes:
        path: Path of the file.
        kind: Kind of the model.
        opened: A `Teacher`, a `Student`, a `Classifier` for a model that streams, or an ONNX
            Runtime session for a whole classifier.
        mel: Mel front end.
        labels: (K,) class names.
        sha256: Hash of the file; of a described teacher that of its weights.
        teacher_sha256: Hash of the teacher that a student was distilled from, where known.
        trained_on: Real clips that the model or its teacher was trained on, where known; exported
            files do not carry this.
        info: Description inside an exported file; None for a checkpoint.
    """

    path: Path
    kind: Kind
    opened: Any
    mel: MelSpec
    labels: tuple[str, ...]
    sha256: str
    teacher_sha256: str | None = None
    trained_on: TrainedOn | None = None
    info: ModelInfo | None = None

    @classmethod
    def of_network(cls, path: Path, network: Teacher | Student) -> OpenedModel:
        """A teacher or student in memory; the path is its name in messages."""
        return cls(
            path=path,
            kind=network.card.kind,
            opened=network,
            mel=network.mel,
            labels=network.labels,
            sha256=network.sha256,
            teacher_sha256=network.card.teacher_sha256,
            trained_on=network.card.real_clips,
        )

    @property
    def output(self) -> Literal["softmax", "sigmoid"]:
        """How logits become scores."""
        if self.network is not None:
            return self.network.output
        return "sigmoid" if self.info and self.info.output == "sigmoid" else "softmax"

    @property
    def selection(self) -> bool:
        """Whether it may know a part of a data set's classes: a selection, or detectors."""
        kept = self.network is not None and self.network.card.keep is not None
        return kept or self.output == "sigmoid" or OTHER in self.labels

    @property
    def network(self) -> Teacher | Student | None:
        """The opened checkpoint; None for an exported file."""
        return self.opened if isinstance(self.opened, Teacher | Student) else None

    @property
    def takes_audio(self) -> bool:
        """Whether it is a teacher that takes samples at the rate of `mel`."""
        return isinstance(self.opened, Teacher) and self.opened.takes == "audio"

    @property
    def classifier(self) -> Classifier | None:
        """The runtime's classifier; None for a model that does not stream."""
        return self.opened if isinstance(self.opened, Classifier) else None

    def logits(self, mels: Sequence[Tensor | Array]) -> Tensor:
        """Logits (N, K) float32 of normalised log-mels (M, T_i), in the order given.

        A streaming model runs over the whole clip with its context, without a stream.

        Raises:
            ModelFileError: The model takes audio samples, or its graph fails.
        """
        if self.takes_audio:
            raise ModelFileError(
                f"{self.path.name} takes audio samples, not log-mels.", fix="Give it audio."
            )
        if self.network is not None:
            return predict(self.network.model, [torch.as_tensor(mel) for mel in mels])
        if self.kind == "waveform":
            raise ModelFileError(
                f"{self.path.name} takes audio samples, not log-mels.",
                fix="Give it audio, or use the streaming file of the same export.",
            )
        arrays = [np.ascontiguousarray(mel, np.float32) for mel in mels]
        if self.classifier is None:
            rows = [self.graph(mel_MT[None, None])[0] for mel_MT in arrays]
        else:
            rows = [_pooled_logits(self.classifier.model, mel_MT) for mel_MT in arrays]
        return torch.from_numpy(np.stack(rows))

    def logits_of_audio(self, clips: Iterable[tuple[Array, int]]) -> Tensor:
        """Logits (N, K) float32 of audio clips, through the device's front end and stream.

        Clips are mono samples in [-1, 1] with their rate in Hz; other rates are resampled.

        Raises:
            ModelFileError: The model's graph fails.
        """
        rate = self.mel.sample_rate
        at_rate = (
            x if given == rate else resample(torch.from_numpy(x), given, rate).numpy()
            for x, given in clips
        )
        if self.classifier is not None:
            rows: list[Array] = [self.classifier.classify(x).logits for x in at_rate]
        elif self.takes_audio:
            assert self.network is not None
            device = next(self.network.model.parameters()).device
            with torch.no_grad():
                rows = [
                    self.network(torch.from_numpy(x)[None].to(device))[0].float().cpu().numpy()
                    for x in at_rate
                ]
        elif self.kind == "waveform":
            rows = [self.graph(x[None])[0] for x in at_rate]
        else:
            return self.logits([np.ascontiguousarray(log_mel(x, self.mel).T) for x in at_rate])
        return torch.from_numpy(np.stack(rows))

    def graph(self, x: Array) -> Array:
        """One run of an exported graph: the trunk of a streaming model, else the whole model.

        (B, 1, M, T) log-mels, or (B, samples) for a waveform model, to the trunk's (B, C, T') frame
        features, else to (B, K) logits.
        """
        if self.classifier is not None:
            return self.classifier.model.frames(x)
        feed, output = self.opened.get_inputs()[0].name, self.opened.get_outputs()[0].name
        return run_session(self.opened, feed, output, x, self.path.name)


def open_model(path: Path, *, backend: str = "auto", threads: int = 1) -> OpenedModel:
    """Open a model by its file's suffix.

    Args:
        path: A checkpoint (``.safetensors``), a teacher description (``.yaml``), ``hf:`` with a
            folder or repository, the name of a teacher in the package, an ONNX file of
            ``frami-edge export`` or its ``.ort`` form, or a TensorRT engine.
        backend: Backend of the runtime, for a streaming file or an engine.
        threads: CPU threads of one run, for an exported file.

    Raises:
        CheckpointError: There is no such file, or it is no sound checkpoint.
        ModelFileError: It is no sound model of ``frami-edge export``, or an engine that cannot run
            on this machine.
        TeacherError: The described teacher cannot be built.
    """
    if os.fspath(path).startswith(PREFIX):
        described = describe_hugging_face(os.fspath(path), {})
        return OpenedModel.of_network(path, open_teacher(described))
    path = teacher_assets().get(os.fspath(path), path)
    if path.is_dir():
        kinds = (".safetensors", ".onnx", ORT, *ENGINES)
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in kinds)
        raise CheckpointError(
            f"{path} is a folder, and a model file is needed here.",
            fix=f"Give a file in it, such as {inside[0]}." if inside else "Give a file.",
        )
    if not path.is_file():
        raise CheckpointError(
            f"There is no model file {path}.",
            fix="Give a .safetensors checkpoint, a teacher's .yaml description, an .onnx file of "
            "`frami-edge export`, or an .engine.",
        )
    suffix = path.suffix.lower()
    if suffix in DESCRIPTIONS:
        return OpenedModel.of_network(path, open_teacher(path))
    if suffix not in (".onnx", ORT, *ENGINES):
        return OpenedModel.of_network(path, load_checkpoint(path))
    kind: Kind = "engine"
    if suffix == ".onnx":
        kind, info = read_info(read_onnx(path))
    elif suffix == ORT:
        kind, info = read_info(read_ort(path))
    opened: Any
    if kind in ("engine", "streaming"):
        opened = Classifier(path, backend, threads=threads)
        info = opened.info
    elif backend in ("auto", "cpu"):
        opened = open_session(path.read_bytes(), threads, path.name)
    else:
        raise ModelFileError(
            f"{path.name} is a whole classifier, which runs on the CPU only.",
            fix="Leave --backend out, or give the streaming file of the same export.",
        )
    return OpenedModel(
        path=path,
        kind=kind,
        opened=opened,
        mel=info.mel,
        labels=info.labels,
        sha256=sha256_file(path),
        teacher_sha256=info.teacher_sha256,
        info=info,
    )


def _pooled_logits(model: Backend, mel_MT: Array) -> Array:
    """(K,) by the runtime's definition: context, trunk, float64 statistics, head."""
    info = model.info
    field, stride, context = info.receptive_field, info.stride, info.context
    around = ((0, 0), (context.left, context.right))
    x_MT = np.pad(mel_MT, around, constant_values=context.value)
    most = (model.max_mel_frames - field) // stride + 1  # trunk frames of one run
    total = info.trunk_frames(mel_MT.shape[1])
    parts = []
    for first in range(0, total, most):
        last = min(first + most, total) - 1
        run_MT = x_MT[:, first * stride : last * stride + field]
        parts.append(model.frames(np.ascontiguousarray(run_MT[None, None]))[0])
    pooled_D = mean_std(np.concatenate(parts, axis=1), info.pooling.eps)
    logits_K: Array = model.logits(pooled_D[None].astype(np.float32))[0]
    return logits_K


def read_onnx(path: Path) -> onnx.ModelProto:
    """The protobuf message of an ONNX file; nothing in it is executed.

    Raises:
        ModelFileError: It is truncated, or no ONNX file.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # protobuf's exceptions differ between its implementations
        model.Clear()
    if not (model.ir_version and model.graph.node):
        raise ModelFileError(
            f"{path} is not a whole ONNX file: it is damaged, truncated, or another kind of file.",
            fix="Copy it again, and compare its size and hash with those in export_report.json.",
        )
    return model


def read_ort(path: Path) -> Any:
    """A session of an ``.ort`` file, whose format only ONNX Runtime reads.

    Raises:
        ModelFileError: This ONNX Runtime cannot load it.
    """
    return open_session(path.read_bytes(), 1, path.name, describe_only=True)


def read_info(model: Any) -> tuple[Kind, ModelInfo]:
    """Kind and description of an exported file: a result of `read_onnx` or `read_ort`.

    Raises:
        ModelFileError: There is no description, or it is damaged or of another schema.
    """
    if isinstance(model, onnx.ModelProto):
        metadata = {entry.key: entry.value for entry in model.metadata_props}
    else:
        metadata = model.get_modelmeta().custom_metadata_map
    if METADATA_KEY in metadata:
        return "streaming", read_model_info(metadata)
    if CLASSIFIER_KEY in metadata:
        return "classifier", ModelInfo.from_json(metadata[CLASSIFIER_KEY])
    if WAVEFORM_KEY in metadata:
        about = parse_object(metadata[WAVEFORM_KEY], WAVEFORM_KEY)
        return "waveform", ModelInfo.from_json(json.dumps(about.get("model")))
    raise ModelFileError(
        "The file carries no description of frami-edge: labels and front end are unknown.",
        fix="Use a file of `frami-edge export`; `frami-edge inspect` describes any file.",
    )
