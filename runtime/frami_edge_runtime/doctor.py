"""What this machine has, what it lacks, and the exact fix: ``python -m frami_edge_runtime.doctor``.

Nothing is changed and nothing is recorded. Imports that may crash or hang (ONNX Runtime, TensorRT,
PortAudio, libsndfile) and the driver's tools run in child processes with a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
_GB: Final = 1e9
_RELEASE: Final = "etc/nv_tegra_release"
_MARK: Final = "frami-doctor: "
# Runs the code in its argument. A file in the current folder must not pass for a module, and what
# libraries print must not pass for a fact.
_CHILD: Final = f"""
import sys
sys.path[:] = [place for place in sys.path if place]
import json
def report(**facts):
    print({_MARK!r} + json.dumps(facts), flush=True)
try:
    exec(sys.argv[1], {{"report": report}})
except BaseException as error:
    lines = str(error).strip().splitlines() or ["no message"]
    report(error=f"{{type(error).__name__}}: {{lines[0]}}")
    if isinstance(error, ModuleNotFoundError):
        report(error=f"{{error.name}} is not installed", missing=True)
"""
# An Identity of one float: a provider that cannot load its libraries falls back without an error.
_ONNX_RUNTIME: Final = """
import base64
import numpy
import onnxruntime as o
report(version=o.__version__, providers=o.get_available_providers())
model = base64.b64decode(
    "CAcSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="
)
options = o.SessionOptions()
options.log_severity_level = 4
for name in ("CPU", "CUDA"):
    provider = name + "ExecutionProvider"
    if provider in o.get_available_providers():
        session = o.InferenceSession(model, options, providers=[provider, "CPUExecutionProvider"])
        session.run(None, {"x": numpy.ones(1, numpy.float32)})
        report(**{name: provider in session.get_providers()})
"""
_TENSORRT: Final = """
import tensorrt
report(version=str(tensorrt.__version__), system="dist-packages" in str(tensorrt.__file__))
"""
_MICROPHONE: Final = """
import sounddevice
report(found=True)
device = sounddevice.query_devices(kind="input")
report(device=str(device["name"]), rate=float(device["default_samplerate"]))
"""
_SOUNDFILE: Final = """
import soundfile
report(version=soundfile.__version__, libsndfile=soundfile.__libsndfile_version__)
"""
_BROKEN_ON_JETSONS: Final = {"1.22.0": "aborts on import", "1.24.2": "crashes at exit"}
"""On an Orin NX: microsoft/onnxruntime#25103 and #28301."""
_SYSTEM_PACKAGES: Final = "python3 -m venv --system-site-packages ENV"

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
class Gpu:
    """An NVIDIA GPU; fields are empty where the driver does not report them."""

    name: str
    driver: str
    sm: str
    """Compute capability, such as ``8.7``."""


@dataclass(frozen=True)
class JetPack:
    """A release of NVIDIA's software for Jetsons; empty fields are not known."""

    l4t: str
    """Such as ``36.4.3``."""
    version: str = ""
    """Such as ``6.2``."""
    cuda: str = ""
    tensorrt: str = ""


def run(*command: str, limit_s: float = 5.0) -> tuple[int | None, str, str]:
    """Run a command for at most so many seconds.

    Returns:
        (exit code, standard output and error, problem in words). The code is None where the command
        does not exist or did not end; the problem is empty where the code is 0.
    """
    name = os.path.basename(command[0])
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return None, "", f"{name}: not found"
    try:
        out = process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired as late:
        # Not waited for: a driver may hold the process in the kernel.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        so_far = (late.stdout or b"").decode("utf-8", "replace")
        return None, so_far, f"{name} did not end within {limit_s:g} s"
    code, problem = process.returncode, ""
    if code < 0:
        problem = f"{name} crashed with signal {-code}"
    elif code:
        problem = f"{name} ended with exit code {code}"
    return code, out.decode("utf-8", "replace"), problem


