"""What this machine has, what it lacks, and the exact fix: ``python -m frami_edge_runtime.doctor``.

Nothing is changed and nothing is recorded. Imports that may crash or hang (ONNX Runtime, TensorRT,
PortAudio, libsndfile) and the driver's tools run in child processes with a time limit.
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
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
NOT_READY: Final = 3
_RELEASE: Final = "etc/nv_tegra_release"
_JETSON_ENVIRONMENT: Final = (
    "sudo apt install nvidia-jetpack, and make the environment with python3 -m venv "
    "--system-site-packages ENV"
)
_REPORT: Final = """
import json
def report(**facts):
    print(json.dumps(facts), flush=True)
"""
# An Identity of one float: a provider that cannot load its libraries falls back without an error.
_ONNX_RUNTIME: Final = """
import base64
import onnxruntime as o
available = o.get_available_providers()
report(version=o.__version__, available=available)
model = base64.b64decode(
    "CAcSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="
)
tried = [p for p in available if p in ("CUDAExecutionProvider", "CPUExecutionProvider")]
report(loaded=o.InferenceSession(model, providers=tried).get_providers())
"""
_TENSORRT: Final = """
import tensorrt
report(version=str(tensorrt.__version__), system="dist-packages" in str(tensorrt.__file__))
"""
_MICROPHONE: Final = """
import sounddevice
device = sounddevice.query_devices(kind="input")
report(device=str(device["name"]), rate=float(device["default_samplerate"]))
"""
_SOUNDFILE: Final = """
import soundfile
report(version=soundfile.__version__, libsndfile=soundfile.__libsndfile_version__)
"""

# JetPack version, CUDA and TensorRT by L4T release; the longest prefix decides. docs/JETPACK.md
_JETPACKS: Final = {
    (32,): ("4.x", "10.2", "8.2"),
    (35,): ("5.x", "11.4", "8.5"),
    (36,): ("6.x", "12", ""),
    (36, 3): ("6.0", "12.2", "8.6"),
    (36, 4): ("6.1", "12.6", "10.3"),
    (36, 4, 3): ("6.2", "12.6", "10.3"),
    (36, 4, 4): ("6.2.1", "12.6", "10.3"),
    (36, 4, 7): ("6.2.1", "12.6", "10.3"),
    (36, 5): ("6.2.2", "12.6", "10.3"),
    (38,): ("7.0", "13.0", "10.13"),
    (38, 4): ("7.1", "13.0", "10.13"),
    (39,): ("7.2", "13.2", "10.16"),
}


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


@dataclass(frozen=True)
class JetPack:
    """A release of NVIDIA's software for Jetsons; empty fields are not known."""

    l4t: str
    """Such as ``36.4.3``."""
    version: str = ""
    """Such as ``6.2``."""
    cuda: str = ""
    tensorrt: str = ""


def run(*command: str, limit_s: float = 5.0) -> tuple[str, str]:
    """Run a command for at most so many seconds.

    Returns:
        (standard output and error, problem in words); the problem is empty where the command exists
        and ended with exit code 0.
    """
    name = os.path.basename(command[0])
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",  # a file in the current folder must not pass for a module
            start_new_session=True,
        )
    except OSError:
        return "", f"{name}: not found"
    try:
        out = process.communicate(timeout=limit_s)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired as late:
        # Not waited for: a driver may hold the process in the kernel.
        os.killpg(process.pid, signal.SIGKILL)
        so_far = (late.stdout or b"").decode("utf-8", "replace")
        return so_far, f"{name} did not end within {limit_s:g} s"
    code = process.returncode
    if code < 0:
        return out, f"{name} crashed with signal {-code}"
    return out, f"{name} ended with exit code {code}" if code else ""


def probe(code: str, limit_s: float = 15.0) -> dict[str, Any]:
    """Run Python in a child process, where a crash or a hang does no harm.

    Args:
        code: Calls ``report(key=value)`` for every fact as soon as it is known.
        limit_s: Seconds until the child is killed.

    Returns:
        The facts; ``error`` where the code raised, crashed or hung.
    """
    out, problem = run(sys.executable, "-c", _REPORT + code, limit_s=limit_s)
    facts: dict[str, Any] = {}
    for line in out.splitlines():
        with contextlib.suppress(ValueError, TypeError):  # what libraries print is no fact
            facts.update(json.loads(line))
    if problem:
        raised = re.search(r"^[\w.]+(?:Error|Exception)\b.*", out, re.MULTILINE)
        facts["error"] = raised[0] if raised else problem
    return facts


