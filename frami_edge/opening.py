"""The one opener of model files: checkpoints, teacher descriptions, exported ONNX files, engines.

Shape legend: N clips, B batch, M mel bands, T mel frames, C channels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from frami_edge.checkpoint import Student, Teacher, TrainedOn, load_checkpoint
from frami_edge.data.store import collate, length_buckets
from frami_edge.errors import CheckpointError
from frami_edge.frontend import resample
from frami_edge.io import sha256_file
from frami_edge.teachers.opening import DESCRIPTIONS, open_teacher
from frami_edge_export.frontend import WAVEFORM_KEY
from frami_edge_export.graph import CLASSIFIER_KEY
from frami_edge_runtime.backends import Backend, open_backend, open_session, run_session
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import METADATA_KEY, ModelInfo
from frami_edge_runtime.pooling import mean_std

Array = npt.NDArray[np.float32]
Kind = Literal["teacher", "student", "streaming", "classifier", "waveform", "engine"]

ENGINES: Final = (".engine", ".plan", ".trt")
KINDS: Final[dict[str, Kind]] = {
    METADATA_KEY: "streaming",
    CLASSIFIER_KEY: "classifier",
    WAVEFORM_KEY: "waveform",
}
"""Metadata key of each kind of exported ONNX file."""

_MAX_BYTES: Final = 2 << 30


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
        opened: The object behind: a `Teacher`, a `Student`, a `Classifier` for a model that
            streams, or an ONNX Runtime session for a whole classifier.
        mel: Mel front end.
        labels: (K,) class names.
        sha256: Hash of the file; of a described teacher that of its weights.
        teacher_sha256: Hash of the teacher that a student was distilled from, where known.
        trained_on: Real clips that the model or its teacher was trained on, where known; exported
            files do not carry this.
        info: Description inside an exported file; None for a checkpoint.
        threads: CPU threads of one run of an exported file.
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
    threads: int = 1

    @property
    def network(self) -> Teacher | Student | None:
        """The opened checkpoint; None for an exported file."""
        return self.opened if isinstance(self.opened, Teacher | Student) else None

    @property
    def classifier(self) -> Classifier | None:
        """The runtime's classifier; None for a model that does not stream."""
        return self.opened if isinstance(self.opened, Classifier) else None

    @property
    def backend(self) -> str:
        """Name of the backend that runs an exported file."""
        return "cpu" if self.classifier is None else self.classifier.backend

    def logits(self, mels: Sequence[Tensor | Array]) -> Tensor:
        """Logits (N, K) float32 of normalised log-mels (M, T_i), in the order given.

        A streaming model runs over the whole clip with its context, without a stream.

        Raises:
            ModelFileError: The model takes audio samples, or its graph fails.
        """
        if self.network is not None:
            return predict(self.network.model, [torch.as_tensor(mel) for mel in mels])
        if self.kind == "waveform":
            raise ModelFileError(
                f"{self.path.name} takes audio samples, not log-mels.",
                fix="Give it audio, or use the streaming file of the same export.",
            )
        arrays = [np.ascontiguousarray(mel, np.float32) for mel in mels]
        if self.kind == "classifier":
            rows = [self.graph(mel_MT[None, None])[0] for mel_MT in arrays]
        else:
            rows = [self._pooled_logits(mel_MT) for mel_MT in arrays]
        return torch.from_numpy(np.stack(rows))

    def logits_of_audio(self, clips: Iterable[tuple[Array, int]]) -> Tensor:
        """Logits (N, K) float32 of audio clips, through the device's front end and stream.

        Args:
            clips: Mono samples in [-1, 1] with their sample rate in Hz; other rates than the
                model's are resampled.

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
        elif self.kind == "waveform":
            rows = [self.graph(x[None])[0] for x in at_rate]
        else:
            return self.logits([np.ascontiguousarray(log_mel(x, self.mel).T) for x in at_rate])
        return torch.from_numpy(np.stack(rows))

    def graph(self, x: Array) -> Array:
        """One run of an exported graph: the trunk of a streaming model, else the whole model.

        Args:
            x: (B, 1, M, T) normalised log-mels, or (B, samples) for a waveform model.

        Returns:
            (B, C, T') frame features of a trunk, else (B, K) logits.
        """
        if self.classifier is not None:
            return self._device_model.frames(x)
        feed, output = self.opened.get_inputs()[0].name, self.opened.get_outputs()[0].name
        return run_session(self.opened, feed, output, x, self.path.name)

    @property
    def max_mel_frames(self) -> int | None:
        """The longest input of `graph`, in mel frames; None where any length fits."""
        return None if self.classifier is None else self._device_model.max_mel_frames

    @cached_property
    def _device_model(self) -> Backend:
        return open_backend(self.path, self.backend, threads=self.threads)

    def _pooled_logits(self, mel_MT: Array) -> Array:
        """(K,) by the runtime's definition: context, trunk, float64 statistics, head."""
        model = self._device_model
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


def open_model(path: Path, *, backend: str = "auto", threads: int = 1) -> OpenedModel:
    """Open a model by its file's suffix.

    Args:
        path: A checkpoint (``.safetensors``), a teacher description (``.yaml``), an ONNX file of
            ``frami-edge export``, or a TensorRT engine.
        backend: Backend of the runtime, for a streaming file or an engine.
        threads: CPU threads of one run, for an exported file.

    Raises:
        CheckpointError: There is no such file, or it is no sound checkpoint.
        ModelFileError: It is no sound model of ``frami-edge export``, or an engine that cannot run
            on this machine.
        TeacherError: The described teacher cannot be built.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder, not a model." if path.is_dir() else f"There is no model {path}.",
            fix="Give a .safetensors checkpoint, a teacher's .yaml description, an .onnx file of "
            "`frami-edge export`, or an .engine.",
        )
    suffix = path.suffix.lower()
    if suffix != ".onnx" and suffix not in ENGINES:
        loaded = open_teacher(path) if suffix in DESCRIPTIONS else load_checkpoint(path)
        card = loaded.card
        return OpenedModel(
            path=path,
            kind=card.kind,
            opened=loaded,
            mel=loaded.mel,
            labels=card.labels,
            sha256=loaded.sha256,
            teacher_sha256=card.teacher_sha256,
            trained_on=card.real_clips,
        )
    kind: Kind = "engine"
    if suffix == ".onnx":
        found = read_info(read_onnx(path))
        if found is None:
            raise ModelFileError(
                f"{path} carries no description of frami-edge: labels and front end are unknown.",
                fix="Use a file of `frami-edge export`; `frami-edge inspect` describes any file.",
            )
        kind, info = found
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
        threads=threads,
    )


def read_onnx(path: Path) -> onnx.ModelProto:
    """The protobuf message of an ONNX file; nothing in it is executed.

    Raises:
        ModelFileError: It is larger than 2 GiB, truncated, or no ONNX file.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ModelFileError(f"{path} is larger than 2 GiB.", fix="Check the path.")
    model = onnx.ModelProto()
    data = path.read_bytes()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's exceptions differ between its implementations
        model.Clear()
    if not (model.ir_version and model.graph.node and _is_text(model)):
        raise ModelFileError(
            f"{path} is not a whole ONNX file: it is damaged, truncated, or another kind of file.",
            fix="Copy it again, and compare its size and hash with those in export_report.json.",
        )
    return model


def _is_text(message: Any) -> bool:
    """Whether all strings are UTF-8: protobuf returns others as bytes, which no reader expects."""
    for field, value in message.ListFields():
        if field.type in (field.TYPE_STRING, field.TYPE_MESSAGE):
            single = isinstance(value, str | bytes) or hasattr(value, "ListFields")
            for item in (value,) if single else value:
                if isinstance(item, bytes) or (hasattr(item, "ListFields") and not _is_text(item)):
                    return False
    return True


def read_info(model: onnx.ModelProto) -> tuple[Kind, ModelInfo] | None:
    """Kind and description of an exported ONNX file; None for any other ONNX file.

    Raises:
        ModelFileError: The description is damaged or of another schema.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    for key, kind in KINDS.items():
        text = metadata.get(key)
        if text is None:
            continue
        if kind == "waveform":
            try:
                text = json.dumps(json.loads(text)["model"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ModelFileError(
                    f"{key} is not a JSON object with the key model.", fix="Export it again."
                ) from None
        return kind, ModelInfo.from_json(text)
    return None