def probe(code: str, limit_s: float = 15.0) -> dict[str, Any]:
    """Run Python in a child process, where a crash or a hang does no harm.

    Args:
        code: Calls ``report(key=value)`` for every fact as soon as it is known.
        limit_s: Seconds until the child is killed.

    Returns:
        The facts; ``error`` where the code raised, crashed or hung, and ``missing`` where a module
        is not installed.
    """
    _, out, problem = run(sys.executable, "-c", _CHILD, code, limit_s=limit_s)
    facts: dict[str, Any] = {}
    for line in out.splitlines():
        fact = line.partition(_MARK)[2]
        with contextlib.suppress(ValueError):  # no fact, or cut off by a crash
            facts.update(json.loads(fact))
    if problem:
        facts.setdefault("error", problem)
    return facts


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


def check_memory(least_gb: float = 0.15) -> list[Check]:
    """Free memory, within a container's limit; nothing where the system does not report it."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text("proc/meminfo"), re.MULTILINE))
    if "MemAvailable" not in found:
        return []
    free = 1024 * int(found["MemAvailable"])
    limit, used = _text("sys/fs/cgroup/memory.max"), _text("sys/fs/cgroup/memory.current")
    if limit.isdecimal() and used.isdecimal():
        free = min(free, int(limit) - int(used))
    text = f"{free / _GB:.1f} GB free"
    if free >= least_gb * _GB:
        return [Check("memory", "ok", text, needed=True)]
    text += f"; {least_gb:g} GB are needed"
    return [Check("memory", "fail", text, "End other programs.", needed=True)]


def check_disk(least_gb: float = 0.05) -> Check:
    """Free space and write access in the current folder, where results go."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        fix = "Use a folder that you may write to."
        return Check("disk", "fail", f"{here} cannot be written to", fix, needed=True)
    text = f"{free / _GB:.1f} GB free at {here}"
    if free >= least_gb * _GB:
        return Check("disk", "ok", text, needed=True)
    fix = f"Free {least_gb:g} GB, or use another disk."
    return Check("disk", "fail", text, fix, needed=True)


def check_packages(*, audio_needed: bool = False) -> list[Check]:
    """NumPy, ONNX Runtime with its providers, and the extras."""
    numpy = version_of("numpy")
    checks = [Check("numpy", "ok", numpy or "", needed=True)]
    if numpy is None:
        checks = [Check("numpy", "fail", "not installed", "pip install numpy", needed=True)]
    checks += _onnx_runtime()
    facts = probe(_SOUNDFILE)
    if "libsndfile" in facts:
        text = f"{facts['version']}, libsndfile {facts['libsndfile']}: FLAC, OGG, MP3"
        checks.append(Check("soundfile", "ok", text, needed=audio_needed))
    elif audio_needed or "missing" not in facts:
        fix = "pip install soundfile; on old systems also: apt-get install libsndfile1"
        checks.append(Check("soundfile", "fail", facts.get("error", ""), fix, needed=audio_needed))
    else:
        text, fix = "not installed: PCM WAV files only", "pip install soundfile"
        checks.append(Check("soundfile", "absent", text, fix))
    if soxr := version_of("soxr"):
        return [*checks, Check("soxr", "ok", soxr)]
    text = "not installed: audio must have the model's sample rate"
    return [*checks, Check("soxr", "absent", text, "pip install soxr")]


def _onnx_runtime() -> list[Check]:
    every = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-rocm")
    installed = [name for name in every if version_of(name)] or ["onnxruntime"]
    name, facts = installed[-1], probe(_ONNX_RUNTIME)
    version, error = facts.get("version", ""), facts.get("error", "")
    if len(installed) > 1:
        text = f"{' and '.join(installed)} overwrite each other's files. {error}".strip()
        fix = f"pip uninstall -y {' '.join(installed)}; then pip install {name}"
        return [Check("onnxruntime", "fail" if error else "warn", text, fix, needed=True)]
    if "CPU" not in facts:
        fix = f"pip install --force-reinstall --no-deps {name}"
        if "missing" in facts:
            fix = f"pip install {name}"
        elif "numpy" in error.lower():
            fix = "pip install 'numpy<2'"  # NVIDIA's wheels that were built for NumPy 1
        return [Check(name, "fail", f"{version} {error}".strip(), fix, needed=True)]
    if version in _BROKEN_ON_JETSONS and _is_jetson():
        text = f"{version} {_BROKEN_ON_JETSONS[version]} on some Jetsons"
        return [Check(name, "warn", text, f"pip install '{name}!={version}'", needed=True)]
    providers = [p.removesuffix("ExecutionProvider") for p in facts["providers"]]
    checks = [Check(name, "ok", f"{version}, providers: {', '.join(providers)}", needed=True)]
    if facts.get("CUDA") is True:
        checks.append(Check("CUDA provider", "ok", "runs a model"))
    elif "CUDA" in providers:
        text = f"falls back to the CPU. {error}".strip()
        fix = "Install the CUDA and cuDNN that this onnxruntime was built for, or use backend='cpu'"
        checks.append(Check("CUDA provider", "warn", text, fix))
    return checks