def is_missing(facts: Mapping[str, Any]) -> bool:
    """Whether the module of a `probe` is not installed."""
    return str(facts.get("error")).startswith("ModuleNotFoundError")


def version_of(package: str) -> str | None:
    """Version of an installed distribution; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_release(text: str) -> JetPack | None:
    """``# R36 (release), REVISION: 4.3, ...`` as a `JetPack`; None for anything else."""
    found = re.match(r"#\s*R(\d{1,4})\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+){0,3})", text)
    if found is None:
        return None
    l4t = f"{found[1]}.{found[2]}"
    parts = _numbers(l4t)
    for length in range(len(parts), 0, -1):
        if parts[:length] in _JETPACKS:
            return JetPack(l4t, *_JETPACKS[parts[:length]])
    return JetPack(l4t)


def check_python(least: tuple[int, int] = (3, 10)) -> Check:
    """Version and architecture of Python."""
    text = f"{platform.python_version()} on {platform.machine()}"
    if sys.version_info[:2] < least:
        wanted = ".".join(map(str, least))
        fix = f"Install Python {wanted} or newer and make a new environment with it."
        return Check("Python", "fail", f"{text}, needs {wanted}", fix, needed=True)
    if platform.machine() in ("armv6l", "armv7l"):
        text += ": onnxruntime has no packages for 32-bit systems"
        return Check("Python", "fail", text, "Install a 64-bit system.", needed=True)
    return Check("Python", "ok", text, needed=True)


