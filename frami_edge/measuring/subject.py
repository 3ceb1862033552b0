"""A model to be timed: a streaming file or engine through the runtime, or a whole classifier.

Shape legend: M mel bands, T mel frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from frami_edge.describing.onnx_file import CLASSIFIER_KEY, WAVEFORM_KEY, read_info, read_onnx
from frami_edge.errors import CheckpointError, ConfigError, ModelFileError
from frami_edge.onnx_session import OnnxSession
from frami_edge_export.parity import parity_inputs
from frami_edge_runtime import Classifier
from frami_edge_runtime.backends.choose import open_backend
from frami_edge_runtime.backends.protocol import UNBOUNDED
from frami_edge_runtime.modelfile import ModelInfo

Kind = Literal["streaming", "classifier", "waveform", "engine"]


@dataclass
class Subject:
    """What is timed.

    Attributes:
        path: Its file.
        kind: What it takes: log-mel chunks, a whole log-mel, or samples.
        backend: What runs it.
        info: What it says of itself.
        threads: CPU threads.
        run: One run of the graph on an input that `input_of` made.
        classifier: The runtime's, for a model that streams.
    """

    path: Path
    kind: Kind
    backend: str
    info: ModelInfo
    threads: int
    run: Callable[[npt.NDArray[np.float32]], object]
    longest: int
    classifier: Classifier | None = None

    def whole_input(self, seconds: float) -> npt.NDArray[np.float32] | None:
        """What the graph is given for so much audio in one run; None where it is too long."""
        info, rate = self.info, self.info.mel.sample_rate
        samples = max(1, round(seconds * rate))
        if self.kind == "waveform":
            rng = np.random.default_rng(0)
            return rng.uniform(-0.5, 0.5, (1, samples)).astype(np.float32)
        frames = max(1, info.mel.frames(max(samples, info.mel.min_samples)))
        mel_B1MT = parity_inputs([frames], info.mel, 0)[0]
        if self.kind == "classifier":
            return mel_B1MT
        context = (info.context.left, info.context.right)
        padded = np.pad(mel_B1MT, ((0, 0), (0, 0), (0, 0), context))
        return padded if padded.shape[3] <= self.longest else None

    def chunk_input(self, seconds: float) -> npt.NDArray[np.float32] | None:
        """What a stream gives the graph for each chunk: new frames after the carried ones."""
        if self.classifier is None:
            return None
        info = self.info
        steps = max(1, round(seconds / info.frame_s))
        frames = info.receptive_field + (steps - 1) * info.stride
        return parity_inputs([frames], info.mel, 0)[0] if frames <= self.longest else None


def open_subject(path: Path, backend: str, threads: int) -> Subject:
    """Open a model for timing.

    Raises:
        ConfigError: A checkpoint, which no device runs, or threads for another backend.
        CheckpointError: There is no such file.
        ModelFileError: No sound model of `frami-edge export`, or an engine that cannot run here.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder, not a model." if path.is_dir() else f"There is no model {path}.",
            fix="Give an .onnx file of `frami-edge export`, or an .engine.",
        )
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        raise ConfigError(
            f"{path} is a checkpoint; no device runs those.",
            fix=f"Export it first: frami-edge export {path} --out FOLDER, then bench its .onnx.",
        )
    if suffix == ".onnx":
        found = read_info(read_onnx(path))
        if found is None:
            raise ModelFileError(
                f"{path} carries no description of frami-edge, so its front end is unknown.",
                fix="Give an .onnx file of `frami-edge export`.",
            )
        key, info = found
        if key in (CLASSIFIER_KEY, WAVEFORM_KEY):
            return _whole(path, "classifier" if key == CLASSIFIER_KEY else "waveform", info,
                          backend, threads)  # fmt: skip
    classifier = Classifier(path, backend, threads=threads)
    model = open_backend(path, backend, threads=threads)
    kind: Kind = "engine" if classifier.backend == "tensorrt" else "streaming"
    return Subject(
        path, kind, classifier.backend, classifier.info, threads, model.frames,
        model.max_mel_frames, classifier,
    )  # fmt: skip


def _whole(path: Path, kind: Kind, info: ModelInfo, backend: str, threads: int) -> Subject:
    if backend not in ("auto", "cpu"):
        raise ConfigError(
            f"{path.name} is a whole classifier; it is timed on the CPU alone.",
            fix="Leave --backend out, or give a streaming file.",
        )
    session = OnnxSession(path, path.name, threads=threads)
    return Subject(path, kind, "cpu", info, threads, session.run, UNBOUNDED)
