"""What training needs beyond the runtime: package ranges, torch, CUDA and data sets."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

from frami_edge.data.clips import FORMATS
from frami_edge.data.sets import KNOWN_SETS, data_root, find_folder, load_set
from frami_edge.errors import DataError
from frami_edge_runtime import doctor
from frami_edge_runtime.doctor import Check, Status

OURS: Final = ("frami-edge", "frami-edge-export", "frami-edge-runtime")
IMPORT_LIMIT_S: Final = 60.0  # gigabytes of libraries on a cold disk
# torch and torchaudio must be built for one CUDA; the one that crashes or hangs is named.
_TORCH: Final = """
import torch
report(torch=torch.__version__, cuda=torch.version.cuda or torch.version.hip)
import torchaudio
torchaudio.functional.melscale_fbanks(129, 0.0, 4000.0, 16, 8000)
report(torchaudio=torchaudio.__version__)
"""
_CUDA: Final = """
import warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    report(available=torch.cuda.is_available())
report(warning="; ".join(str(w.message).splitlines()[0] for w in caught))
x = torch.ones(64, 64, device="cuda")
report(sum=float((x @ x).sum()), name=torch.cuda.get_device_name())
"""


def examine(places: Sequence[Path] = (), root: Path | None = None) -> list[Check]:
    """The runtime's checks of `places` with the trainer's limits, then the trainer's own."""
    limits: Any = {"least_python": (3, 11), "memory_gb": 1.0, "disk_gb": 0.3}
    checks = doctor.examine(places, required=("numpy", "soundfile"), **limits)
    found = [*check_ranges(), *check_torch(), *check_cuda(), check_formats()]
    checks += doctor.grouped("training", found)
    return checks + doctor.grouped("data sets", check_sets(root))


def requirements() -> list[Requirement]:
    """What our three packages require on this platform, the export with its extra ``torch``."""
    found = [Requirement(t) for name in OURS for t in importlib.metadata.requires(name) or []]
    return [
        r
        for r in found
        if r.name not in OURS and (r.marker is None or r.marker.evaluate({"extra": "torch"}))
    ]


def check_ranges() -> list[Check]:
    """Every package that is missing or out of its range."""
    checks = []
    for requirement in requirements():
        version = doctor.version_of(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = f"{version or 'not installed'}, needs {requirement.specifier}"
            fix = f"pip install '{requirement.name}{requirement.specifier}'"
            checks.append(Check(requirement.name, "fail", found, fix, needed=True))
    return checks or [Check("versions", "ok", "all required packages are in their ranges")]


def check_torch() -> list[Check]:
    """Whether torch and torchaudio load together."""
    facts = doctor.probe(_TORCH, IMPORT_LIMIT_S)
    pair = {r.name: f"'{r.name}{r.specifier}'" for r in requirements()}
    fix = f"pip install --force-reinstall {pair['torch']} {pair['torchaudio']}"
    error = facts.get("error", "")
    if "torch" not in facts:
        return [Check("torch", "fail", error, fix, needed=True)]
    built = f"built for {facts['cuda']}" if facts["cuda"] else "built without CUDA"
    torch = Check("torch", "ok", f"{facts['torch']}, {built}", needed=True)
    if "torchaudio" in facts:
        return [torch, Check("torchaudio", "ok", facts["torchaudio"], needed=True)]
    found = f"does not load beside torch {facts['torch']}: {error}"
    return [torch, Check("torchaudio", "fail", found, fix, needed=True)]


def check_cuda() -> list[Check]:
    """Whether torch computes on the GPU; nothing where the driver reports none."""
    if doctor.check_gpu()[1].status != "ok":
        return []
    facts = doctor.probe(_CUDA, IMPORT_LIMIT_S)
    if "sum" in facts:
        return [Check("torch on the GPU", "ok", facts["name"])]
    found = facts.get("warning") or facts.get("error") or "torch sees no GPU"
    fix = "Update NVIDIA's driver, start a container with --gpus all, or train with --device cpu."
    return [Check("torch on the GPU", "warn", found, fix)]


def check_formats() -> Check:
    """Which audio files this libsndfile decodes; data sets name all others and leave them out."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without its shared library
        return Check("libsndfile", "fail", str(error), "pip install soundfile", needed=True)
    known = soundfile.available_formats()
    read = " ".join(names for name, names in FORMATS.items() if name in known)
    missing = " ".join(names for name, names in FORMATS.items() if name not in known)
    found = f"{soundfile.__libsndfile_version__} decodes {read.replace(' ', ', ')}"
    if not missing:
        return Check("libsndfile", "ok", found)
    fix = "pip install --upgrade soundfile, or convert such files to WAV or FLAC."
    return Check("libsndfile", "warn", f"{found}; not {missing.replace(' ', ', ')}", fix)


def check_sets(option: Path | None = None) -> list[Check]:
    """Which data sets are complete; none is needed, because distillation uses no audio."""
    try:
        root = data_root(option)
    except DataError as error:
        return [Check("data root", "absent", error.message, error.fix)]
    checks = []
    for info in (info for info in KNOWN_SETS if not info.part_of):
        try:
            load_set(info.name, root)
            checks.append(Check(info.name, "ok", f"complete: {info.clips:,} clips"))
        except DataError as error:
            status: Status = "warn" if find_folder(info, root) else "absent"
            checks.append(Check(info.name, status, error.message, error.fix))
    return checks
