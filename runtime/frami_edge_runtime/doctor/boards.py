"""Small boards: Jetsons with JetPack and power mode, Raspberry Pis with their supply."""

from __future__ import annotations

import re
from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.jetpack import MODEL, RELEASE, is_jetson, jetpack
from frami_edge_runtime.doctor.machine import Machine

_GPU_NODES: Final = ("dev/nvmap", "dev/nvhost-gpu", "dev/dri/renderD128")
_UNDER_VOLTAGE: Final = 0x1 | 0x10000  # now, since boot
_THROTTLED: Final = 0x2 | 0x4 | 0x8 | 0x20000 | 0x40000 | 0x80000


def board(machine: Machine) -> list[Check]:
    """What this board is; nothing for a PC."""
    if is_jetson(machine):
        return _jetson(machine)
    if machine.text(MODEL).startswith("Raspberry Pi"):
        return _raspberry_pi(machine)
    return []


def _jetson(machine: Machine) -> list[Check]:
    name = machine.text(MODEL) or "a Jetson"
    found = jetpack(machine)
    if found is None:
        return [
            Check(
                "JetPack", "warn", f"{name}; /{RELEASE} cannot be read",
                "In a container mount it: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro",
            )
        ]  # fmt: skip
    parts = f"CUDA {found.cuda}, TensorRT {found.tensorrt or 'unknown'}"
    text = f"{found.version or 'unknown'} (L4T {found.l4t}: {parts}) on {name}"
    if not found.version:
        text = f"L4T {found.l4t}, newer than this table, on {name}"
        lines = [Check("JetPack", "ok", text)]
    elif found.engines:
        lines = [Check("JetPack", "ok", text)]
    else:
        lines = [
            Check(
                "JetPack", "warn", f"{text}: its TensorRT is too old for our engines",
                "Flash JetPack 6.1 or newer, or run the .onnx files with backend='cpu'.",
            )
        ]  # fmt: skip
    return [*lines, *_power(machine), *_gpu_nodes(machine)]


def _power(machine: Machine) -> list[Check]:
    answer = machine.command("nvpmodel", "-q", limit_s=3)
    mode = re.search(r"NV Power Mode\s*:\s*(\S+)", answer.out)
    if mode is None:
        return []
    text = f"{mode[1]}; clocks follow the load"
    how = "For steady timings: sudo nvpmodel -m 0 && sudo jetson_clocks"
    return [Check("power mode", "ok", text, how)]


def _gpu_nodes(machine: Machine) -> list[Check]:
    closed = [node for node in _GPU_NODES if machine.exists(node) and not machine.usable(node)]
    if not closed:
        return []
    return [
        Check(
            "access to the GPU", "warn",
            f"this user may not use {', '.join('/' + node for node in closed)}",
            "sudo usermod -aG video,render $USER, then log in again",
        )
    ]  # fmt: skip


def _raspberry_pi(machine: Machine) -> list[Check]:
    name = machine.text(MODEL)
    if machine.arch not in ("aarch64", "arm64"):
        return [
            Check(
                "board", "fail", f"{name} with a 32-bit system ({machine.arch}): onnxruntime has "
                "no packages for it", "Install the 64-bit Raspberry Pi OS.", needed=True,
            )
        ]  # fmt: skip
    lines = [Check("board", "ok", f"{name}, {machine.arch}")]
    answer = machine.command("vcgencmd", "get_throttled", limit_s=3)
    flags = re.search(r"throttled=0x([0-9a-fA-F]+)", answer.out)
    if flags is None:
        return lines
    bits = int(flags[1], 16)
    if bits & _UNDER_VOLTAGE:
        lines.append(
            Check("power supply", "warn", f"under-voltage was seen (0x{bits:x}): it slows down",
                  "Use the official supply of this board, and a short cable.")
        )  # fmt: skip
    elif bits & _THROTTLED:
        lines.append(
            Check("cooling", "warn", f"the CPU was slowed down by heat (0x{bits:x})",
                  "Add a heat sink or a fan before you measure.")
        )  # fmt: skip
    else:
        lines.append(Check("power and cooling", "ok", "never slowed down since it was started"))
    return lines
