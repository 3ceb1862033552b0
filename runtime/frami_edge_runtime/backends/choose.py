"""Which backend runs a model, and why.

A further backend is one file in this folder: ``NAME.py`` with ``open_model(source, *, threads)``
that gives a `Backend`. It is chosen by its name alone, never by ``auto``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Final

from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.backends.source import is_engine
from frami_edge_runtime.errors import BackendError

BACKENDS: Final = ("auto", "cpu", "cuda", "tensorrt-ep", "tensorrt")
"""Those that come with the runtime."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def choose_backend(
    source: str | os.PathLike[str] | bytes, backend: str = "auto"
) -> tuple[str, str]:
    """The backend's name, and the reason in one sentence.

    ``auto`` means an engine for TensorRT and everything else for the CPU: a student has 12 k to
    350 k parameters, a run takes 0.1 to 1 ms on one core, and a GPU spends about as much on copies
    and kernel launches alone. What serves many streams, or larger models, should measure and say.

    Raises:
        BackendError: It is unknown, or cannot run that kind of file.
        ModelFileError: The source is neither a path nor bytes.
    """
    if backend not in BACKENDS and _further(backend) is None:
        raise BackendError(
            f"backend {backend!r} is unknown.", fix=f"Use one of {', '.join(BACKENDS)}."
        )
    if backend not in BACKENDS:
        return backend, "it was asked for"
    engine = is_engine(source)
    if engine and backend not in ("auto", "tensorrt"):
        raise BackendError(
            f"A TensorRT engine cannot run on backend={backend!r}.",
            fix="Give the .onnx file, or use backend='tensorrt'.",
        )
    if not engine and backend == "tensorrt":
        raise BackendError(
            "backend='tensorrt' runs engine files, and this is none.",
            fix="Build one on the device: frami-edge export --tensorrt; or use 'tensorrt-ep'.",
        )
    if backend != "auto":
        return backend, "it was asked for"
    if engine:
        return "tensorrt", "the model is a TensorRT engine"
    return "cpu", "below a million parameters one CPU core beats a GPU's launch latency"


def open_backend(
    source: str | os.PathLike[str] | bytes, backend: str = "auto", *, threads: int = 1
) -> Backend:
    """Load a model into the backend that `choose_backend` names.

    Args:
        source: Path of an ``.onnx`` or ``.engine`` file, or the bytes of an ONNX file.
        backend: One of `BACKENDS`, or a further one by the name of its file.
        threads: CPU threads of one run; small models gain nothing from more than one.

    Raises:
        ModelFileError: The file is missing, damaged, of another schema, or not such a model.
        EngineError: Likewise for an engine, or it was built for another machine.
        BackendError: The backend is unknown, not installed, or has no device here.
    """
    kind, _ = choose_backend(source, backend)
    further = None if kind in BACKENDS else _further(kind)
    if further is not None:
        return further(source, threads=threads)
    # Imported here: a device pays start-up time only for what it uses.
    if kind == "tensorrt":
        from frami_edge_runtime.backends.engine import EngineModel

        return EngineModel(source, threads=threads)  # type: ignore[arg-type]  # it refuses bytes
    from frami_edge_runtime.backends.ort import OrtModel

    return OrtModel(source, kind=kind, threads=threads)


def _further(name: str) -> Callable[..., Backend] | None:
    """`open_model` of a backend that is a file in this folder, or None."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    module = f"{__package__}.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    found: Callable[..., Backend] | None = getattr(
        importlib.import_module(module), "open_model", None
    )
    return found
