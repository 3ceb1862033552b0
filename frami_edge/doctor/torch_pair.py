"""torch and torchaudio: they must load together, and torch must be able to use the GPU.

Both are imported in a child process, which tells each step as it goes: what hangs or crashes is
named. Driver minima: NVIDIA's CUDA compatibility guide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from frami_edge.doctor.packages import command, requirements
from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.gpu import Gpus, gpus
from frami_edge_runtime.doctor.machine import Machine, Told

IMPORT_LIMIT_S: Final = 60.0
"""Five gigabytes of libraries on a cold disk or a busy machine; 2 to 4 s where they are warm."""
CUDA_LIMIT_S: Final = 6.0
_OLDEST_DRIVER: Final = {11: "450", 12: "525", 13: "580"}
"""By CUDA's major version."""
_ASK: Final = """
import torch
say(torch=torch.__version__, cuda=torch.version.cuda, rocm=torch.version.hip)
say(stage="torchaudio")
import torchaudio
say(torchaudio=torchaudio.__version__)
torchaudio.functional.melscale_fbanks(129, 0.0, 4000.0, 16, 8000)
say(stage="done")
"""
_ASK_CUDA: Final = """
import warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    say(available=bool(torch.cuda.is_available()))
say(warnings=[str(w.message).strip().splitlines()[0] for w in caught])
say(archs=torch.cuda.get_arch_list())
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        say(**{f"gpu{i}": [p.name, f"{p.major}.{p.minor}", int(p.total_memory)]})
    x = torch.ones(64, 64, device="cuda")
    say(sum=float((x @ x).sum()))
"""


def torch_pair(machine: Machine) -> list[Check]:
    """A line on torch, one on torchaudio."""
    told = machine.ask("torch", _ASK, IMPORT_LIMIT_S)
    fix = _reinstall()
    if not told["torch"]:
        what = told.trouble or "it told no version"
        if told.error == "ModuleNotFoundError" and machine.version("torch") is None:
            what = "not installed"
        elif "did not end" in what:
            what = f"`import torch` did not end within {IMPORT_LIMIT_S:g} s"
        return [Check("torch", "fail", what, fix, needed=True)]
    built = f"built for CUDA {told['cuda']}" if told["cuda"] else "built without CUDA"
    if told["rocm"]:
        built = f"built for ROCm {told['rocm']}"
    lines = [Check("torch", "ok", f"{told['torch']}, {built}", needed=True)]
    if told["stage"] == "done" and not told.trouble:
        text = f"{told['torchaudio']}, loads with this torch"
        return [*lines, Check("torchaudio", "ok", text, needed=True)]
    return [*lines, Check("torchaudio", "fail", _mismatch(machine, told), fix, needed=True)]


def torch_cuda(machine: Machine) -> list[Check]:
    """Whether torch computes on the GPU; silent where the driver knows of none."""
    known = gpus(machine)
    if not known.found:
        return []  # its own line says why
    told = machine.ask("torch-cuda", _ASK_CUDA, CUDA_LIMIT_S + IMPORT_LIMIT_S)
    if told["sum"] is not None:
        return _usable(told)
    if told["available"] is None:
        if told.error in ("ModuleNotFoundError", "ImportError"):
            return []  # torch's own line says it
        what = told.trouble or "torch told nothing"
        fix = "nvidia-smi shows what holds the GPU; restart, or add --device cpu."
        return [Check("torch on the GPU", "warn", what, fix)]
    return [_unusable(machine, known, told)]


def _reinstall() -> str:
    """The pair by its ranges; both, so that pip takes them from one place."""
    wanted = requirements()
    pair = [wanted[name] for name in ("torch", "torchaudio") if name in wanted]
    return f"pip install --force-reinstall {' '.join(map(command, pair))}"


def _mismatch(machine: Machine, told: Told) -> str:
    if told.error == "ModuleNotFoundError" and machine.version("torchaudio") is None:
        return "not installed"
    version = told["torchaudio"] or machine.version("torchaudio") or "of an unknown version"
    return f"{version} does not load beside torch {told['torch']}: {told.trouble}"


def _usable(told: Told) -> list[Check]:
    lines = []
    for i in range(64):
        one: Sequence[Any] | None = told[f"gpu{i}"]
        if one is None:
            break
        name, sm, memory = one
        bf16 = "bf16" if float(sm) >= 8.0 else "no bf16, runs take fp32"
        text = f"cuda:{i} {name}, compute capability {sm}, {memory / 2**30:.1f} GiB, {bf16}"
        lines.append(Check("torch on the GPU", "ok", text))
    return lines


def _unusable(machine: Machine, known: Gpus, told: Told) -> Check:
    """Why a GPU that the driver knows cannot be used: build, driver, architecture, or what it said.

    Training works on the CPU, so this warns.
    """
    name = "torch on the GPU"
    version = machine.version("torch") or ""
    if not told["archs"] and not told["available"]:
        text = f"torch {version} was built without CUDA, and there is a GPU"
        return Check(name, "warn", text, _reinstall())
    cuda = re.search(r"cu(\d\d)\d", version)
    driver = known.found[0].driver
    least = _OLDEST_DRIVER.get(int(cuda[1])) if cuda else None
    if least and driver and int(driver.split(".")[0]) < int(least):
        text = f"driver {driver} is too old for CUDA {int(cuda[1])}" if cuda else ""
        return Check(name, "warn", text, f"Install NVIDIA's driver {least} or newer, and restart.")
    archs = [a.removeprefix("sm_") for a in told["archs"] or () if a.startswith("sm_")]
    sm = known.found[0].sm.replace(".", "")
    lowest = min((int(re.sub(r"\D", "", a)) for a in archs), default=0)
    if sm and int(sm) < lowest:
        text = f"torch {version} has no kernels for compute capability {known.found[0].sm}"
        return Check(name, "warn", text, "Train with --device cpu, or on a newer GPU.")
    said = told["warnings"] or [told.trouble or "torch.cuda.is_available() is False"]
    fix = "Start a container with --gpus all; else restart, and see that nvidia-smi works."
    return Check(name, "warn", said[0].rstrip("."), fix)
