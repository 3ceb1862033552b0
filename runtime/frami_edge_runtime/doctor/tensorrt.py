"""TensorRT: which one Python sees, which one the system has, and whether it knows this GPU.

It is imported in a child process only. Sources: NVIDIA's support matrices of TensorRT 10.0 to 11.3
and release notes of 10.8 and 11.3 (architectures), docs/JETPACK.md (JetPack, pip's aarch64 wheels).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.gpu import gpus
from frami_edge_runtime.doctor.jetpack import is_jetson, jetpack
from frami_edge_runtime.doctor.machine import Machine

OLDEST: Final = (10, 3)
_LIMIT_S: Final = 10.0
_PACKAGES: Final = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
_ASK: Final = """
import tensorrt
say(version=str(tensorrt.__version__), file=str(tensorrt.__file__))
"""
# Compute capabilities that came or went while TensorRT 10 and 11 were made.
_SINCE: Final[dict[tuple[int, ...], tuple[int, int]]] = {
    (10, 0): (10, 8), (12, 0): (10, 8), (10, 3): (10, 13), (11, 0): (10, 13), (12, 1): (10, 13),
    (10, 7): (11, 3),
}  # fmt: skip
_OLDEST_SM: Final = ((10, 5), (7, 5))
"""From this TensorRT on, nothing below this capability; before, 7.0."""
_IN_A_VENV: Final = "python3 -m venv --system-site-packages ENV"
_ON_A_JETSON: Final = f"sudo apt install nvidia-jetpack, and make the environment with {_IN_A_VENV}"


@dataclass(frozen=True)
class TensorRT:
    """What Python sees."""

    version: str = ""
    """Empty where it cannot be imported."""
    from_pip: bool = False
    problem: str = ""
    """Why it cannot be imported; empty where it is simply not installed."""


def tensorrt(machine: Machine) -> TensorRT:
    """Imported in a child, once for all probes."""
    return machine.once("tensorrt", lambda: _look(machine))


def tensorrt_lines(machine: Machine) -> list[Check]:
    """What is installed, and whether it fits this GPU."""
    seen = tensorrt(machine)
    system = _system_version(machine)
    jetson = is_jetson(machine)
    if not seen.version:
        return [_not_importable(machine, seen, system, jetson)]
    where = "from pip" if seen.from_pip else "of the system"
    text = f"{seen.version}, {where}"
    if jetson and seen.from_pip and _numbers(seen.version) < (11, 4):
        return [
            Check(
                "TensorRT", "fail", f"{text}: pip's packages for arm64 are for servers and do not "
                "support a Jetson's GPU", f"pip uninstall -y {' '.join(_installed(machine))}; then "
                f"{_ON_A_JETSON}",
            )
        ]  # fmt: skip
    if _numbers(seen.version) < OLDEST:
        return [
            Check("TensorRT", "warn", f"{text}: 10.3 is the oldest that our engines work with",
                  "JetPack 6.1 or newer; on a PC: pip install 'tensorrt>=10.3'")
        ]  # fmt: skip
    lines = [Check("TensorRT", "ok", text)]
    if system and seen.from_pip and _numbers(system)[:2] != _numbers(seen.version)[:2]:
        lines.append(
            Check("TensorRT, twice", "warn", f"pip's {seen.version} hides the system's {system}: "
                  "an engine fits one of them", f"pip uninstall -y {' '.join(_installed(machine))}")
        )  # fmt: skip
    return lines + _fits(machine, seen.version)


def supports(version: str, sm: str) -> bool:
    """Whether a TensorRT release has kernels for a compute capability, as far as is known.

    Args:
        version: ``10.3.0`` and the like.
        sm: ``8.7`` and the like.
    """
    release, capability = _numbers(version)[:2], _numbers(sm)
    newest_rule, least = _OLDEST_SM
    if capability < (least if release >= newest_rule else (7, 0)):
        return False
    return release >= _SINCE.get(capability, (0, 0))


def _fits(machine: Machine, version: str) -> list[Check]:
    lines = []
    for one in gpus(machine).found:
        if one.sm and not supports(version, one.sm):
            first = _SINCE.get(_numbers(one.sm))
            fix = (
                f"Install TensorRT {first[0]}.{first[1]} or newer."
                if first
                else "Use TensorRT 10.4 or older where its CUDA allows, or backend='cpu'."
            )
            text = f"{version} has no kernels for compute capability {one.sm} ({one.name})"
            lines.append(Check("TensorRT for this GPU", "fail", text, fix))
        elif one.sm:
            lines.append(Check("TensorRT for this GPU", "ok", f"knows compute capability {one.sm}"))
    return lines


def _not_importable(machine: Machine, seen: TensorRT, system: str, jetson: bool) -> Check:
    if seen.problem:
        release = jetpack(machine)
        fix = _ON_A_JETSON if jetson or release else "pip install --force-reinstall tensorrt"
        return Check("TensorRT", "warn", f"installed, but: {seen.problem}", f"{fix}.")
    if system:
        return Check(
            "TensorRT", "warn",
            f"the system has {system}, and this Python does not see it",
            f"{_IN_A_VENV} makes an environment that does (apt install python3-libnvinfer).",
        )  # fmt: skip
    if jetson:
        return Check("TensorRT", "absent", "not installed; engines need it", f"{_ON_A_JETSON}.")
    has_gpu = bool(gpus(machine).found)
    text = "not installed; only engines need it"
    return Check("TensorRT", "absent", text, "pip install 'tensorrt>=10.3'" if has_gpu else "")


def _look(machine: Machine) -> TensorRT:
    told = machine.ask("tensorrt", _ASK, _LIMIT_S)
    if told["version"]:
        # Debian's Python packages, JetPack's among them, live in dist-packages.
        return TensorRT(told["version"], "dist-packages" not in str(told["file"]))
    if told.error == "ModuleNotFoundError" and not _installed(machine):
        return TensorRT()
    return TensorRT(problem=told.trouble or "it told no version")


def _installed(machine: Machine) -> list[str]:
    return [name for name in _PACKAGES if machine.version(name)]


def _system_version(machine: Machine) -> str:
    """Of libnvinfer as dpkg or the linker know it; empty where it is not there."""
    answer = machine.command("dpkg-query", "-W", "-f", "${Version}\n", "libnvinfer[0-9]*",
                             limit_s=3)  # fmt: skip
    found = re.search(r"^(\d+(?:\.\d+){1,3})", answer.out, re.MULTILINE)
    if found is not None:
        return found[1]
    linked = machine.command("ldconfig", "-p", limit_s=3).out
    sonames = re.findall(r"libnvinfer\.so\.(\d+(?:\.\d+)*)", linked)
    return max(sonames, key=_numbers) if sonames else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
