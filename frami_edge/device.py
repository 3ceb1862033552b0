"""Where and in which precision a run computes, which of several processes it is, and its seeds."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from frami_edge.errors import ConfigError

Precision = Literal["auto", "bf16", "fp32"]

# x86 flags and the aarch64 feature that mean bfloat16 arithmetic in hardware.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_GROWTH = 2 << 30  # bytes
_held = 0


@dataclass(frozen=True)
class Compute:
    """What a run computes with.

    Attributes:
        device: The CPU or one CUDA device.
        dtype: Precision inside `autocast`; weights stay float32.
        reason: Why, for the user: one clause per decision.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_compute(requested: str = "auto", precision: Precision = "auto") -> Compute:
    """Decide device and precision.

    Nothing is compiled, because nearly every step has clips of another length.

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`; under torchrun `auto` and `cuda` take the GPU
            of the process's local rank.
        precision: `auto` takes bf16 wherever the hardware supports it.

    Raises:
        ConfigError: The device does not exist or does not support the precision.
    """
    device, why_device = _device(requested)
    if device.type == "cpu":
        _keep_memory()
    dtype, why_dtype = _dtype(device, precision)
    return Compute(device, dtype, f"{why_device}; {why_dtype}")


def _keep_memory() -> None:
    """Let the process keep the memory of large tensors for the next ones.

    glibc gives arrays above 32 MB back to the kernel at once, and the next one's pages are cleared
    again: up to 40 % of a network's time on a CPU.
    """
    _glibc("mallopt", _M_MMAP_THRESHOLD, 2**30)
    _glibc("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1)


def trim_memory() -> None:
    """Give what is free back to the kernel, where a run has grown by 2 GB since the last time.

    What `choose_compute` lets a process keep has holes, because clips have many lengths: ten
    batches of a tagger's preset took 8 GB, of which they needed 0.1. Small runs, which would lose
    5 % of their speed, do not grow so far.
    """
    global _held
    if _resident() > _held + _GROWTH:
        _glibc("malloc_trim", 0)
        _held = _resident()


def _resident() -> int:
    with contextlib.suppress(OSError):  # no Linux
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            getattr(ctypes.CDLL(None), function)(*arguments)


def _device(requested: str) -> tuple[torch.device, str]:
    kind, _, index = requested.partition(":")
    known = requested in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdecimal())
    if not known:
        raise ConfigError(
            f"The device '{requested}' is not known.", fix="Use auto, cpu, cuda or cuda:N."
        )
    if kind == "cpu":
        return torch.device("cpu"), "cpu, as requested"
    why_not = _no_cuda()
    if why_not and kind == "auto":
        return torch.device("cpu"), f"cpu, because {why_not}"
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if not why_not and number >= torch.cuda.device_count():
        why_not = f"there are {torch.cuda.device_count()} CUDA devices"
    if why_not:
        raise ConfigError(
            f"The device '{requested}' is not available: {why_not}.",
            fix="Use --device cpu, or a GPU that `nvidia-smi` shows.",
        )
    why = "as requested" if kind == "cuda" else "because it is available"
    name = torch.cuda.get_device_name(number)
    return torch.device("cuda", number), f"cuda:{number} ({name}), {why}"


def _no_cuda() -> str:
    """Why CUDA cannot be used, or an empty string."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    # An old driver is reported as a warning, which is the reason to show.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available() and torch.cuda.device_count() > 0:
            return ""
    if caught:
        return str(caught[0].message).strip().splitlines()[0].rstrip(".")
    return "torch finds no CUDA device"


def _dtype(device: torch.device, precision: Precision) -> tuple[torch.dtype, str]:
    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"The precision '{precision}' is not known.", fix="Use auto, bf16, fp32.")
    if precision == "fp32":
        return torch.float32, "fp32, as requested"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        native, what = major >= 8, f"compute capability {major}.{minor}"
    else:
        flag = cpu_bf16_flag()
        native, what = bool(flag), flag or "a CPU without bf16 arithmetic"
    if precision == "bf16" and device.type == "cuda" and not native:
        raise ConfigError(
            f"bf16 was requested, but a GPU of {what} has none (8.0 is the first).",
            fix="Use --precision fp32.",
        )
    if precision == "bf16":
        return torch.bfloat16, f"bf16, as requested ({what})"
    if native:
        return torch.bfloat16, f"bf16 autocast, because the hardware has it ({what})"
    return torch.float32, f"fp32, because of {what}"


def cpu_bf16_flag(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU feature that computes in bfloat16, from Linux's `cpuinfo`; "" where there is none."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return next((flag for flag in _BF16_FLAGS if flag in value.split()), "")
    return ""


def autocast(
    compute: Compute, *, enabled: bool = True
) -> contextlib.AbstractContextManager[object]:
    """The chosen precision inside the block; nothing changes where it is float32."""
    enabled = enabled and compute.dtype != torch.float32
    return torch.autocast(compute.device.type, dtype=compute.dtype, enabled=enabled)


def place(module: torch.nn.Module, compute: Compute) -> None:
    """Move a network to the device of a run, in channels-last layout.

    That was measured to be 1.1 to 1.4 times faster on two AMX cores, forward and backward of small
    CNNs. On a CPU, a network with a strided 1x1 convolution of fewer than 16 input channels keeps
    torch's default layout: with channels last, oneDNN 3.12, the convolution library of torch
    2.14.1, writes past a buffer in the fp32 weight gradient, which crashes the run or corrupts
    other tensors (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    module.to(compute.device)
    overflows = compute.device.type == "cpu" and any(
        isinstance(m, torch.nn.Conv2d)
        and m.kernel_size == (1, 1)
        and max(m.stride) > 1
        and m.in_channels < 16
        for m in module.modules()
    )
    if not overflows:
        module.to(memory_format=torch.channels_last)


def fused(compute: Compute) -> bool:
    """Whether an optimiser is one kernel. On a CPU torch's default loops over the parameters."""
    return compute.device.type == "cpu"


def read_every(compute: Compute) -> int:
    """Steps between two reads of the losses: on a GPU each read is a host sync."""
    return 1 if compute.device.type == "cpu" else 20


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device of a run; to a GPU through pinned memory, without a host sync."""
    if device.type == "cpu" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def set_seed(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, for everything random that does not use a `generator`.

    `deterministic` prefers kernels that give the same bits on every run. They are slower; torch
    warns of operations that have none.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic


def generator(seed: int, name: str) -> torch.Generator:
    """A random stream of its own: the same for the same seed and name, independent of all others.

    It is on the CPU, so a run draws the same numbers on every device, and drawing more in one
    place changes nothing elsewhere.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def named_seed(seed: int, name: str) -> int:
    """A seed of its own for each use."""
    return generator(seed, name).initial_seed()


def world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torchrun.

    The first call joins the group that torchrun describes in the environment.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def rank_seed(seed: int, rank: int) -> int:
    """Seed of one process: rank 0 has the seed of a run without torchrun."""
    return named_seed(seed, f"rank/{rank}") if rank else seed