def check_memory(least_gb: float = 0.15) -> Check:
    """Free memory, within a container's limit."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text("proc/meminfo"), re.MULTILINE)
    if found is None:
        return Check("memory", "absent", "not reported by this system")
    free = 1024 * int(found[1])
    limit, used = _text("sys/fs/cgroup/memory.max"), _text("sys/fs/cgroup/memory.current")
    if limit.isdecimal() and used.isdecimal():
        free = min(free, int(limit) - int(used))
    return _at_least("memory", free, least_gb, "", "End other programs.")


def check_disk(least_gb: float = 0.05) -> Check:
    """Free space and write access in the current folder, where results go."""
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        fix = "Use a folder that you may write to."
        return Check("disk", "fail", f"{here} cannot be written to", fix, needed=True)
    free = shutil.disk_usage(here).free
    return _at_least("disk", free, least_gb, f" at {here}", "Free some, or use another disk.")


def _at_least(name: str, free: int, least_gb: float, where: str, fix: str) -> Check:
    text = f"{free / 1e9:.1f} GB free{where}"
    if free >= least_gb * 1e9:
        return Check(name, "ok", text, needed=True)
    return Check(name, "fail", f"{text}; {least_gb:g} GB are needed", fix, needed=True)


def check_packages(*, audio_needed: bool = False) -> list[Check]:
    """NumPy, ONNX Runtime with its providers, and the extras."""
    checks = []
    for name, needed in (("numpy", True), ("soxr", False)):
        version = version_of(name)
        failed: Status = "fail" if needed else "absent"
        fix = "" if version else f"pip install {name}"
        found = version or "not installed"
        checks.append(Check(name, "ok" if version else failed, found, fix, needed=needed))
    facts = probe(_SOUNDFILE)
    if "libsndfile" in facts:
        text = f"{facts['version']}, libsndfile {facts['libsndfile']}: FLAC, OGG, MP3"
        soundfile = Check("soundfile", "ok", text, needed=audio_needed)
    else:
        status: Status = "absent" if is_missing(facts) and not audio_needed else "fail"
        text = f"PCM WAV files only: {facts['error']}"
        fix = "pip install soundfile; on old systems also: apt-get install libsndfile1"
        soundfile = Check("soundfile", status, text, fix, needed=audio_needed)
    return [*checks, soundfile, check_onnx_runtime()]


def check_onnx_runtime() -> Check:
    """Version and providers of ONNX Runtime, and whether it runs a model."""
    every = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-rocm")
    installed = [name for name in every if version_of(name)] or ["onnxruntime"]
    check = partial(Check, "onnxruntime", needed=True)
    facts = probe(_ONNX_RUNTIME)
    text = " ".join(facts[key] for key in ("version", "error") if key in facts)
    if len(installed) > 1:
        text = f"{' and '.join(installed)} overwrite each other's files. {text}"
        fix = f"pip uninstall -y {' '.join(installed)}; then pip install {installed[-1]}"
        return check("fail" if "error" in facts else "warn", text, fix)
    if "error" in facts:
        fix = f"pip install --force-reinstall {installed[0]}"
        if "numpy" in text.lower():
            fix = "pip install 'numpy<2'"  # NVIDIA's wheels that were built for NumPy 1
        return check("fail", text, fix)
    names = [provider.removesuffix("ExecutionProvider") for provider in facts["available"]]
    text += f", providers: {', '.join(names)}"
    if "CUDA" in names and "CUDAExecutionProvider" not in facts["loaded"]:
        fix = "Install the CUDA and cuDNN that this onnxruntime was built for, or use backend='cpu'"
        return check("warn", f"{text}; CUDA does not load", fix)
    return check("ok", text)


def check_gpu() -> tuple[str, Check]:
    """NVIDIA's GPUs as the driver or a Jetson's name reports them; CUDA is not loaded.

    Returns:
        (compute capability of the first GPU such as ``8.7``, or an empty string; check)
    """
    query = "--query-gpu=name,driver_version,compute_cap"
    out, problem = run("nvidia-smi", query, "--format=csv,noheader")
    gpus = [] if problem else out.splitlines()
    sm = gpus[0].rpartition(", ")[2] if gpus else ""
    if _is_jetson():  # whose nvidia-smi, if there is one, reports [N/A]
        board = _text("proc/device-tree/model")
        known = (("Thor", "11.0"), ("Orin", "8.7"), ("Xavier", "7.2"))
        sm = next((sm for word, sm in known if word in board), "")
        gpus = [f"{board}, {sm}"]
    if gpus:
        return sm, Check("GPU", "ok", f"{'; '.join(gpus)} (name, driver, compute capability)")
    if "not found" in problem and not (ROOT / "proc/driver/nvidia").exists():
        return "", Check("GPU", "absent", "none of NVIDIA's: everything runs on the CPU")
    fix = "Start a container with --gpus all; else install NVIDIA's driver and restart."
    return "", Check("GPU", "warn", problem or "nvidia-smi lists no GPU", fix)


def check_jetpack() -> list[Check]:
    """Whether the JetPack of a Jetson is new enough; nothing elsewhere."""
    jetpack = read_release(_text(_RELEASE))
    if jetpack is None:
        if not _is_jetson():
            return []
        fix = "In a container mount it: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
        return [Check("JetPack", "warn", f"/{_RELEASE} cannot be read", fix)]
    text = f"{jetpack.version or 'unknown'} (L4T {jetpack.l4t}"
    text += f": CUDA {jetpack.cuda}, TensorRT {jetpack.tensorrt})" if jetpack.cuda else ")"
    if not jetpack.version or _numbers(jetpack.tensorrt) >= (10, 3):
        return [Check("JetPack", "ok", text)]
    fix = "Flash JetPack 6.1 or newer, or run the .onnx files with backend='cpu'."
    return [Check("JetPack", "warn", f"{text}: its TensorRT is too old for our engines", fix)]


def check_tensorrt() -> tuple[str, Check]:
    """TensorRT, and whether it fits our engines and a Jetson.

    Returns:
        (version of the TensorRT that Python imports, or an empty string; check)
    """
    install = _JETSON_ENVIRONMENT if _is_jetson() else "pip install 'tensorrt>=10.3'"
    facts = probe(_TENSORRT)
    if "version" not in facts:
        status: Status = "absent" if is_missing(facts) else "warn"
        text = f"only engines need it: {facts['error']}"
        return "", Check("TensorRT", status, text, install)
    version = str(facts["version"])
    text = f"{version}, {'of the system' if facts['system'] else 'from pip'}"
    if _is_jetson() and not facts["system"] and _numbers(version) < (11, 4):
        text += ": pip's packages for arm64 do not support a Jetson's GPU"
        return version, Check("TensorRT", "fail", text, f"pip uninstall tensorrt; {install}")
    if _numbers(version) < (10, 3):
        return version, Check("TensorRT", "warn", f"{text}: our engines need 10.3", install)
    return version, Check("TensorRT", "ok", text)


def check_engines(places: Sequence[Path], tensorrt: str, sm: str) -> list[Check]:
    """Whether engines, or all engines in a folder, were built for this TensorRT and this GPU.

    They were asked for by name, so one that does not fit blocks.
    """
    checks = []
    for place in places:
        files = [place]
        if place.is_dir():
            files = sorted(p for p in place.iterdir() if p.suffix in (".engine", ".plan"))
        if not files:
            fix = f"frami-edge export --tensorrt {place} builds them on this machine."
            checks.append(Check(str(place), "absent", "no engine in this folder", fix))
        for file in files:
            try:
                built, card = read_plan_version(file), read_sidecar(file)
                check_content(card, read_model(file)[1], file.name)
                text = f"built with TensorRT {card.tensorrt} for compute capability {card.sm}"
                if tensorrt and sm:
                    check_loadable(card, built, tensorrt, sm, file.name)
                    checks.append(Check(file.name, "ok", f"fits this machine: {text}"))
                else:
                    text += "; no TensorRT or no GPU is here to load it"
                    checks.append(Check(file.name, "absent", text))
            except FramiEdgeError as error:
                checks.append(Check(file.name, "fail", error.message, error.fix, needed=True))
    return checks


def check_microphone() -> Check:
    """Whether there is a device and a way to record; nothing is recorded."""
    facts = probe(_MICROPHONE, limit_s=5.0)
    if "device" in facts:
        return Check("microphone", "ok", f"{facts['device']}, {facts['rate']:g} Hz (PortAudio)")
    listed, problem = run("arecord", "-l")
    cards = ", ".join(re.findall(r"^card \d+:.*?\[(.*?)\]", listed, re.MULTILINE))
    if "PortAudioError" in facts["error"] and cards:
        fix = "`arecord -L` names the devices; pass one: frami-edge-listen MODEL --device NAME"
        return Check("microphone", "warn", f"{cards}; PortAudio has no default device", fix)
    if cards:
        return Check("microphone", "ok", f"{cards} (arecord)")
    if is_missing(facts) and "not found" in problem:
        fix = "pip install sounddevice and apt-get install libportaudio2, or install alsa-utils"
        return Check("microphone", "absent", "neither sounddevice nor arecord to record with", fix)
    fix = (
        "Plug one in; in a container add --device /dev/snd; if there is one, sudo usermod -aG "
        "audio $USER and log in again."
    )
    return Check("microphone", "absent", f"no input device: {facts['error']}", fix)


def examine(
    places: Sequence[Path] = (),
    *,
    least_python: tuple[int, int] = (3, 10),
    memory_gb: float = 0.15,
    disk_gb: float = 0.05,
    audio_needed: bool = False,
) -> list[Check]:
    """Look at everything that the runtime uses.

    Args:
        places: Engines, or folders of engines, to compare with this machine.
        least_python: Oldest Python that will do.
        memory_gb: Free memory below which the check fails.
        disk_gb: Free disk space below which the check fails.
        audio_needed: Whether soundfile is needed; a device reads PCM WAV without it.
    """
    sm, gpu = check_gpu()
    version, tensorrt = check_tensorrt()
    machine = [check_python(least_python), check_memory(memory_gb), check_disk(disk_gb)]
    return [
        *grouped("machine", machine),
        *grouped("packages", check_packages(audio_needed=audio_needed)),
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
    """One sentence: what stands in the way of ``what``, and how many fixes are worth a look."""
    if blocking := [check.name for check in checks if check.blocks]:
        return f"Not ready for {what}: {', '.join(blocking)}."
    others = sum(check.status in ("warn", "fail") for check in checks)
    return f"Ready for {what}" + (f"; see {others} more with a fix." if others else ".")


def as_json(checks: Sequence[Check], version: str) -> dict[str, Any]:
    """The object of ``--json``."""
    ready = not any(check.blocks for check in checks)
    return {"version": version, "ready": ready, "checks": [asdict(check) for check in checks]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, print, and return 0 if the runtime can work here, else 3.

    Args:
        arguments: Command line; None for `sys.argv`.
    """
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
    if options.json:
        print(json.dumps(as_json(checks, __version__), indent=2))
    else:
        print(as_text(checks))
        print(verdict(checks, "listening"), file=sys.stderr)
    return NOT_READY if any(check.blocks for check in checks) else 0


def _text(path: str) -> str:
    """Text of a small file of the system; empty where it cannot be read."""
    try:
        return (ROOT / path).read_text(encoding="utf-8", errors="replace").rstrip("\0\n ")
    except OSError:
        return ""


def _is_jetson() -> bool:
    board = _text("proc/device-tree/model")  # all that a container may see
    return (ROOT / _RELEASE).exists() or bool(re.search("NVIDIA.*(Jetson|Orin|Thor)", board))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


if __name__ == "__main__":
    sys.exit(main())
