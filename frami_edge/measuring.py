"""How fast a model is here: its graph, its whole stream, its start, its memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from frami_edge.errors import CheckpointError, ConfigError
from frami_edge.inspecting import CLASSIFIER_KEY, WAVEFORM_KEY, OnnxSession, read_info, read_onnx
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_export.bench import Latency, interleaved
from frami_edge_export.parity import parity_inputs
from frami_edge_runtime.backends import UNBOUNDED, open_backend
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.modelfile import ModelInfo

# --- A model to be timed: a streaming file or engine through the runtime, or a whole classifier
# Shape legend: M mel bands, T mel frames.

Kind = Literal["streaming", "classifier", "waveform", "engine"]


@dataclass
class Subject:
    """What is timed.

    Attributes:
        path: Its file.
        kind: What it takes: log-mel chunks, a whole log-mel, or samples.
        backend: What runs it.
        info: What it says of itself.
        threads: CPU threads.
        run: One run of the graph on an input that `input_of` made.
        classifier: The runtime's, for a model that streams.
    """

    path: Path
    kind: Kind
    backend: str
    info: ModelInfo
    threads: int
    run: Callable[[npt.NDArray[np.float32]], object]
    longest: int
    classifier: Classifier | None = None

    def whole_input(self, seconds: float) -> npt.NDArray[np.float32] | None:
        """What the graph is given for so much audio in one run; None where it is too long."""
        info, rate = self.info, self.info.mel.sample_rate
        samples = max(1, round(seconds * rate))
        if self.kind == "waveform":
            rng = np.random.default_rng(0)
            return rng.uniform(-0.5, 0.5, (1, samples)).astype(np.float32)
        frames = max(1, info.mel.frames(max(samples, info.mel.min_samples)))
        mel_B1MT = parity_inputs([frames], info.mel, 0)[0]
        if self.kind == "classifier":
            return mel_B1MT
        context = (info.context.left, info.context.right)
        padded = np.pad(mel_B1MT, ((0, 0), (0, 0), (0, 0), context))
        return padded if padded.shape[3] <= self.longest else None

    def chunk_input(self, seconds: float) -> npt.NDArray[np.float32] | None:
        """What a stream gives the graph for each chunk: new frames after the carried ones."""
        if self.classifier is None:
            return None
        info = self.info
        steps = max(1, round(seconds / info.frame_s))
        frames = info.receptive_field + (steps - 1) * info.stride
        return parity_inputs([frames], info.mel, 0)[0] if frames <= self.longest else None


def open_subject(path: Path, backend: str, threads: int) -> Subject:
    """Open a model for timing.

    Raises:
        ConfigError: A checkpoint, which no device runs, or threads for another backend.
        CheckpointError: There is no such file.
        ModelFileError: No sound model of `frami-edge export`, or an engine that cannot run here.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder, not a model." if path.is_dir() else f"There is no model {path}.",
            fix="Give an .onnx file of `frami-edge export`, or an .engine.",
        )
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        raise ConfigError(
            f"{path} is a checkpoint; no device runs those.",
            fix=f"Export it first: frami-edge export {path} --out FOLDER, then bench its .onnx.",
        )
    if suffix == ".onnx":
        found = read_info(read_onnx(path))
        if found is None:
            raise ModelFileError(
                f"{path} carries no description of frami-edge, so its front end is unknown.",
                fix="Give an .onnx file of `frami-edge export`.",
            )
        key, info = found
        if key in (CLASSIFIER_KEY, WAVEFORM_KEY):
            return _whole(path, "classifier" if key == CLASSIFIER_KEY else "waveform", info,
                          backend, threads)  # fmt: skip
    classifier = Classifier(path, backend, threads=threads)
    model = open_backend(path, backend, threads=threads)
    kind: Kind = "engine" if classifier.backend == "tensorrt" else "streaming"
    return Subject(
        path, kind, classifier.backend, classifier.info, threads, model.frames,
        model.max_mel_frames, classifier,
    )  # fmt: skip


def _whole(path: Path, kind: Kind, info: ModelInfo, backend: str, threads: int) -> Subject:
    if backend not in ("auto", "cpu"):
        raise ConfigError(
            f"{path.name} is a whole classifier; it is timed on the CPU alone.",
            fix="Leave --backend out, or give a streaming file.",
        )
    session = OnnxSession(path, path.name, threads=threads)
    return Subject(path, kind, "cpu", info, threads, session.run, UNBOUNDED)


