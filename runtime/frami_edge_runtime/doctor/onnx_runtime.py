"""ONNX Runtime: does it load, is it there twice, do its GPU providers really start."""

from __future__ import annotations

from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.jetpack import is_jetson
from frami_edge_runtime.doctor.machine import Machine

NAMES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
                "onnxruntime-rocm", "onnxruntime-qnn")  # fmt: skip
"""Packages that install the same module."""
LIMIT_S: Final = 15.0
"""Long, because a busy machine must not pass for a broken one."""
_GPU: Final = {"CUDAExecutionProvider": "CUDA", "TensorrtExecutionProvider": "TensorRT"}
# An Identity of one float: a provider that cannot load its libraries falls back without an error.
_TINY: Final = (
    "CAcSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="
)
_ASK: Final = f"""
import base64
import numpy
import onnxruntime as o
say(version=o.__version__, providers=o.get_available_providers(), numpy=numpy.__version__)
options = o.SessionOptions()
options.log_severity_level = 4
model = base64.b64decode({_TINY!r})
def runs(providers):
    session = o.InferenceSession(model, options, providers=providers)
    session.run(None, {{"x": numpy.ones(1, numpy.float32)}})
    return session.get_providers()
say(cpu=runs(["CPUExecutionProvider"]))
if "CUDAExecutionProvider" in o.get_available_providers():
    say(cuda=runs(["CUDAExecutionProvider", "CPUExecutionProvider"]))
"""
_BROKEN_ON_JETSONS: Final = {"1.22.0": "aborts on import", "1.24.2": "crashes at exit"}
"""On an Orin NX: microsoft/onnxruntime#25103 and #28301."""


def onnx_runtime(machine: Machine) -> list[Check]:
    """A line on the package, and one on each of its GPU providers."""
    installed = [name for name in NAMES if machine.version(name)]
    told = machine.ask("onnxruntime", _ASK, LIMIT_S)
    version = told["version"]
    if len(installed) > 1:
        return [_twice(installed, told.trouble)]
    name = installed[0] if installed else "onnxruntime"
    if told["cpu"] is None:
        found = f"{version or ''} {told.trouble or 'it did not run a model'}".strip()
        if told.error == "ModuleNotFoundError" and not installed:
            return [Check(name, "fail", "not installed", "pip install onnxruntime", needed=True)]
        fix = f"pip install --force-reinstall --no-deps {name}"
        if "numpy" in told.trouble.lower():
            fix = "pip install 'numpy<2'"  # wheels of NVIDIA's that were built for NumPy 1
        return [Check(name, "fail", found, fix, needed=True)]
    why = _BROKEN_ON_JETSONS.get(str(version), "") if is_jetson(machine) else ""
    if why:
        text = f"{version} {why} on some Jetsons"
        return [Check(name, "warn", text, f"pip install '{name}!={version}'", needed=True)]
    providers = [p.removesuffix("ExecutionProvider") for p in told["providers"] or ()]
    text = f"{version}, providers: {', '.join(providers)}"
    return [Check(name, "ok", text, needed=True), *_gpu_provider(told["providers"], told["cuda"])]


def _twice(installed: list[str], trouble: str) -> Check:
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else installed[0]
    broken = f"; now: {trouble}" if trouble else ""
    return Check(
        "onnxruntime", "fail" if trouble else "warn",
        f"{' and '.join(installed)} overwrite each other's files{broken}",
        f"pip uninstall -y {' '.join(installed)}; then pip install {keep}", needed=True,
    )  # fmt: skip


def _gpu_provider(available: list[str] | None, running: list[str] | None) -> list[Check]:
    offered = [word for name, word in _GPU.items() if name in (available or ())]
    if not offered:
        return []
    if running and "CUDAExecutionProvider" in running:
        return [Check("GPU in onnxruntime", "ok", "CUDA runs a model")]
    return [
        Check(
            "GPU in onnxruntime", "warn",
            f"{' and '.join(offered)} offered, but it falls back to the CPU: no GPU, or CUDA and "
            "cuDNN are of another version than this onnxruntime was built for",
            "Install the CUDA and cuDNN that its release notes name, or use backend='cpu'.",
        )
    ]  # fmt: skip
