"""The dozen CUDA runtime calls that an engine needs, through ctypes: no pycuda, no torch.

Signatures: CUDA Runtime API, modules Memory, Stream, Device and Error Handling; all of them are the
same in CUDA 12 and 13. Only a call's returned code tells that it failed, so every one is checked.
"""

from __future__ import annotations

import ctypes
import glob
import os
import sys
from typing import Any, Final

from frami_edge_runtime.errors import BackendError, EngineError

TO_DEVICE: Final = 1
TO_HOST: Final = 2
_MAJOR: Final = 75
"""cudaDevAttrComputeCapabilityMajor; the minor is next."""
_LIBRARIES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_FOLDERS: Final = (
    "/usr/local/cuda/lib64",
    *(os.path.join(path, "nvidia", "*", "lib") for path in sys.path if path),  # pip's CUDA
)
_HANDLE = ctypes.c_void_p
_OUT = ctypes.POINTER(ctypes.c_void_p)
_INT_OUT = ctypes.POINTER(ctypes.c_int)
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cudaGetDeviceCount": (_INT_OUT,),
    "cudaDeviceGetAttribute": (_INT_OUT, ctypes.c_int, ctypes.c_int),
    "cudaMalloc": (_OUT, ctypes.c_size_t),
    "cudaFree": (_HANDLE,),
    "cudaHostAlloc": (_OUT, ctypes.c_size_t, ctypes.c_uint),
    "cudaFreeHost": (_HANDLE,),
    "cudaMemcpyAsync": (_HANDLE, _HANDLE, ctypes.c_size_t, ctypes.c_int, _HANDLE),
    "cudaStreamCreate": (_OUT,),
    "cudaStreamSynchronize": (_HANDLE,),
    "cudaStreamDestroy": (_HANDLE,),
}


class Cudart:
    """A loaded CUDA runtime with at least one GPU; calls work on device 0.

    Args:
        path: Of a libcudart; None searches where JetPack, CUDA's packages and pip put it.

    Raises:
        BackendError: There is no CUDA runtime, or no GPU that it can use.
    """

    def __init__(self, path: str | None = None) -> None:
        """Load the library and count the GPUs."""
        refusals = []
        for candidate in [path] if path else _candidates():
            try:
                self._library = _load(candidate)
                count = ctypes.c_int()
                self._call("cudaGetDeviceCount", ctypes.byref(count))
            except OSError:
                continue  # it is not there
            except AttributeError as error:
                refusals.append(str(error))
            except EngineError as error:
                # A newer libcudart than the driver says so; an older one may fit.
                refusals.append(f"{candidate}: {error.message.rstrip('.')}")
            else:
                if count.value > 0:
                    return
                refusals.append(f"{candidate}: it counts no GPU")
        reason = refusals[0] if refusals else f"{path or 'libcudart'} is not installed"
        raise BackendError(
            f"No usable CUDA runtime: {reason}.",
            fix="On a Jetson install nvidia-jetpack, elsewhere CUDA 12 or 13 and its driver; or "
            "run the .onnx file with backend='cpu'.",
        )

    def sm(self) -> str:
        """Compute capability of the GPU: ``8.7`` is Orin, ``11.0`` Thor."""
        values = []
        for attribute in (_MAJOR, _MAJOR + 1):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            values.append(value.value)
        return f"{values[0]}.{values[1]}"

    def malloc(self, size: int) -> int:
        """``size`` bytes on the device."""
        return self._make("cudaMalloc", size)

    def free(self, pointer: int) -> None:
        """Free what `malloc` gave."""
        self._call("cudaFree", pointer)

    def host_alloc(self, size: int) -> int:
        """``size`` bytes of page-locked host memory, which copies need to be asynchronous."""
        return self._make("cudaHostAlloc", size, 0)

    def free_host(self, pointer: int) -> None:
        """Free what `host_alloc` gave."""
        self._call("cudaFreeHost", pointer)

    def copy(self, target: int, source: int, size: int, direction: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes, `TO_DEVICE` or `TO_HOST`."""
        self._call("cudaMemcpyAsync", target, source, size, direction, stream)

    def stream(self) -> int:
        """A new stream."""
        return self._make("cudaStreamCreate")

    def synchronise(self, stream: int) -> None:
        """Wait for all that was queued."""
        self._call("cudaStreamSynchronize", stream)

    def destroy(self, stream: int) -> None:
        """End a stream."""
        self._call("cudaStreamDestroy", stream)

    def _make(self, name: str, *args: Any) -> int:
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *args)
        return made.value or 0

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self._library, name)(*args)
        if code:
            label, said = self._library.cudaGetErrorName(code), _text(self._library, code)
            shown = [a for a in args if isinstance(a, int)] if name.endswith("lloc") else []
            size = f" of {shown[0]} bytes" if shown else ""
            raise EngineError(
                f"{name}{size} failed: {(label or b'unknown').decode(errors='replace')} "
                f"({code}), {said.rstrip('.')}.",
                fix="Free GPU memory, or restart the process; nvidia-smi shows the driver.",
            )


def _candidates() -> list[str]:
    found = [*_LIBRARIES]
    for folder in _FOLDERS:
        found += sorted(glob.glob(os.path.join(folder, "libcudart.so*")), reverse=True)
    return found


def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    for name in ("cudaGetErrorName", "cudaGetErrorString"):
        function = getattr(library, name)
        function.argtypes, function.restype = (ctypes.c_int,), ctypes.c_char_p
    return library


def _text(library: ctypes.CDLL, code: int) -> str:
    said: bytes | None = library.cudaGetErrorString(code)
    return (said or b"no description").decode(errors="replace")
