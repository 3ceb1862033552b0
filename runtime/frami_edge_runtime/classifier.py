"""The front door: one model file, any audio, an answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy.typing as npt

from frami_edge_runtime.backends import Backend, Source, choose_backend, open_backend
from frami_edge_runtime.errors import AudioError, ModelFileError
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.selftest import SelfTest, selftest
from frami_edge_runtime.stream import Result, Stream, StreamGroup


class Classifier:
    """A sound classifier from one model file of ``frami-edge export``.

    It can be shared between threads; a `Stream` belongs to one. It is pickled as the path of its
    file, or as its bytes, and loads the same file again in the other process.

    Args:
        model: Path of the ``.onnx`` or ``.engine`` file, or the bytes of an ONNX file.
        backend: ``cpu``; ``cuda`` or ``tensorrt-ep``, ONNX Runtime's providers; ``tensorrt`` for an
            engine. ``auto``: an engine on TensorRT, all else on the CPU, which is faster for
            models this small; see `backends.choose_backend`.
        threads: CPU threads; small models gain nothing from more than one.

    Raises:
        ModelFileError: The file is missing, damaged, of another schema, or not such a model.
        EngineError: The same for an engine, or it was built for another machine.
        BackendError: The backend is unknown, not installed, or has no device here.
    """

    def __init__(self, model: Source, backend: str = "auto", *, threads: int = 1) -> None:
        """Load the model and check it against its metadata."""
        _, self.backend_reason = choose_backend(model, backend)
        self._model: Backend = open_backend(model, backend, threads=threads)
        source = model if isinstance(model, bytes) else Path(os.path.abspath(model))
        self._made_of = (source, backend, threads)

    @property
    def model(self) -> Backend:
        """Trunk and head on the backend, for runs without a stream."""
        return self._model

    @property
    def backend(self) -> str:
        """The backend in use; ``backend_reason`` gives the reason."""
        return self._model.kind

    @property
    def info(self) -> ModelInfo:
        """The description in the model file."""
        return self._model.info

    @property
    def labels(self) -> tuple[str, ...]:
        """(K,) class names."""
        return self._model.info.labels

    def close(self) -> None:
        """Free a GPU's memory now; the streams of this classifier end with it."""
        self._model.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (*self._made_of, self._model.sha256)

    def classify(self, samples: npt.ArrayLike, sample_rate: int | None = None) -> Result:
        """Classify one clip of any length: a stream, pushed once and flushed.

        Args:
            samples: (N,) int16 or float, N >= 1; see `audio.check_samples`.
            sample_rate: Hz of the samples; None for the model's own.

        Raises:
            AudioError: The samples are not usable audio, or there are none.
            ModelFileError: The model failed, or gave NaN.
        """
        stream = self.stream(sample_rate)
        stream.push(samples)
        if (result := stream.flush()) is None:
            raise AudioError(
                "There are no samples to classify.", fix="Pass at least one sample of audio."
            )
        return result

    def selftest(self) -> SelfTest:
        """Compare this machine with the exporter's: a fixed clip, its log-mel and its logits.

        Raises:
            ModelFileError: The file carries no golden vectors.
        """
        return selftest(self._model)

    def stream(
        self,
        sample_rate: int | None = None,
        window_s: float | None = None,
        forget_s: float | None = None,
        hop_s: float | None = None,
        gate_db: float | None = None,
    ) -> Stream:
        """Open a stream: push samples in any chunking, get results as they become final.

        How far back a result reaches: to the start of the clip (default), over the last
        ``window_s`` seconds, or with a weight that halves every ``forget_s`` seconds.

        Args:
            sample_rate: Hz of the samples; None for the model's own. Other rates need soxr.
            window_s: Length of a sliding window in seconds, rounded to whole hops.
            forget_s: Half-life in seconds.
            hop_s: Seconds between results, rounded to whole trunk frames. Default: a quarter of
                ``window_s`` or ``forget_s``, at most 0.5 s; without both, one result, at flush.
            gate_db: Level in dB of full scale. While the input is quieter and steady the model does
                not run: the last answer holds, in one result per window, up to two windows late;
                a flush leaves out those to come. From 0.25 s before anything else on, answers are
                those of a stream without a gate. Needs ``window_s``.

        Raises:
            AudioError: The rate is absurd, or needs soxr, which is not installed.
            StreamError: A duration is absurd, or both ``window_s`` and ``forget_s`` are given.
        """
        return Stream(
            self._model,
            sample_rate=sample_rate,
            window_s=window_s,
            forget_s=forget_s,
            hop_s=hop_s,
            gate_db=gate_db,
        )

    def streams(
        self,
        n: int,
        sample_rate: int | None = None,
        window_s: float | None = None,
        forget_s: float | None = None,
        hop_s: float | None = None,
    ) -> StreamGroup:
        """Open n streams that share every call of the model: for many microphones.

        The other arguments are those of `stream`.

        Raises:
            AudioError: As for `stream`.
            StreamError: As for `stream`, or ``n`` is less than 1.
        """
        return StreamGroup(
            self._model,
            n,
            sample_rate=sample_rate,
            window_s=window_s,
            forget_s=forget_s,
            hop_s=hop_s,
        )


def _reopen(source: Source, backend: str, threads: int, sha256: str) -> Classifier:
    """Unpickle a classifier.

    Raises:
        ModelFileError: The file is not the one that was pickled.
    """
    classifier = Classifier(source, backend, threads=threads)
    if classifier.model.sha256 != sha256:
        raise ModelFileError(
            f"{classifier.model.name} has changed since the classifier was pickled.",
            fix="Open the new file with Classifier(path).",
        )
    return classifier