def find_gpus() -> tuple[list[Gpu], Check]:
    """NVIDIA's GPUs as the driver or a Jetson's name reports them; CUDA is not loaded."""
    query = "--query-gpu=name,driver_version,compute_cap"
    code, out, problem = run("nvidia-smi", query, "--format=csv,noheader")
    gpus = []
    for line in out.splitlines() if code == 0 else []:
        name, driver, sm = (["" if "N/A" in p else p.strip() for p in line.split(",")] + [""] * 3)[
            :3
        ]
        if name:
            gpus.append(Gpu(name, driver, sm if re.fullmatch(r"\d+\.\d+", sm) else ""))
    if _is_jetson():
        board = _text("proc/device-tree/model")
        known = (("Thor", "11.0"), ("Orin", "8.7"), ("Xavier", "7.2"))
        sm = next((sm for word, sm in known if word in board), "")
        gpus = [Gpu(board, gpus[0].driver if gpus else "", sm)]
    if gpus:
        shown = [f"{g.name}, compute capability {g.sm}, driver {g.driver}" for g in gpus]
        return gpus, Check("GPU", "ok", "; ".join(shown))
    if "not found" in problem and not (ROOT / "proc/driver/nvidia").exists():
        return [], Check("GPU", "absent", "none of NVIDIA's: everything runs on the CPU")
    fix = "Start a container with --gpus all; else install NVIDIA's driver and restart."
    return [], Check("GPU", "warn", problem or "nvidia-smi lists no GPU", fix)


