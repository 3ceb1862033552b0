"""ONNX Runtime on the CPU, set up for small devices, with its errors in plain words.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._strict_json import EXPORT_AGAIN
from frami_edge_runtime.backends.protocol import UNBOUNDED
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.modelfile import (
    HEAD_INPUT,
    HEAD_KEY,
    HEAD_OUTPUT,
    METADATA_KEY,
    TRUNK_INPUT,
    TRUNK_OUTPUT,
    ModelInfo,
    read_head,
    read_model_info,
)

MAX_FILE_BYTES: Final = 1 << 29
_PROBE_TOLERANCE = 1e-3


class CpuModel:
    """Trunk and head of one model file, each in its ONNX Runtime session.

    Args:
        source: Path of a model file, or its bytes.
        threads: CPU threads of one run; small models gain nothing from more than one.

    Raises:
        ModelFileError: Not a model file, or one that does not do what its metadata says.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, *, threads: int = 1) -> None:
        """Load, check names and shapes, then check values on a probe."""
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256:
            raise ModelFileError(f"threads must lie in 1..256, not {threads!r}.", fix="Use 1.")
        self.name, data = _read(source)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._trunk = _open(data, threads, self.name)
        self.info: ModelInfo = read_model_info(self._trunk)
        self._head = _open(read_head(self._trunk), threads, f"{self.name}, {HEAD_KEY}")
        info = self.info
        bands, size, classes = info.mel.n_mels, info.pooled_size, len(info.labels)
        trunk, head = f"{self.name}: the trunk", f"{self.name}: the head"
        _check_port(self._trunk.get_inputs(), TRUNK_INPUT, (None, 1, bands, None), trunk)
        _check_port(self._trunk.get_outputs(), TRUNK_OUTPUT, (None, info.channels, None), trunk)
        _check_port(self._head.get_inputs(), HEAD_INPUT, (None, size), head)
        _check_port(self._head.get_outputs(), HEAD_OUTPUT, (None, classes), head)
        self._probe()

    @property
    def max_batch(self) -> int:
        """Any number of streams can be batched."""
        return UNBOUNDED

    @property
    def max_mel_frames(self) -> int:
        """Runs may be of any length."""
        return UNBOUNDED

    def close(self) -> None:
        """Nothing to free: ONNX Runtime does it with the object."""

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32."""
        return self._run(self._trunk, TRUNK_OUTPUT, TRUNK_INPUT, mel_BMT)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head: (B, D) float32 to (B, K) float32."""
        return self._run(self._head, HEAD_OUTPUT, HEAD_INPUT, pooled_BD)

    def _run(
        self, session: Any, output: str, name: str, x: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        try:
            result: npt.NDArray[np.float32] = session.run([output], {name: x})[0]
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ModelFileError(
                f"{self.name}: ONNX Runtime could not run it on {name} {x.shape}: {_first(error)}",
                fix=EXPORT_AGAIN,
            ) from None
        return result

    def _probe(self) -> None:
        """Two frames at once must equal the same two one by one: else nothing could be streamed."""
        info = self.info
        rng = np.random.default_rng(0)
        mel = rng.standard_normal((1, 1, info.mel.n_mels, info.receptive_field + info.stride))
        mel_BMT = mel.astype(np.float32)
        both = self.frames(mel_BMT)
        # One mel frame less than two trunk frames need: an overstated receptive field shows here.
        first = self.frames(np.ascontiguousarray(mel_BMT[..., :-1]))
        if [both.shape, first.shape] != [(1, info.channels, 2), (1, info.channels, 1)]:
            raise ModelFileError(
                f"{self.name}: {METADATA_KEY} says receptive_field {info.receptive_field}, stride "
                f"{info.stride}, channels {info.channels}, but {mel_BMT.shape[3]} mel frames give "
                f"{both.shape} and {mel_BMT.shape[3] - 1} give {first.shape}.",
                fix=EXPORT_AGAIN,
            )
        second = self.frames(np.ascontiguousarray(mel_BMT[..., info.stride :]))
        one_by_one = np.concatenate([first, second], axis=2)
        if not np.allclose(both, one_by_one, rtol=_PROBE_TOLERANCE, atol=_PROBE_TOLERANCE):
            raise ModelFileError(
                f"{self.name}: a trunk frame is not a function of its {info.receptive_field} mel "
                f"frames, so a stream could not equal the whole clip.",
                fix="Train the student without padding, normalisation or attention along time.",
            )
        if self.logits(np.zeros((1, info.pooled_size), np.float32)).shape != (1, len(info.labels)):
            raise ModelFileError(
                f"{self.name}: the head does not give {len(info.labels)} logits.", fix=EXPORT_AGAIN
            )


def _read(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "model bytes", source
    if not isinstance(source, (str, os.PathLike)):
        raise ModelFileError(
            f"A model is a path or bytes, not {type(source).__name__}.", fix="Pass its path."
        )
    path = Path(source)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path} takes {size} bytes; at most {MAX_FILE_BYTES} are read.",
                fix="Check that this is a model of frami-edge export.",
            )
        return path.name, path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelFileError(
            f"Cannot read the model {path}: {reason}.",
            fix="Give the path of an .onnx file that frami-edge export wrote.",
        ) from None


def _open(data: bytes, threads: int, name: str) -> Any:
    # Imported here: reading a MelSpec must not cost the 80 ms that ONNX Runtime takes to load.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A spinning thread burns a core between two chunks of audio.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # what it would print, the error says
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {name}: {_first(error)}",
            fix="The file is damaged, or needs a newer onnxruntime: pip install -U onnxruntime.",
        ) from None


def _check_port(ports: Sequence[Any], name: str, shape: tuple[int | None, ...], who: str) -> None:
    found = ", ".join(f"{p.name} {p.type} {list(p.shape)}" for p in ports)[:300]
    fits = len(ports) == 1 and ports[0].name == name and ports[0].type == "tensor(float)"
    fits = fits and len(ports[0].shape) == len(shape)
    # A dimension without a fixed size is a name or None; where it must be dynamic it has to be one.
    fits = fits and all(
        not isinstance(n, int) if wanted is None else n == wanted or not isinstance(n, int)
        for n, wanted in zip(ports[0].shape, shape, strict=True)
    )
    if not fits:
        dims = ["dynamic" if n is None else n for n in shape]
        raise ModelFileError(
            f"{who} must have {name} as float32 {dims}, not {found or 'nothing'}.",
            fix=EXPORT_AGAIN,
        )


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
