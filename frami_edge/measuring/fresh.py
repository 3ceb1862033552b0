"""What a model costs a program that only runs it: start and memory of a fresh process.

The process imports the runtime and nothing else of frami-edge, as a device does; for a whole
classifier it imports ONNX Runtime alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from frami_edge.errors import ModelFileError
from frami_edge.measuring.subject import Subject

REPEATS: Final = 3
"""Processes a model; medians are given, and models take turns."""
_LIMIT_S = 120
_PROGRAM = """
import json, resource, sys, time
path, kind, backend, threads, rate = sys.argv[1:6]
begun = time.perf_counter()
import numpy as np
samples = np.random.default_rng(0).uniform(-0.1, 0.1, int(rate)).astype(np.float32)
if kind in ("streaming", "engine"):
    from frami_edge_runtime import Classifier
    imported = time.perf_counter()
    model = Classifier(path, backend, threads=int(threads))
    loaded = time.perf_counter()
    model.classify(samples)
    first = time.perf_counter()
    stream = model.stream(window_s=1.0)
    for start in range(0, 10 * len(samples), len(samples)):
        stream.push(samples)
    stream.flush()
else:
    import onnxruntime as ort
    imported = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = int(threads), 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    port = session.get_inputs()[0]
    x = samples[None] if kind == "waveform" else np.zeros((1, 1, port.shape[2], 100), np.float32)
    session.run(None, {port.name: x})
    first = time.perf_counter()
try:
    # Not ru_maxrss: on Linux a child starts with the peak of the process that started it.
    status = open("/proc/self/status").read()
    peak_mb = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
except (OSError, IndexError):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
print(json.dumps({"import_ms": 1e3 * (imported - begun), "load_ms": 1e3 * (loaded - imported),
                  "first_ms": 1e3 * (first - loaded), "peak_mb": peak_mb}))
"""


@dataclass(frozen=True)
class Start:
    """Medians over some fresh processes."""

    import_ms: float
    """NumPy, ONNX Runtime where it is imported early, and the runtime."""
    load_ms: float
    """The model's file to a checked model."""
    first_ms: float
    """The answer to the first second of audio."""
    peak_mb: float
    """Largest resident memory of the process, in 10^6 bytes, everything included."""


def measure_start(subjects: Mapping[str, Subject], repeats: int = REPEATS) -> dict[str, Start]:
    """Start a process for each model, in turns.

    Raises:
        ModelFileError: The process ended with an error or did not end.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            runs[name].append(_once(subject))
    return {
        name: Start(**{key: statistics.median(run[key] for run in found) for key in found[0]})
        for name, found in runs.items()
    }


def _once(subject: Subject) -> dict[str, float]:
    rate = str(subject.info.mel.sample_rate)
    arguments = [
        str(subject.path), subject.kind, subject.backend, str(subject.threads), rate,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments],
            capture_output=True, text=True, timeout=_LIMIT_S, check=True,
        )  # fmt: skip
        found: dict[str, float] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise ModelFileError(
            f"A fresh process could not run {subject.path.name}: {said[-1] if said else error}",
            fix="Leave the start out: --no-start.",
        ) from None
    return found
