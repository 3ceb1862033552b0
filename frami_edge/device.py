"""Where and in which precision a run computes, with the reason in words; and its seeds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from frami_edge.errors import ConfigError

Precision = Literal["auto", "bf16", "fp32"]

# x86 flags and the aarch64 feature that mean bfloat16 arithmetic in hardware.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True)
class Compute:
    """What a run computes with.

    Attributes:
        device: A CPU or one CUDA device.
        dtype: Of `autocast`; weights stay float32.
        channels_last: Whether 2-D convolutions store channels innermost.
        reason: Why, for the user: one clause for each decision.
    """

    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    reason: str


def choose_compute(requested: str = "auto", precision: Precision = "auto") -> Compute:
    """Decide device, precision and memory layout.

    Nothing is compiled: nearly every step has clips of another length (`docs/SCALE.md`).

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto` takes bf16 wherever the hardware has it.

    Raises:
        ConfigError: The device is not there, or cannot do what was asked for.
    """
    device, why_device = _device(requested)
    dtype, why_dtype = _dtype(device, precision)
    # Measured on two AMX cores, forward and backward of small CNNs: 1.1 to 1.4 times faster.
    why_layout = "channels last, the layout that convolution kernels prefer"
    reason = "; ".join([why_device, why_dtype, why_layout])
    return Compute(device, dtype, channels_last=True, reason=reason)


def autocast(compute: Compute) -> contextlib.AbstractContextManager[object]:
    """The chosen precision inside the block; nothing changes where it is float32."""
    enabled = compute.dtype != torch.float32
    return torch.autocast(compute.device.type, dtype=compute.dtype, enabled=enabled)


READ_EVERY = 20
"""Steps between two looks at the losses on a GPU; looking makes the host wait for the device."""


def read_every(compute: Compute) -> int:
    """After how many steps the losses are read; at once on a CPU, where nothing waits."""
    return 1 if compute.device.type == "cpu" else READ_EVERY


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device of a run; on a GPU through pinned memory, so that nobody waits for it."""
    if device.type == "cpu" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def set_seed(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, which decide whatever does not use a `generator`.

    Args:
        seed: Any integer.
        deterministic: Prefer kernels that give the same bits on every run. They are slower; where
            torch has none it warns and names the operation.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic


def generator(seed: int, name: str) -> torch.Generator:
    """A stream of chance of its own: the same for the same seed and name, unrelated to all others.

    It lives on the CPU, so a run draws the same numbers on every device, and drawing more in one
    place moves nothing elsewhere.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _device(requested: str) -> tuple[torch.device, str]:
    kind, _, index = requested.partition(":")
    well_formed = kind in ("auto", "cpu", "cuda") and (not index or index.isdecimal())
    if not well_formed or (index and kind != "cuda") or requested.endswith(":"):
        raise ConfigError(
            f"The device '{requested}' is not known.", fix="Use auto, cpu, cuda or cuda:N."
        )
    if kind == "cpu":
        return torch.device("cpu"), "cpu, as asked"
    available, why_not = _cuda()
    if not available:
        if kind == "auto":
            return torch.device("cpu"), f"cpu, because {why_not}"
        raise ConfigError(
            f"The device '{requested}' is not there: {why_not}.",
            fix="Use --device cpu, or run where `nvidia-smi` shows a GPU.",
        )
    count = torch.cuda.device_count()
    number = int(index or 0)
    if number >= count:
        raise ConfigError(
            f"The device '{requested}' is not there: this machine has {count} CUDA device(s).",
            fix=f"Use cuda:0 to cuda:{count - 1}." if count > 1 else "Use --device cuda.",
        )
    why = "as asked" if kind == "cuda" else "because it is there"
    name = torch.cuda.get_device_name(number)
    return torch.device("cuda", number), f"cuda:{number} ({name}), {why}"


def _cuda() -> tuple[bool, str]:
    if torch.version.cuda is None:
        return False, "this torch was built without CUDA"
    # An old driver is reported as a warning, which is the reason to show.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available() and torch.cuda.device_count() > 0
    if available:
        return True, ""
    if caught:
        return False, str(caught[0].message).strip().splitlines()[0].rstrip(".")
    return False, "torch finds no CUDA device"


def _dtype(device: torch.device, precision: Precision) -> tuple[torch.dtype, str]:
    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"The precision '{precision}' is not known.", fix="Use auto, bf16, fp32.")
    if precision == "fp32":
        return torch.float32, "fp32, as asked"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        native, what = major >= 8, f"compute capability {major}.{minor}"
        if precision == "bf16" and not native:
            raise ConfigError(
                f"bf16 was asked for, but {what} is below 8.0 and has none.",
                fix="Use --precision fp32.",
            )
    else:
        flag = cpu_bf16_flag()
        native, what = bool(flag), flag or "a CPU without bf16 arithmetic"
    if precision == "bf16":
        return torch.bfloat16, f"bf16, as asked ({what})"
    if native:
        return torch.bfloat16, f"bf16 autocast, because the hardware has it ({what})"
    return torch.float32, f"fp32, because of {what}"


def cpu_bf16_flag(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU feature that computes in bfloat16, or an empty string; Linux tells in `cpuinfo`."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            return next((flag for flag in _BF16_FLAGS if flag in flags), "")
    return ""
