"""ONNX Runtime's GPU providers: their options, and the proof that they took the model.

ONNX Runtime falls back to the CPU without an error when a provider cannot start. A session that
was asked for a GPU is therefore asked afterwards where its nodes went.
No GPU has run this yet: tests drive it with recorded sessions, see docs/JETPACK.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from frami_edge_runtime.backends.ort import Providers
from frami_edge_runtime.errors import BackendError
from frami_edge_runtime.modelfile import TRUNK_INPUT, ModelInfo
from frami_edge_runtime.trunk import LONGEST_RUN

PROVIDERS: Final = {"cuda": "CUDAExecutionProvider", "tensorrt-ep": "TensorrtExecutionProvider"}
PROFILE_BATCH: Final = 32
"""Most streams that the TensorRT provider's engine takes in one run."""
_WORKSPACE_BYTES: Final = 256 << 20
_GPU_FIX: Final = (
    "Install the GPU build in its place: pip uninstall onnxruntime, pip install onnxruntime-gpu; "
    "on a Jetson NVIDIA's own wheel, see docs/JETPACK.md. Or use backend='cpu'."
)


def require(kind: str) -> None:
    """Check that the installed ONNX Runtime has the provider.

    Raises:
        BackendError: It has not; the message lists those that it has.
    """
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if PROVIDERS[kind] not in present:
        raise BackendError(
            f"backend={kind!r} needs ONNX Runtime's {PROVIDERS[kind]}; the installed onnxruntime "
            f"{onnxruntime.__version__} has {', '.join(present)}.",
            fix=_GPU_FIX,
        )


def profile_mel_frames(info: ModelInfo) -> int:
    """Mel frames of the longest run of a stream: the end of the engine's profile."""
    return info.receptive_field + (LONGEST_RUN - 1) * info.stride


def wanted(kind: str, info: ModelInfo, sha256: str, name: str) -> Providers:
    """The providers to ask for, every option that matters stated.

    Raises:
        BackendError: The model's int8 is not TensorRT's, or there is no place for its engine cache.
    """
    cuda = (PROVIDERS["cuda"], _cuda_options())
    if kind == "cuda":
        return (cuda, "CPUExecutionProvider")
    flavour = str((info.quantisation or {}).get("flavour", ""))
    if flavour.startswith("U8"):
        raise BackendError(
            f"{name} is quantised as {flavour}, which TensorRT would read as other numbers.",
            fix="Use the int8.trt file of the same export, or the fp32 one.",
        )
    return ((PROVIDERS[kind], _tensorrt_options(info, sha256)), cuda, "CPUExecutionProvider")


def check_taken(session: Any, kind: str, name: str) -> None:
    """Check that the provider really runs the model.

    Raises:
        BackendError: ONNX Runtime fell back, or left convolutions to another provider.
    """
    provider, running = PROVIDERS[kind], list(session.get_providers())
    if provider not in running:
        raise failed(kind, f"{name} would run on {', '.join(running)}")
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return  # older ones, such as 1.23, do not tell more
    strays = {
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != provider and node.op_type == "Conv"
    }
    if strays:
        where = ", ".join(sorted({ep for ep, _ in strays}))
        raise BackendError(
            f"{name}: {provider} left convolutions to {where}: it cannot run this model.",
            fix="Use the fp32 file of the same export, or backend='cpu'.",
        )


def failed(kind: str, what: str) -> BackendError:
    """The error for a provider that is installed and did not start."""
    return BackendError(
        f"ONNX Runtime could not start its {PROVIDERS[kind]}: {what.rstrip('.')}.",
        fix="CUDA, cuDNN or TensorRT is missing or of another version than this onnxruntime was "
        "built for, or there is no GPU: see docs/JETPACK.md, or use backend='cpu'.",
    )


def _cuda_options() -> dict[str, str]:
    return {
        "device_id": "0",
        # The default tries every algorithm for each new length: seconds, and other bits each time.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",  # 10 bits of mantissa would break the parity that the export proved
        "arena_extend_strategy": "kSameAsRequested",  # a Jetson's GPU shares its memory
    }


def _tensorrt_options(info: ModelInfo, sha256: str) -> dict[str, str]:
    bands, field = info.mel.n_mels, info.receptive_field
    longest = profile_mel_frames(info)
    usual = (field + longest) // 2
    cache = str(_cache_folder())
    return {
        "device_id": "0",
        "trt_max_workspace_size": str(_WORKSPACE_BYTES),
        "trt_fp16_enable": "False",
        # Explicit Q/DQ still needs the flag where networks are weakly typed, up to TensorRT 10.
        "trt_int8_enable": str(info.precision == "int8"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": cache,
        # The provider's own key leaves the weights out: two students would share an engine.
        "trt_engine_cache_prefix": f"frami_{sha256[:16]}",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": cache,
        "trt_profile_min_shapes": f"{TRUNK_INPUT}:1x1x{bands}x{field}",
        "trt_profile_opt_shapes": f"{TRUNK_INPUT}:1x1x{bands}x{usual}",
        "trt_profile_max_shapes": f"{TRUNK_INPUT}:{PROFILE_BATCH}x1x{bands}x{longest}",
    }


def _cache_folder() -> Path:
    import onnxruntime

    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # An engine of another TensorRT must not be found, and ONNX Runtime's version decides that one.
    folder = Path(base) / "frami-edge" / f"onnxruntime-{onnxruntime.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"Cannot make the engine cache {folder}: {error.strerror}.",
            fix="Set XDG_CACHE_HOME to a folder that can be written to.",
        ) from None
    return folder