# --- Latency of the graph alone, on lengths of audio in one run, and on a streaming chunk

BUDGET_S: Final = 3.0
"""Seconds of measuring for each row of the table."""


def graph_latency(
    subjects: Mapping[str, Subject], seconds: Sequence[float], chunk_s: float, rounds: int
) -> dict[str, dict[str, Latency]]:
    """By what is run, then by model; models take turns, so that their ratio is fair.

    Args:
        subjects: By name.
        seconds: Lengths of audio to run at once.
        chunk_s: Seconds of new audio in a streaming chunk.
        rounds: At most so many.
    """
    jobs: dict[str, dict[str, Callable[[], object]]] = {}
    for name, subject in subjects.items():
        for length in seconds:
            x = subject.whole_input(length)
            if x is not None:
                jobs.setdefault(f"{length:g} s", {})[name] = _call(subject, x)
        x = subject.chunk_input(chunk_s)
        if x is not None:
            jobs.setdefault(f"chunk {chunk_s:g} s", {})[name] = _call(subject, x)
    return {
        what: interleaved(calls, budget_s=BUDGET_S, max_rounds=rounds)
        for what, calls in jobs.items()
    }


def _call(subject: Subject, x: object) -> Callable[[], object]:
    return lambda: subject.run(x)  # type: ignore[arg-type]


# --- What a whole stream costs: mel, trunk, pooling and head, chunk after chunk, as on a device

WINDOW_S: Final = 1.0
"""What a result looks back on; with a result for each chunk, the head runs as often as it can."""
_WARM_UP = 10
_LONGEST_S = 60.0


@dataclass(frozen=True)
class StreamLoad:
    """Of one model."""

    latency: Latency
    """Of a push."""
    real_time_factor: float
    """Seconds of wall clock for a second of audio."""
    core_share: float
    """Seconds of CPU time for a second of audio: the share of one core that the stream takes."""
    audio_s: float
    results: int


def measure_streams(
    subjects: Mapping[str, Subject], chunk_s: float, rounds: int
) -> dict[str, StreamLoad]:
    """Push procedural audio into every model that streams, in turns.

    Args:
        subjects: By name.
        chunk_s: Seconds of each push.
        rounds: Pushes; at most 60 s of audio.
    """
    streams, audio, sizes = {}, {}, {}
    pushes = max(1, min(rounds, int(_LONGEST_S / chunk_s)))
    for name, subject in subjects.items():
        if subject.classifier is None:
            continue
        rate = subject.info.mel.sample_rate
        sizes[name] = max(1, round(chunk_s * rate))
        seconds = max(0.1, (pushes + _WARM_UP) * sizes[name] / rate)
        audio[name] = ProceduralAudio(rate, seconds).clips(1, 0)[0]
        window = max(WINDOW_S, chunk_s)
        streams[name] = subject.classifier.stream(window_s=window, hop_s=chunk_s)
    names = list(streams)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu = dict.fromkeys(names, 0.0)
    results = dict.fromkeys(names, 0)
    for i in range(_WARM_UP + pushes):
        turn = i % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            chunk = audio[name][i * sizes[name] : (i + 1) * sizes[name]]
            busy, begun = time.process_time(), time.perf_counter()
            found = streams[name].push(chunk)
            took, busy = time.perf_counter() - begun, time.process_time() - busy
            if i >= _WARM_UP:
                wall[name].append(took)
                cpu[name] += busy
                results[name] += len(found)
    loads = {}
    for name in names:
        heard_s = pushes * sizes[name] / subjects[name].info.mel.sample_rate
        latency = Latency.of([1000 * t for t in wall[name]])
        loads[name] = StreamLoad(
            latency, sum(wall[name]) / heard_s, cpu[name] / heard_s, heard_s, results[name]
        )
    return loads


# --- What a model costs a program that only runs it: start and memory of a fresh process
# The process imports the runtime and nothing else of frami-edge, as a device does; for a whole
# classifier it imports ONNX Runtime alone.

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


# --- How fast a model is here: its graph, its whole stream, its start, its memory

__all__ = [
    "Start",
    "StreamLoad",
    "Subject",
    "graph_latency",
    "measure_start",
    "measure_streams",
    "open_subject",
]