def check_tensorrt(gpus: Sequence[Gpu]) -> tuple[str, list[Check]]:
    """JetPack and TensorRT, and whether they fit each other and the GPU.

    Returns:
        (version of the TensorRT that Python imports, or an empty string; checks)
    """
    checks, jetpack = [], read_release(_text(_RELEASE))
    if jetpack is not None:
        text = f"{jetpack.version or 'unknown'} (L4T {jetpack.l4t}"
        text += f": CUDA {jetpack.cuda}, TensorRT {jetpack.tensorrt})" if jetpack.cuda else ")"
        if not jetpack.version or _numbers(jetpack.tensorrt) >= (10, 3):
            checks.append(Check("JetPack", "ok", text))
        else:
            text += ": its TensorRT is too old for our engines"
            fix = "Flash JetPack 6.1 or newer, or run the .onnx files with backend='cpu'."
            checks.append(Check("JetPack", "warn", text, fix))
    elif _is_jetson():
        fix = "In a container mount it: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
        checks.append(Check("JetPack", "warn", f"/{_RELEASE} cannot be read", fix))
    pip = [name for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12") if version_of(name)]
    install = "pip install 'tensorrt>=10.3'" if gpus else ""
    if _is_jetson():
        install = (
            f"sudo apt install nvidia-jetpack, and make the environment with {_SYSTEM_PACKAGES}"
        )
    facts = probe(_TENSORRT)
    version = facts.get("version", "")
    if not version and "missing" in facts and not pip:
        packaged = run("dpkg-query", "-W", "-f", "${Version}\n", "libnvinfer[0-9]*")[1]
        system = re.search(r"^\d+(\.\d+)+", packaged, re.MULTILINE)
        if system is None:
            text = "not installed; only engines need it"
            return "", [*checks, Check("TensorRT", "absent", text, install)]
        text = f"the system has {system[0]}, and this Python does not see it"
        fix = f"{_SYSTEM_PACKAGES} makes an environment that does (apt install python3-libnvinfer)."
        return "", [*checks, Check("TensorRT", "warn", text, fix)]
    if not version:
        text = f"installed, but: {facts.get('error')}"
        return "", [*checks, Check("TensorRT", "warn", text, install or "pip uninstall tensorrt")]
    text = f"{version}, {'of the system' if facts['system'] else 'from pip'}"
    if _is_jetson() and not facts["system"] and _numbers(version) < (11, 4):
        text += ": pip's packages for arm64 do not support a Jetson's GPU"
        fix = f"pip uninstall -y {' '.join(pip)}; then {install}"
        return version, [*checks, Check("TensorRT", "fail", text, fix)]
    if _numbers(version) < (10, 3):
        text += ": our engines need 10.3 or newer"
        fix = "JetPack 6.1 or newer; on a PC: pip install 'tensorrt>=10.3'"
        return version, [*checks, Check("TensorRT", "warn", text, fix)]
    checks.append(Check("TensorRT", "ok", text))
    return version, checks


def check_engines(places: Sequence[Path], tensorrt: str, gpus: Sequence[Gpu]) -> list[Check]:
    """Whether engines, or all engines in a folder, were built for this TensorRT and this GPU.

    They were asked for by name, so one that does not fit blocks.
    """
    checks = []
    sm = next((gpu.sm for gpu in gpus if gpu.sm), "")
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
    listed, problem = run("arecord", "-l")[1:]
    cards = re.findall(r"^card \d+:.*?\[(.*?)\]", listed, re.MULTILINE)
    capturing = "capture" in _text("proc/asound/pcm")
    control = ROOT / "dev/snd/controlC0"
    if capturing and not os.access(control, os.R_OK | os.W_OK):
        fix = "sudo usermod -aG audio $USER, then log in again"
        return Check("microphone", "warn", "this user may not use the sound card", fix)
    if "found" in facts and capturing:
        fix = "`arecord -L` names the devices; pass one: frami-edge-listen MODEL --device NAME"
        return Check("microphone", "warn", "PortAudio has no default input device, ALSA has", fix)
    if cards and "found" not in facts:
        return Check("microphone", "ok", f"{', '.join(cards)} (arecord)")
    if "found" not in facts and "not found" in problem:
        text = f"no way to record: {facts['error']}, and no arecord"
        fix = "pip install sounddevice and apt-get install libportaudio2, or install alsa-utils"
        return Check("microphone", "absent" if "missing" in facts else "warn", text, fix)
    fix = "Plug one in; in a container add --device /dev/snd."
    return Check("microphone", "absent", "no input device", fix)


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
    gpus, gpu_check = find_gpus()
    tensorrt, tensorrt_checks = check_tensorrt(gpus)
    machine = [check_python(least_python), *check_memory(memory_gb), check_disk(disk_gb)]
    return [
        *grouped("machine", machine),
        *grouped("packages", check_packages(audio_needed=audio_needed)),
        *grouped("GPU", [gpu_check, *tensorrt_checks]),
        *grouped("engines", check_engines(places, tensorrt, gpus)),
        *grouped("sound", [check_microphone()]),
    ]


def grouped(group: str, checks: Sequence[Check]) -> list[Check]:
    """The checks under one heading."""
    return [replace(check, group=group) for check in checks]


def as_text(checks: Sequence[Check], encoding: str | None) -> str:
    """All checks by group; each fix on a line of its own, to be copied."""
    marks = {"ok": "✔", "warn": "!", "fail": "✘", "absent": "·"}
    try:
        "".join(marks.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        marks = {"ok": "ok", "warn": "!!", "fail": "XX", "absent": "--"}
    width = max(len(check.name) for check in checks)
    lines = []
    for group in dict.fromkeys(check.group for check in checks):
        lines.append(group)
        for check in (c for c in checks if c.group == group):
            lines.append(f"  {marks[check.status]} {check.name:<{width}}  {check.found}")
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
        print(as_text(checks, sys.stdout.encoding))
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
