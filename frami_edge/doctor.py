"""What training needs on this machine; what a device needs is looked at by the runtime's doctor."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from frami_edge.data.sets import ROOT_VARIABLE, SetStatus, set_info, status
from frami_edge_runtime.doctor import (
    Check,
    Gpus,
    Machine,
    Probe,
    Told,
    board,
    cores,
    disk,
    gpu_probes,
    gpus,
    memory,
    onnx_runtime_probe,
    python,
    sound_probes,
    temporary_folder,
)

# --- Installed packages against what this project's own metadata asks for

OURS: Final = ("frami-edge", "frami-edge-export", "frami-edge-runtime")
_FIRST: Final = "frami-edge"


def requirements(start: str = _FIRST) -> dict[str, Requirement]:
    """What the project asks for on this platform, by canonical name; ours are followed.

    The extras that one of our packages asks of another are part of it. A package that is asked for
    twice must satisfy both.
    """
    wanted: dict[str, Requirement] = {}
    for requirement in _walk(start, frozenset(), set()):
        name = canonicalize_name(requirement.name)
        if name in wanted:
            wanted[name].specifier &= requirement.specifier
        else:
            wanted[name] = requirement
    return wanted


def command(requirement: Requirement) -> str:
    """A requirement as pip takes it on a command line: ``'torch<2.15,>=2.11'``."""
    return f"'{requirement.name}{requirement.specifier}'"


def packages(machine: Machine) -> list[Check]:
    """A line for each package that is missing or out of its range, or one for all."""
    lines: list[Check] = []
    wanted = requirements()
    if not wanted:
        fix = "pip install -e ./runtime -e ./export -e . (in a checkout: make setup)"
        return [Check("packages", "fail", "frami-edge is not installed as a package", fix,
                      needed=True)]  # fmt: skip
    for name, requirement in wanted.items():
        found = machine.version(name)
        if found is not None and _fits(found, requirement):
            continue
        fix = f"pip install {command(requirement)}"
        text = "not installed" if found is None else f"{found}, needs {requirement.specifier}"
        lines.append(Check(requirement.name, "fail", text, fix, needed=True))
    good = len(wanted) - len(lines)
    if good:
        text = f"{good} of {len(wanted)} required packages are in their tested ranges"
        lines.insert(0, Check("packages", "ok", text, needed=True))
    versions = {name: machine.version(name) for name in OURS}
    if len(set(versions.values())) > 1:
        shown = ", ".join(f"{name} {version}" for name, version in versions.items())
        fix = "pip install --upgrade frami-edge frami-edge-export frami-edge-runtime"
        lines.append(Check("one version", "fail", shown, fix, needed=True))
    return lines


def _walk(
    name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]
) -> Iterator[Requirement]:
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        if marker is not None and not any(
            marker.evaluate({"extra": extra}) for extra in (*extras, "")
        ):
            continue
        if canonicalize_name(requirement.name) in OURS:
            yield from _walk(requirement.name, frozenset(requirement.extras), seen)
        else:
            yield requirement


def _fits(version: str, requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


# --- Whether the terminal shows what is printed

NARROW: Final = 100
"""Columns below which the widest tables fold."""


def terminal(machine: Machine) -> list[Check]:
    """Encoding and width; silent where nobody watches."""
    del machine
    if not sys.stdout.isatty() and not sys.stderr.isatty():
        return []
    encoding = (sys.stdout.encoding or "unknown").lower()
    columns = shutil.get_terminal_size().columns
    return [described(encoding, columns)]


def described(encoding: str, columns: int) -> Check:
    """The line for an encoding and a width."""
    text = f"{encoding}, {columns} columns"
    if encoding.replace("-", "") != "utf8":
        fix = "export LC_ALL=C.UTF-8 PYTHONUTF8=1"
        return Check("terminal", "warn", f"{text}: ticks and names may be replaced", fix)
    if columns < NARROW:
        return Check("terminal", "ok", f"{text}: wide tables fold", f"Widen it to {NARROW}.")
    return Check("terminal", "ok", text)


# --- torch and torchaudio: they must load together, and torch must be able to use the GPU
# Both are imported in a child process, which tells each step as it goes: what hangs or crashes is
# named. Driver minima: NVIDIA's CUDA compatibility guide.

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


# --- Data sets under the data root: found, complete, and how to get the others

SETS: Final = ("fsdd", "esc10", "esc50", "urbansound8k", "audiomnist")
"""Those that experiments use; `frami-edge data` knows more."""


def root_of(machine: Machine, option: Path | None) -> Path | None:
    """The option, else the variable's folder."""
    value = option if option is not None else machine.environ.get(ROOT_VARIABLE)
    return Path(value).expanduser() if value else None


