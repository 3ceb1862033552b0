"""What this machine has, what it lacks, and the exact fix: ``python -m frami_edge_runtime.doctor``.

Nothing is changed and nothing is recorded. Imports that may crash or hang (ONNX Runtime, TensorRT,
PortAudio) and the driver's tools run in child processes with a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from frami_edge_runtime import __version__
from frami_edge_runtime.backends import read_model
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.tensorrt import (
    check_content,
    check_loadable,
    read_plan_version,
    read_sidecar,
)

Status: TypeAlias = Literal["ok", "warn", "fail", "absent"]
ROOT: Path = Path("/")
"""Above ``etc``, ``proc`` and ``dev``; tests replace it."""
_PACKAGES: Final = {
    "numpy": "everything",
    "soxr": "audio at another rate than the model's",
    "soundfile": "FLAC, OGG and MP3; PCM WAV works without it",
}
_ONNX_RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
# (JetPack, its TensorRT) by L4T release; the longest prefix decides. See docs/JETPACK.md
_JETPACKS: Final = {
    "35": ("5.x", "8.5"),
    "36.3": ("6.0", "8.6"),
    "36": ("6.1 or 6.2", "10.3"),
    "38": ("7.0 or 7.1", "10.13"),
    "39": ("7.2", "10.16"),
}
_JETSON_SM: Final = {"Thor": "11.0", "Orin": "8.7", "Xavier": "7.2"}
_L4T_FILE: Final = "etc/nv_tegra_release"


@dataclass(frozen=True)
class Check:
    """What was found about one thing."""

    name: str
    status: Status
    """``absent`` marks something optional that this machine does not have."""
    found: str
    fix: str = ""
    """A command or a sentence; every ``warn`` and ``fail`` has one."""
    group: str = ""
    needed: bool = False
    """Whether the main job is impossible when this fails."""

    @property
    def blocks(self) -> bool:
        """It failed and is needed."""
        return self.needed and self.status == "fail"


def run(*command: str, limit_s: float = 5.0) -> tuple[str, str]:
    """Output and errors of a command, and what went wrong in words, or an empty string."""
    name = os.path.basename(command[0])
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",  # a file in the current folder must not pass for a module
        )
    except OSError:
        return "", f"{name}: not found"
    try:
        out = process.communicate(timeout=limit_s)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired as late:
        process.kill()  # and not waited for: a driver may hold the process in the kernel
        so_far = (late.stdout or b"").decode("utf-8", "replace")
        return so_far, f"{name} did not end within {limit_s:g} s"
    code = process.returncode
    if code < 0:
        return out, f"{name} crashed with signal {-code}"
    return out, f"{name} ended with exit code {code}" if code else ""


def probe(code: str, limit_s: float = 15.0) -> dict[str, Any]:
    """Run Python in a child process, where a crash or a hang does no harm.

    ``code`` calls ``report(key=value)`` for every fact as soon as it is known. Returns the facts,
    and ``error`` where the code raised, crashed or hung.
    """
    report = "import json\ndef report(**facts): print(json.dumps(facts), flush=True)\n"
    out, problem = run(sys.executable, "-c", report + code, limit_s=limit_s)
    facts: dict[str, Any] = {}
    for line in out.splitlines():
        with contextlib.suppress(ValueError, TypeError):  # what libraries print is no fact
            facts.update(json.loads(line))
    if problem:
        raised = re.search(r"^[\w.]+(?:Error|Exception)\b.*", out, re.MULTILINE)
        facts["error"] = raised[0] if raised else problem
    return facts


def version_of(package: str) -> str | None:
    """Version of an installed distribution; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(least: tuple[int, int]) -> Check:
    """Version and architecture of Python."""
    found = f"{platform.python_version()} on {platform.machine()}"
    if sys.version_info[:2] >= least:
        return Check("Python", "ok", found, needed=True)
    wanted = ".".join(map(str, least))
    fix = f"Install Python {wanted} or newer and make a new environment with it."
    return Check("Python", "fail", f"{found}, needs {wanted}", fix, needed=True)


