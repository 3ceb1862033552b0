"""A TensorRT engine without ONNX Runtime's provider: the bindings and libcudart, no more.

No GPU has run this yet: tests drive it with fakes of libcudart and of the bindings, and the names
that it uses are compared with the real bindings; see docs/JETPACK.md.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.backends.checks import ON_GPU, check_model, check_threads
from frami_edge_runtime.backends.cudart import Cudart
from frami_edge_runtime.backends.ort import Head
from frami_edge_runtime.backends.runner import EngineRunner
from frami_edge_runtime.backends.source import read_model
from frami_edge_runtime.enginefile import (
    check_content,
    check_loadable,
    read_plan_version,
    read_sidecar,
)
from frami_edge_runtime.errors import BackendError, EngineError


class EngineModel:
    """An engine file with its sidecar, on GPU 0.

    Any thread may call it: runs wait for each other, since they share their buffers.

    Args:
        path: The engine file; its sidecar lies beside it.
        threads: CPU threads of the head.

    Raises:
        EngineError: The engine or its sidecar is missing, damaged, or built for another machine.
        BackendError: TensorRT, CUDA or a GPU is missing here.
    """

    kind = "tensorrt"

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        """Check the files, then the machine; only then load, allocate and probe."""
        check_threads(threads)
        if isinstance(path, bytes):
            raise EngineError(
                "An engine cannot be given as bytes: what it hears is said in its sidecar.",
                fix="Pass the path of the .engine file, its .engine.json beside it.",
            )
        self.name = Path(path).name
        plan_version = read_plan_version(path)
        self.card = card = read_sidecar(path)
        _, plan = read_model(path)
        check_content(card, plan, self.name)
        self.info = card.info
        self.sha256 = card.engine_sha256
        self.max_batch, _, _, self.max_mel_frames = card.profile["max"]
        trt, cudart = _import_tensorrt(), Cudart()
        check_loadable(card, plan_version, trt.__version__, cudart.sm(), self.name)
        self._head = Head(card.head, self.info, threads, self.name)
        self._runner = EngineRunner(trt, cudart, plan, card, self.name)
        try:
            check_model(self, ON_GPU[card.precision])
        except BaseException:
            self.close()
            raise

    def frames(self, mel_BMT: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the trunk: (B, 1, M, T) float32, T >= receptive field, to (B, C, T') float32.

        Raises:
            EngineError: The shape is outside the profile, the engine failed, or it was closed.
        """
        return self._runner.run(mel_BMT)

    def logits(self, pooled_BD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the head on the CPU: (B, D) float32 to (B, K) float32."""
        return self._head.logits(pooled_BD)

    def close(self) -> None:
        """Free the GPU's memory; the model cannot be run any more."""
        self._runner.close()

    def __del__(self) -> None:
        """Free what nobody closed."""
        if hasattr(self, "_runner"):
            self.close()


def _import_tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendError(
            f"backend='tensorrt' needs TensorRT's Python bindings: {error}.",
            fix="On a Jetson they come with JetPack: make the venv with --system-site-packages and "
            "never pip install tensorrt there. Elsewhere install NVIDIA's tensorrt package.",
        ) from None