def datasets(machine: Machine, option: Path | None = None) -> list[Check]:
    """A line for each set; none is needed, because distillation uses no audio."""
    root = root_of(machine, option)
    if root is None:
        text = f"none is given: neither --data-root nor {ROOT_VARIABLE}"
        lines = [Check("data root", "absent", text, f"export {ROOT_VARIABLE}=~/sounds")]
    elif not root.is_dir():
        fix = f"mkdir -p {root}, or correct {ROOT_VARIABLE}"
        lines = [Check("data root", "warn", f"{root} is no folder", fix)]
        root = None
    else:
        lines = [Check("data root", "ok", str(root))]
    return lines + [_line(status(set_info(name), root)) for name in SETS]


def _line(state: SetStatus) -> Check:
    info = state.info
    if state.complete:
        text = f"complete: {info.clips:,} clips, {info.classes} classes ({info.licence})"
        return Check(info.name, "ok", text)
    if state.folder is None:
        return Check(info.name, "absent", f"not found ({info.licence})", _how(state))
    text = f"{state.clips:,} of {info.clips:,} clips in {state.folder}"
    return Check(info.name, "warn", text, f"{_how(state)}, or complete the folder")


def _how(state: SetStatus) -> str:
    if state.info.form:
        return f"fill in {state.info.form} and unpack it under the data root"
    return state.how


# --- Everything that `frami-edge doctor` looks at

LEAST_PYTHON: Final = (3, 11)
LEAST_MEMORY_GB: Final = 1.0
"""Importing torch and training a small student takes 0.7 GB; measured on the quickstart."""
LEAST_DISK_GB: Final = 0.3
"""A quickstart's run takes 0.1 GB, one ESC-10 bank 0.25 GB."""


def trainer_probes(data_root: Path | None = None, places: Sequence[Path] = ()) -> list[Probe]:
    """The runtime's probes and the trainer's own.

    Args:
        data_root: Instead of the variable's.
        places: Engines, or folders that hold some, to compare with this machine.
    """
    slow = IMPORT_LIMIT_S + 1.0
    return [
        Probe("Python", "machine", partial(python, least=LEAST_PYTHON)),
        Probe("CPU cores", "machine", cores),
        Probe(
            "memory", "machine", partial(memory, least_gb=LEAST_MEMORY_GB, comfortable_gb=4.0)
        ),
        Probe("disk", "machine", partial(_disk, data_root=data_root)),
        Probe("board", "machine", board),
        Probe("terminal", "machine", terminal),
        Probe("packages", "packages", packages, limit_s=10.0, needed=True),
        Probe("torch", "packages", torch_pair, limit_s=slow, needed=True),
        onnx_runtime_probe(),
        *gpu_probes(places),
        Probe("torch on the GPU", "GPU", torch_cuda, limit_s=slow + CUDA_LIMIT_S),
        *sound_probes(needed=True),
        Probe("data sets", "data sets", partial(datasets, option=data_root), limit_s=10.0),
    ]  # fmt: skip


def _disk(machine: Machine, data_root: Path | None) -> list[Check]:
    # Imported here: the store imports torch.
    cache = machine.environ.get("FRAMI_EDGE_CACHE")
    places = [("here", Path.cwd())]
    root = root_of(machine, data_root)
    if root is not None and root.is_dir():
        places.append(("data root", root))
    places.append(("cache", Path(cache).expanduser() if cache else _default_cache()))
    places.append(("temporary files", temporary_folder()))
    return disk(machine, places, LEAST_DISK_GB, 5.0)


def _default_cache() -> Path:
    return Path("~/.cache/frami-edge").expanduser()


# --- What training needs on this machine; what a device needs is looked at by the runtime's doct

__all__ = ["trainer_probes"]