def check_memory(least_gb: float) -> Check:
    """Free memory, within a container's limit."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text("proc/meminfo"), re.MULTILINE)
    if found is None:
        return Check("memory", "absent", "not reported by this system")
    free = 1024 * int(found[1])
    limit, used = _text("sys/fs/cgroup/memory.max"), _text("sys/fs/cgroup/memory.current")
    if limit.isdecimal() and used.isdecimal():
        free = min(free, int(limit) - int(used))
    return check_free("memory", free, least_gb, "End other programs.")


def check_free(name: str, free: int, least_gb: float, fix: str) -> Check:
    """Whether enough bytes of memory or disk are free."""
    found = f"{free / 1e9:.1f} GB free"
    if free >= least_gb * 1e9:
        return Check(name, "ok", found, needed=True)
    return Check(name, "fail", f"{found}; {least_gb:g} GB are needed", fix, needed=True)


def check_package(name: str, needed: bool) -> Check:
    """Whether one of `_PACKAGES` is installed."""
    if version := version_of(name):
        return Check(name, "ok", version, needed=needed)
    found, fix = f"not installed; for {_PACKAGES[name]}", f"pip install {name}"
    return Check(name, "fail" if needed else "absent", found, fix, needed=needed)


def check_onnx_runtime() -> Check:
    """Version and providers of ONNX Runtime; a provider may still fail to load its libraries."""
    check = partial(Check, "onnxruntime", needed=True)
    facts = probe(
        "import onnxruntime as o; report(version=o.__version__, all=o.get_available_providers())"
    )
    installed = [name for name in _ONNX_RUNTIMES if version_of(name)]
    if len(installed) > 1:
        found = f"{' and '.join(installed)} overwrite each other's files"
        fix = f"pip uninstall -y {' '.join(installed)}; then pip install {installed[-1]}"
        return check("fail" if "error" in facts else "warn", found, fix)
    if "error" in facts:
        numpy = "numpy" in facts["error"].lower()  # NVIDIA's wheels that were built for NumPy 1
        fix = "pip install 'numpy<2'" if numpy else "pip install --force-reinstall onnxruntime"
        return check("fail", facts["error"], fix)
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in facts["all"])
    return check("ok", f"{facts['version']}, providers: {providers}")


def check_gpu() -> tuple[str, Check]:
    """Compute capability of the first GPU, such as ``8.7``, or an empty string; and the check."""
    if board := jetson_board():  # whose nvidia-smi, if there is one, reports [N/A]
        sm = next((sm for chip, sm in _JETSON_SM.items() if chip in board), "")
        return sm, Check("GPU", "ok", f"{board}, {sm}")
    query = "--query-gpu=name,driver_version,compute_cap"
    out, problem = run("nvidia-smi", query, "--format=csv,noheader")
    if out and not problem:
        gpus = out.splitlines()
        found = f"{'; '.join(gpus)} (name, driver, compute capability)"
        return gpus[0].rpartition(", ")[2], Check("GPU", "ok", found)
    if "not found" in problem and not (ROOT / "proc/driver/nvidia").exists():
        return "", Check("GPU", "absent", "no driver of NVIDIA's: everything runs on the CPU")
    fix = "Install NVIDIA's driver and restart; start a container with --gpus all."
    return "", Check("GPU", "warn", problem or "nvidia-smi lists no GPU", fix)


def check_jetpack() -> list[Check]:
    """Whether the JetPack of a Jetson is new enough; nothing elsewhere."""
    if not jetson_board():
        return []
    prefix = l4t = l4t_release()
    if not l4t:
        fix = f"In a container mount it: -v /{_L4T_FILE}:/{_L4T_FILE}:ro"
        return [Check("JetPack", "warn", f"/{_L4T_FILE} cannot be read", fix)]
    while prefix and prefix not in _JETPACKS:
        prefix = prefix.rpartition(".")[0]
    version, tensorrt = _JETPACKS.get(prefix, ("unknown", ""))
    found = f"{version} (L4T {l4t}, TensorRT {tensorrt or 'unknown'})"
    if not tensorrt or _numbers(tensorrt) >= (10, 3):
        return [Check("JetPack", "ok", found)]
    fix = "Flash JetPack 6.1 or newer, or run the .onnx files with backend='cpu'."
    return [Check("JetPack", "warn", f"{found}: its TensorRT is too old for our engines", fix)]


def check_tensorrt() -> tuple[str, Check]:
    """Version of the TensorRT that Python imports, or an empty string; and the check."""
    install = "pip install 'tensorrt>=10.3'"
    if jetson := jetson_board():
        install = "sudo apt install nvidia-jetpack; python3 -m venv --system-site-packages ENV"
    facts = probe(
        "import tensorrt as t; report(version=t.__version__, system='dist-packages' in t.__file__)"
    )
    version = facts.get("version", "")
    found = f"{version}, {'of the system' if facts.get('system') else 'from pip'}"
    if not version:
        status: Status = "absent" if "ModuleNotFoundError" in facts["error"] else "warn"
        return "", Check("TensorRT", status, f"only engines need it: {facts['error']}", install)
    if jetson and not facts["system"] and _numbers(version) < (11, 4):
        found += ": pip's packages for arm64 do not support a Jetson's GPU"
        return version, Check("TensorRT", "fail", found, f"pip uninstall tensorrt; {install}")
    if _numbers(version) < (10, 3):
        return version, Check("TensorRT", "warn", f"{found}: our engines need 10.3", install)
    return version, Check("TensorRT", "ok", found)


def check_engine(file: Path, tensorrt: str, sm: str) -> Check:
    """Whether an engine was built for this TensorRT and this GPU."""
    try:
        built, card = read_plan_version(file), read_sidecar(file)
        check_content(card, read_model(file)[1], file.name)
        if tensorrt and sm:
            check_loadable(card, built, tensorrt, sm, file.name)
    except FramiEdgeError as error:  # it was asked for by name, so it blocks
        return Check(file.name, "fail", error.message, error.fix, needed=True)
    found = f"built with TensorRT {card.tensorrt} for compute capability {card.sm}"
    if tensorrt and sm:
        return Check(file.name, "ok", f"fits this machine: {found}")
    return Check(file.name, "absent", f"{found}; no TensorRT or no GPU is here to load it")


def check_engines(places: Sequence[Path], tensorrt: str, sm: str) -> list[Check]:
    """The engines, and all engines in the folders, in ``places``."""
    checks = []
    for place in places:
        found = sorted(p for p in place.glob("*") if p.suffix in (".engine", ".plan"))
        files = found if place.is_dir() else [place]
        if not files:
            fix = f"frami-edge export --tensorrt {place} builds them on this machine."
            checks.append(Check(str(place), "absent", "no engine in this folder", fix))
        for file in files:
            checks.append(check_engine(file, tensorrt, sm))
    return checks


def check_microphone() -> Check:
    """Whether there is a device and a way to record; nothing is recorded."""
    facts = probe(
        "import sounddevice\n"
        "device = sounddevice.query_devices(kind='input')\n"
        "report(name=device['name'], rate=device['default_samplerate'])"
    )
    if "name" in facts:
        return Check("microphone", "ok", f"{facts['name']}, {facts['rate']:g} Hz (PortAudio)")
    listed, problem = run("arecord", "-l")
    cards = ", ".join(re.findall(r"^card \d+:.*?\[(.*?)\]", listed, re.MULTILINE))
    if cards:
        return Check("microphone", "ok", f"{cards} (arecord)")
    fix = (
        "Plug one in and apt-get install alsa-utils; in a container add --device /dev/snd; if there"
        " is one, sudo usermod -aG audio $USER and log in again."
    )
    found = f"none found: {facts['error']}; {problem or 'arecord lists none'}"
    return Check("microphone", "absent", found, fix)


def examine(
    places: Sequence[Path] = (),
    *,
    least_python: tuple[int, int] = (3, 10),
    memory_gb: float = 0.15,
    disk_gb: float = 0.05,
    required: Sequence[str] = ("numpy",),
) -> list[Check]:
    """Look at everything that the runtime uses, and at the engines in ``places``.

    The limits and the required packages are a device's; the trainer needs more.
    """
    sm, gpu = check_gpu()
    version, tensorrt = check_tensorrt()
    packages = [check_package(name, name in required) for name in _PACKAGES]
    machine = [
        check_python(least_python),
        check_memory(memory_gb),
        check_free("disk", shutil.disk_usage(".").free, disk_gb, "Free some, or use another disk."),
    ]
    return [
        *grouped("machine", machine),
        *grouped("packages", [*packages, check_onnx_runtime()]),
        *grouped("GPU", [gpu, *check_jetpack(), tensorrt]),
        *grouped("engines", check_engines(places, version, sm)),
        *grouped("sound", [check_microphone()]),
    ]


def grouped(group: str, checks: Sequence[Check]) -> list[Check]:
    """The checks under one heading."""
    return [replace(check, group=group) for check in checks]


def as_text(checks: Sequence[Check]) -> str:
    """All checks by group; each fix on a line of its own, to be copied."""
    width = max(len(check.name) for check in checks)
    lines = []
    for group, members in itertools.groupby(checks, key=lambda check: check.group):
        lines.append(group)
        for check in members:
            lines.append(f"  {check.status:6}  {check.name:<{width}}  {check.found}")
            if check.fix:
                lines.append(f"    fix: {check.fix}")
    return "\n".join(lines)


def verdict(checks: Sequence[Check], what: str) -> str:
    """One sentence: whether ``what`` is possible, and how many other checks have a fix."""
    if blocking := [check.name for check in checks if check.blocks]:
        return f"Not ready for {what}: {', '.join(blocking)}."
    others = sum(check.status in ("warn", "fail") for check in checks)
    return f"Ready for {what}" + (f"; see {others} more with a fix." if others else ".")


def as_json(checks: Sequence[Check], version: str) -> dict[str, Any]:
    """The object of ``--json``."""
    ready = not any(check.blocks for check in checks)
    return {"version": version, "ready": ready, "checks": [asdict(check) for check in checks]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, print, and return 0 if the runtime can work here, else 3."""
    parser = argparse.ArgumentParser(
        prog="python -m frami_edge_runtime.doctor",
        description="What this device has, what it lacks, and the fix for each.",
        epilog="exit codes: 0 ready; 2 wrong usage; 3 something needed is broken",
    )
    about = "engines, or folders of engines, to compare with this machine"
    parser.add_argument("places", nargs="*", type=Path, metavar="ENGINE", help=about)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(arguments)
    checks = examine(options.places)
    report = as_json(checks, __version__)
    print(json.dumps(report, indent=2) if options.json else as_text(checks))
    print(verdict(checks, "listening"), file=sys.stderr)
    return 0 if report["ready"] else 3


def _text(path: str) -> str:
    """Text of a small file of the system; empty where it cannot be read."""
    try:
        return (ROOT / path).read_text(encoding="utf-8", errors="replace").rstrip("\0\n ")
    except OSError:
        return ""


def l4t_release() -> str:
    """L4T release of a Jetson, such as ``36.4.3``; empty where there is none to read."""
    found = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", _text(_L4T_FILE))
    return f"{found[1]}.{found[2]}" if found else ""


def jetson_board() -> str:
    """Name of the Jetson's board, or an empty string."""
    board = _text("proc/device-tree/model")  # all that a container may see
    if re.search("NVIDIA.*(Jetson|Orin|Thor)", board) or (ROOT / _L4T_FILE).exists():
        return board or "a Jetson"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


if __name__ == "__main__":
    sys.exit(main())
