"""The device's TensorRT, imported only when an engine is built."""

from __future__ import annotations

import importlib
from typing import Any, Final

from frami_edge_export.tensorrt.errors import ON_THE_DEVICE, TensorRTUnavailable

OLDEST: Final = (10, 3)
"""JetPack 6.1 and 6.2 have it; older ones know no strong typing and are not supported."""
STRONG_SINCE: Final = (10, 12)
"""From here on strong typing is complete; before, some graphs build in weak typing only."""


def load_tensorrt() -> Any:
    """The ``tensorrt`` module.

    Raises:
        TensorRTUnavailable: It is not installed, its libraries are missing, or it is too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise TensorRTUnavailable(
            f"TensorRT's Python package is not installed here (no module named {error.name}).",
            fix="On a Jetson JetPack brings it: make the environment with python3 -m venv "
            "--system-site-packages, never pip install tensorrt there. On a PC with an NVIDIA "
            f"GPU: pip install 'frami-edge-export[tensorrt]'. {ON_THE_DEVICE}",
        ) from None
    except (ImportError, OSError) as error:
        raise TensorRTUnavailable(
            f"TensorRT is installed, but cannot be loaded: {error}.",
            fix=f"Install the TensorRT libraries of the same version. {ON_THE_DEVICE}",
        ) from None
    found = version_tuple(trt)
    if found[:2] < OLDEST:
        raise TensorRTUnavailable(
            f"TensorRT {trt.__version__} is too old; 10.3 is the oldest supported.",
            fix="JetPack 6.1 or newer brings it. The ONNX files run in ONNX Runtime as they are.",
        )
    return trt


def version_tuple(trt: Any) -> tuple[int, ...]:
    """``tensorrt.__version__`` as numbers; what is no number ends it."""
    numbers: list[int] = []
    for part in str(trt.__version__).split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def no_driver(error: TypeError) -> TensorRTUnavailable:
    """What TensorRT's "factory function returned nullptr" means.

    The bindings raise it from every constructor that the library answers with NULL, which it does
    where CUDA cannot be initialised (NVIDIA/TensorRT#308, #2913).
    """
    return TensorRTUnavailable(
        f"TensorRT found no usable NVIDIA driver or GPU ({error}).",
        fix="Check nvidia-smi (on a PC) or that the user is in the groups video and render (on a "
        f"Jetson); in a container start it with --gpus all or --runtime nvidia. {ON_THE_DEVICE}",
    )
