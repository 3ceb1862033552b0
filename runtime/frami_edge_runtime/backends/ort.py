"""ONNX Runtime, set up for small devices, with its errors in plain words.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._strict_json import EXPORT_AGAIN
from frami_edge_runtime.backends.checks import (
    EXACT,
    ON_GPU,
    check_model,
    check_port,
    check_threads,
)
from frami_edge_runtime.backends.protocol import UNBOUNDED
from frami_edge_runtime.backends.source import read_model
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.modelfile import (
    HEAD_INPUT,
    HEAD_KEY,
    HEAD_OUTPUT,
    TRUNK_INPUT,
    TRUNK_OUTPUT,
    ModelInfo,
    read_head,
    read_model_info,
)

Providers = Sequence[str | tuple[str, dict[str, str]]]
CPU: Providers = ("CPUExecutionProvider",)
_LOCATION: Final = b"location"
_LOCATION_KEY: Final = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)\Z")


class Head:
    """The affine head of a model, in its own session on the CPU.

    Args:
        onnx: Its ONNX file.
        info: What the model says about itself.
        threads: CPU threads of one run.
        name: The model's file name, for messages.

    Raises:
        ModelFileError: It is damaged, or does not fit the model.
    """

    def __init__(self, onnx: bytes, info: ModelInfo, threads: int, name: str) -> None:
        """Load it and check names and shapes."""
        self._name = name
        self._session = open_session(onnx, threads, f"{name}, {HEAD_KEY}")
        who, size, classes = f"{name}: the head", info.pooled_size, len(info.labels)
        check_port(self._session.get_inputs(), HEAD_INPUT, (None, size), who)
        check_port(self._session.get_outputs(), HEAD_OUTPUT, (None, classes), who)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, D) float32 to (B, K) float32."""
        return run_session(self._session, HEAD_INPUT, HEAD_OUTPUT, pooled_BD, self._name)


class OrtModel:
    """A model file in ONNX Runtime: on the CPU, or on a GPU through one of its providers.

    Any thread may call it at any time: ONNX Runtime's sessions allow it.

    Args:
        source: Path of a model file, or its bytes.
        kind: ``cpu``, ``cuda`` or ``tensorrt-ep``.
        threads: CPU threads of one run; small models gain nothing from more than one.

    Raises:
        ModelFileError: Not a model file, or one that does not do what its metadata says.
        BackendError: The provider is not installed, or did not take the model.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        kind: str = "cpu",
        threads: int = 1,
    ) -> None:
        """Load, check names and shapes, then check values on a probe."""
        check_threads(threads)
        self.kind = kind
        self.name, data = read_model(source)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.max_batch = self.max_mel_frames = UNBOUNDED
        if kind == "cpu":
            self._trunk = open_session(data, threads, self.name)
            self.info = read_model_info(self._trunk)
        else:
            self._open_on_gpu(data, threads)
        info = self.info
        who = f"{self.name}: the trunk"
        mel_shape = (None, 1, info.mel.n_mels, None)
        check_port(self._trunk.get_inputs(), TRUNK_INPUT, mel_shape, who)
        check_port(self._trunk.get_outputs(), TRUNK_OUTPUT, (None, info.channels, None), who)
        self._head = Head(read_head(self._trunk), info, threads, self.name)
        check_model(self, EXACT if kind == "cpu" else ON_GPU[info.precision])

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32."""
        if mel_BMT.shape[0] > self.max_batch or mel_BMT.shape[-1] > self.max_mel_frames:
            raise ModelFileError(
                f"{self.name}: {mel_BMT.shape} is outside what was asked of {self.kind}: at most "
                f"{self.max_batch} clips of {self.max_mel_frames} mel frames.",
                fix="Run fewer at once, or shorter ones.",
            )
        return run_session(self._trunk, TRUNK_INPUT, TRUNK_OUTPUT, mel_BMT, self.name)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head: (B, D) float32 to (B, K) float32."""
        return self._head.logits(pooled_BD)

    def close(self) -> None:
        """Nothing to free: ONNX Runtime does it with the object."""

    def _open_on_gpu(self, data: bytes, threads: int) -> None:
        # Imported here: what only a GPU needs must not cost a CPU its start-up time.
        from frami_edge_runtime.backends import providers

        providers.require(self.kind)
        # A TensorRT provider must know the shapes before it loads, and only the file tells them.
        self.info = read_model_info(open_session(data, threads, self.name, describe_only=True))
        if self.kind == "tensorrt-ep":
            self.max_batch = providers.PROFILE_BATCH
            self.max_mel_frames = providers.profile_mel_frames(self.info)
        wanted = providers.wanted(self.kind, self.info, self.sha256, self.name)
        try:
            # On a failure, ONNX Runtime prints to stdout, which may be carrying results.
            with contextlib.redirect_stdout(sys.stderr):
                self._trunk = open_session(data, threads, self.name, providers=wanted)
        except ModelFileError as error:
            raise providers.failed(self.kind, error.message) from None
        self._trunk.disable_fallback()
        providers.check_taken(self._trunk, self.kind, self.name)


def open_session(
    data: bytes,
    threads: int,
    name: str,
    *,
    providers: Providers = CPU,
    describe_only: bool = False,
) -> Any:
    """An ``onnxruntime.InferenceSession`` for a small device.

    Args:
        data: The ONNX file.
        threads: CPU threads of one run.
        name: For messages.
        providers: As ONNX Runtime takes them.
        describe_only: Skip all optimisation: the session is only asked for its metadata.

    Raises:
        ModelFileError: It cannot be loaded.
    """
    if _refers_elsewhere(data):
        # ONNX Runtime would look in the working folder, older ones anywhere.
        raise ModelFileError(f"{name} keeps weights in another file.", fix=EXPORT_AGAIN)
    # Imported here: reading a MelSpec must not cost the 80 ms that ONNX Runtime takes to load.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A spinning thread burns a core between two chunks of audio.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if providers is not CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if describe_only:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it would print, the error says
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {name}: {first_line(error)}",
            fix="The file is damaged, or needs a newer onnxruntime: pip install -U onnxruntime.",
        ) from None


def run_session(
    session: Any, feed: str, output: str, x: npt.NDArray[np.float32], name: str
) -> npt.NDArray[np.float32]:
    """One output of a session for one input.

    Raises:
        ModelFileError: ONNX Runtime failed; ``name`` is the model's.
    """
    try:
        result: npt.NDArray[np.float32] = session.run([output], {feed: x})[0]
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise ModelFileError(
            f"{name}: ONNX Runtime could not run it on {feed} {x.shape}: {first_line(error)}",
            fix=EXPORT_AGAIN,
        ) from None
    return result


def _refers_elsewhere(data: bytes) -> bool:
    """Whether a tensor has its data in another file: such a one has the key ``location``.

    In the wire format of protobuf a key is preceded by its tag, field 1, and its length, 8; both
    may be written in more bytes than they need.
    """
    at = data.find(_LOCATION)
    while at >= 0:
        if _LOCATION_KEY.search(data, max(0, at - 20), at):
            return True
        at = data.find(_LOCATION, at + 1)
    return False


def first_line(error: Exception) -> str:
    """What an exception says, cut to one short line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
