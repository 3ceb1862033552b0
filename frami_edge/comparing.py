"""Compare models: facts, answers to the same clips, stream = whole clip; and how fast they are.

Shape legend: N clips, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from frami_edge.bank import Bank
from frami_edge.checkpoint import TrainedOn
from frami_edge.data.clips import read_audio, resolve_fold
from frami_edge.data.sets import load_set
from frami_edge.errors import BankError, CheckpointError, ConfigError, DataError, UnusableClipError
from frami_edge.evaluation import EVERY, same_set
from frami_edge.frontend import bridge_between
from frami_edge.losses import Output, kl_from, same_decision
from frami_edge.opening import OpenedModel
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_export.bench import Latency, interleaved
from frami_edge_export.parity import parity_inputs, sqnr_db
from frami_edge_export.report import Gate
from frami_edge_runtime.errors import ModelFileError, StreamError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec

log = logging.getLogger("frami_edge")

Array = npt.NDArray[np.float32]

STREAM_TOLERANCE: Final = 1e-6
"""Largest difference of a logit between a stream and the whole clip; the aim is 0."""

_PROCEDURAL_S, _LONGEST_S, _LENGTHS = 2.0, 30.0, 16
_STREAM_CLIPS, _LONGEST_CHUNK_S = 4, 0.25


@dataclass
class ClipSet:
    """Clips of one kind: either audio or log-mels.

    Attributes:
        name: Kind of the clips: ``bank``, ``real``, ``procedural`` or ``lengths``.
        clip_names: Name of each clip.
        audio: Samples (float32, mono) and sample rate in Hz of each clip.
        mels: (M, T) normalised log-mels, where there is no audio.
        mel: Front end of the log-mels.
    """

    name: str
    clip_names: list[str]
    audio: list[tuple[Array, int]] = field(default_factory=list)
    mels: Sequence[Tensor] = ()
    mel: MelSpec | None = None

    def logits(self, model: OpenedModel) -> Tensor:
        """Logits (N, K) of a model; audio goes through the model's own front end.

        Raises:
            BankError: These are log-mels of another front end than the model's.
            ModelFileError: These are log-mels, and the model takes samples.
        """
        if self.audio:
            return model.logits_of_audio(self.audio)
        if model.mel == self.mel:
            return model.logits(self.mels)
        bridge = bridge_between(self.mel, model.mel) if self.mel else None
        if bridge is None:
            raise BankError(
                f"The bank's log-mels have another front end than {model.path.name}.",
                fix="Give the bank of these models, or compare on audio: --data, or no --bank.",
            )
        log.warning(
            "The bank's log-mels are converted to the front end of %s: it is another one.",
            model.path.name,
        )
        return model.logits([bridge(mel_MT[None, None])[0, 0] for mel_MT in self.mels])


def bank_clips(folder: Path, count: int) -> ClipSet:
    """About ``count`` clips of a bank, spread evenly over each of its sources.

    Raises:
        BankError: The bank is missing, damaged or empty.
    """
    bank = Bank.open(folder)
    if not bank.sources:
        raise BankError(f"The bank in {folder} is empty.", fix="Make it again.")
    names: list[str] = []
    clips: list[Tensor] = []
    for source in bank.sources:
        numbers = bank.some(source, max(1, count // len(bank.sources)))
        clips += list(bank.clips(source, numbers))
        names += [f"{source} {i}" for i in numbers.tolist()]
    if bank.index.samples:
        rate = bank.spec.sample_rate
        return ClipSet("bank", names, [(x.numpy(), rate) for x in clips])
    return ClipSet("bank", names, mels=[x[0] for x in clips], mel=bank.spec)


def real_clips(
    data: str, root: Path | None, fold: str | None, trained_on: TrainedOn | None, count: int
) -> ClipSet:
    """At most ``count`` real clips, spread evenly over a fold; a warning names unusable ones.

    Without a fold: the one that the models' teacher held out where known, else all folds.

    Raises:
        DataError: The data set or fold does not exist, or none of the clips can be used.
    """
    sound_set = load_set(data, root)
    if fold is None and trained_on is not None and same_set(trained_on, sound_set):
        fold = trained_on.test_fold
    clips = list(sound_set.clips)
    if fold not in (None, EVERY):
        key = resolve_fold(sound_set, fold)
        clips = [clip for clip in clips if clip.fold == key]
    spread = np.linspace(0, max(len(clips) - 1, 0), min(count, len(clips)))
    chosen = [clips[round(i)] for i in spread]
    names, audio = [], []
    for clip in chosen:
        try:
            audio.append(read_audio(clip.path))
            names.append(clip.path.name)
        except UnusableClipError as error:
            log.warning("%s is left out: %s.", clip.name, error.message)
    if not audio:
        raise DataError(
            f"None of {len(chosen)} clips of {data} can be used.",
            fix="Each warning says why; `frami-edge doctor` lists the files that are decoded.",
        )
    return ClipSet("real", names, audio)


def procedural_clips(mel: MelSpec, count: int, seed: int) -> ClipSet:
    """Synthesised sounds (shaped noise, tones, impacts), without any recording."""
    clips = ProceduralAudio(mel.sample_rate, _PROCEDURAL_S).clips(count, seed)
    names = [f"procedural {i}" for i in range(count)]
    return ClipSet("procedural", names, [(clip, mel.sample_rate) for clip in clips])


def length_clips(mel: MelSpec, seed: int) -> ClipSet:
    """One procedural sound cut to 16 lengths, from a single mel frame to 30 s."""
    rate = mel.sample_rate
    sound = ProceduralAudio(rate, _LONGEST_S).clips(1, seed)[0]
    audio = []
    for n in np.geomspace(mel.min_samples, len(sound), _LENGTHS).round().astype(int):
        start = (len(sound) - n) // 2  # the middle: the first samples may be silence
        audio.append((sound[start : start + n], rate))
    return ClipSet("lengths", [f"{len(x) / rate:.3g} s" for x, _ in audio], audio)


@dataclass(frozen=True)
class FactPair:
    """One fact about both models; ``same`` is None where it may differ or is unknown."""

    fact: str
    a: Any
    b: Any
    same: bool | None


@dataclass(frozen=True)
class LogitDifference:
    """How far the logits of model b are from those of model a, on the same clips."""

    clips: int
    agreement: float
    """Share of clips with the same answer: class, or set of detected classes."""
    max_abs_difference: float
    kl_nats: float
    """Mean KL(a ‖ b) over the clips."""
    sqnr_db: float | None
    """Power of a's logits over that of the difference, in dB; None where they are equal."""
    worst_clip: str
    """Clip with the largest difference."""


@dataclass(frozen=True)
class StreamDifference:
    """How far a stream in random chunks is from the whole clip: largest difference of a logit."""

    file: str
    clips: int
    chunks: int
    from_classify: float
    """Difference from `Classifier.classify`."""
    from_one_run: float
    """Difference from one run of the graph over the whole clip, whose float32 rounding differs."""


@dataclass(frozen=True)
class ModelComparison:
    """Everything that `compare` found; true where all gates passed."""

    facts: tuple[FactPair, ...]
    answers: dict[str, LogitDifference]
    streams: tuple[StreamDifference, ...]
    gates: tuple[Gate, ...]

    def __bool__(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)


def compare(
    a: OpenedModel,
    b: OpenedModel,
    clip_sets: Sequence[ClipSet],
    *,
    min_agreement: float = 0.98,
    max_difference: float | None = None,
    seed: int = 0,
) -> ModelComparison:
    """Compare b with a: facts, then answers on the clips and on many lengths, then streams.

    Gates are the share of clips with one predicted class and, where given, the largest absolute
    difference of a logit.

    Raises:
        CheckpointError: The models have different classes, so no logit can be compared.
        BankError: The log-mels of a bank do not fit a model.
        ModelFileError: A model fails, or its logits are not finite.
    """
    if a.labels != b.labels:
        raise CheckpointError(
            f"{a.path.name} and {b.path.name} have different classes, or another order of them.",
            fix="Compare two models of the same teacher.",
        )
    lengths = length_clips(a.mel, seed)
    answers, gates = {}, []
    for clips in (*clip_sets, lengths):
        found = compare_logits(clips.logits(a), clips.logits(b), clips.clip_names, a.output)
        answers[clips.name] = found
        # A clip of one frame says nothing about classes: lengths are judged by values alone.
        if clips is not lengths:
            gates.append(Gate.at_least(f"agreement, {clips.name}", found.agreement, min_agreement))
        if max_difference is not None:
            gates.append(
                Gate.at_most(f"difference, {clips.name}", found.max_abs_difference, max_difference)
            )
    streams = tuple(compare_stream(m, lengths, seed) for m in (a, b) if m.classifier is not None)
    gates += [
        Gate.at_most(f"stream = whole, {s.file}", s.from_classify, STREAM_TOLERANCE)
        for s in streams
    ]
    return ModelComparison(_compare_facts(a, b), answers, streams, tuple(gates))


def _compare_facts(a: OpenedModel, b: OpenedModel) -> tuple[FactPair, ...]:
    """Facts side by side; settings of the front end only where they differ."""
    found, theirs = [], _facts(b)
    for name, first in _facts(a).items():
        second = theirs[name]
        unknown = None in (first, second) or name in ("kind", "precision")
        if first != second or not name.startswith("mel "):
            found.append(FactPair(name, first, second, None if unknown else first == second))
    return tuple(found)


def _facts(model: OpenedModel) -> dict[str, Any]:
    info, own = model.info, {model.kind: model.sha256}
    student = info.student_sha256 if info else own.get("student")
    teacher = own.get("teacher", model.teacher_sha256)
    return {
        "kind": model.kind,
        "precision": info.precision if info else "fp32",
        **{f"mel {name}": value for name, value in model.mel.to_dict().items()},
        "student": student and student[:16],
        "teacher": teacher and teacher[:16],
    }


def compare_logits(
    a_NK: Tensor, b_NK: Tensor, clip_names: Sequence[str], output: Output = "softmax"
) -> LogitDifference:
    """Compare (N, K) logits with (N, K) logits.

    Raises:
        ModelFileError: A logit is not finite.
    """
    a, b = a_NK.double(), b_NK.double()
    finite = (a.isfinite() & b.isfinite()).all(dim=1)
    if not finite.all():
        clip = clip_names[int(finite.int().argmin())]
        raise ModelFileError(
            f"A model answers with values that are not finite on {clip}.",
            fix="Its weights overflow: distil the student again.",
        )
    difference = (a - b).abs().amax(dim=1)
    return LogitDifference(
        clips=len(a),
        agreement=float(same_decision(a, b, output).double().mean()),
        max_abs_difference=float(difference.max()),
        kl_nats=max(0.0, float(kl_from(a, b, output).double().mean())),
        sqnr_db=sqnr_db(a.numpy(), b.numpy()),
        worst_clip=clip_names[int(difference.argmax())],
    )


def compare_stream(model: OpenedModel, clips: ClipSet, seed: int) -> StreamDifference:
    """Push the last few clips in chunks of random size, and compare with the whole clips."""
    assert model.classifier is not None, "only a streaming model has streams"
    rng, rate = np.random.default_rng(seed), model.mel.sample_rate
    chunks, from_classify, from_one_run = 0, 0.0, 0.0
    few = clips.audio[-_STREAM_CLIPS:]
    for samples, _ in few:
        stream = model.classifier.stream()
        start = 0
        while start < len(samples):
            size = int(rng.integers(1, max(2, int(_LONGEST_CHUNK_S * rate))))
            stream.push(samples[start : start + size])
            start, chunks = start + size, chunks + 1
        result = stream.flush()
        assert result is not None
        classified_K = model.classifier.classify(samples).logits
        mel_MT = np.ascontiguousarray(log_mel(samples, model.mel).T)
        whole_K = model.logits([mel_MT]).numpy()[0]
        from_classify = max(from_classify, float(np.abs(result.logits - classified_K).max()))
        from_one_run = max(from_one_run, float(np.abs(result.logits - whole_K).max()))
    return StreamDifference(model.path.name, len(few), chunks, from_classify, from_one_run)


# --- How fast models are on this machine: the graph alone, and the whole stream

BUDGET_S: Final = 3.0
"""Seconds of measuring for each row of the table."""
_WINDOW_S, _AUDIO_S = 1.0, 10.0
QUIET_S: Final = 95.0
"""Seconds of quiet around a sound that lasts a twentieth of both together."""
_QUIET_DB, _SOUND_DB, _OPEN_S = -70.0, -30.0, 5.0  # _OPEN_S: until a gate is closed
_GATE_ROUNDS: Final = 3


@dataclass
class ModelTiming:
    """Timings of one model.

    Attributes:
        latency: Latency by input. ``1 s`` and ``chunk 0.1 s`` (with its context) time the graph
            alone, ``push`` a whole `Stream.push`: log-mel, trunk, pooling and head.
        core_share: CPU seconds per second of audio of the whole stream.
        real_time_factor: Wall seconds per second of audio of the whole stream, by the median push.
        gate_saves: Share of the CPU time that a gate saves in a quiet room; None where the stream
            cannot have one.
        gate_saves_with_sounds: The same in a room that is quiet for 95 % of the time.
    """

    latency: dict[str, Latency] = field(default_factory=dict)
    core_share: float | None = None
    real_time_factor: float | None = None
    gate_saves: float | None = None
    gate_saves_with_sounds: float | None = None


def measure(
    models: Sequence[OpenedModel],
    *,
    seconds: Sequence[float] = (1.0, 5.0),
    chunk_s: float = 0.1,
    rounds: int = 300,
) -> list[ModelTiming]:
    """Time exported models; within each round they take turns, so that their ratio is fair.

    They run on audio of each length that an engine's profile allows, and on streaming chunks with
    ``chunk_s`` of new audio.

    Raises:
        ConfigError: A model is a checkpoint, which no device runs.
    """
    pushes = {i: _Push(m, chunk_s) for i, m in enumerate(models) if m.classifier is not None}
    jobs: dict[str, dict[int, Callable[[], object]]] = {}
    for i, model in enumerate(models):
        inputs = {f"{length:g} s": graph_input(model, length) for length in seconds}
        if i in pushes:
            inputs[f"chunk {chunk_s:g} s"] = graph_input(model, chunk_s, chunk=True)
        for name, x in inputs.items():
            if x is not None:
                jobs.setdefault(name, {})[i] = partial(model.graph, x)
    jobs["push"] = dict(pushes)
    found = [ModelTiming() for _ in models]
    for name, calls in jobs.items():
        if calls:
            named = {str(i): call for i, call in calls.items()}
            times = interleaved(named, budget_s=BUDGET_S, max_rounds=rounds)
            for key, latency in times.items():
                found[int(key)].latency[name] = latency
    for i, push in pushes.items():
        found[i].core_share = push.cpu_s / (push.calls * chunk_s)
        found[i].real_time_factor = found[i].latency["push"].p50_ms / 1000 / chunk_s
        found[i].gate_saves, found[i].gate_saves_with_sounds = gate_saves(models[i], chunk_s)
    return found


def gate_saves(model: OpenedModel, chunk_s: float) -> tuple[float | None, float | None]:
    """Shares of CPU time that a gate saves: in a quiet room, and with a sound in 5 % of the time.

    Streams with and without a gate take turns; the least times count. None where there is no gate.
    """
    assert model.classifier is not None
    rate = model.mel.sample_rate
    rng, half, sound_s = np.random.default_rng(0), QUIET_S / 2, QUIET_S / 19
    levels = [(_QUIET_DB, _OPEN_S + half), (_SOUND_DB, sound_s), (_QUIET_DB, half)]
    parts = [10 ** (db / 20) * rng.standard_normal(round(s * rate)) for db, s in levels]
    x, size = np.concatenate(parts).astype(np.float32), max(1, round(chunk_s * rate))
    chunks = [x[i : i + size] for i in range(0, len(x), size)]
    opened, quiet = round(_OPEN_S / chunk_s), round((_OPEN_S + half) / chunk_s)
    stretches = chunks[opened:quiet], chunks[quiet:]
    window_s, least_s = max(_WINDOW_S, chunk_s), np.full((2, 2), np.inf)
    for _ in range(_GATE_ROUNDS):
        streams = []
        for gate_db in (None, _QUIET_DB + 20):
            try:
                stream = model.classifier.stream(window_s=window_s, gate_db=gate_db)
            except StreamError:
                return None, None
            stream.push(np.concatenate(chunks[:opened]))
            streams.append(stream)
        for i, stretch in enumerate(stretches):
            for k, stream in enumerate(streams):
                busy_s = time.process_time()
                for chunk in stretch:
                    stream.push(chunk)
                least_s[k, i] = min(least_s[k, i], time.process_time() - busy_s)
    plain_s, gated_s = least_s
    return 1 - gated_s[0] / plain_s[0], 1 - gated_s.sum() / plain_s.sum()


def graph_input(model: OpenedModel, seconds: float, *, chunk: bool = False) -> Array | None:
    """Input of one run of the graph, or None where it is too long for an engine.

    A chunk continues a stream: the frames carried from before replace the context.

    Raises:
        ConfigError: The model is a checkpoint.
    """
    info = model.info
    if info is None:
        raise ConfigError(
            f"{model.path} is a checkpoint, which does not run on a device.",
            fix=f"Export it first: frami-edge export {model.path} --out FOLDER.",
        )
    samples = max(info.mel.min_samples, round(seconds * info.mel.sample_rate))
    if model.kind == "waveform":
        return np.random.default_rng(0).uniform(-0.5, 0.5, (1, samples)).astype(np.float32)
    frames = max(1, info.mel.frames(samples))
    if chunk:
        new_frames = max(1, round(seconds / info.frame_s)) - 1
        frames = info.receptive_field + new_frames * info.stride
    elif model.classifier is not None:
        frames += info.receptive_field - 1
    if model.classifier is not None and frames > model.classifier.model.max_mel_frames:
        return None
    return parity_inputs([frames], model.mel, 0)[0]


class _Push:
    """Pushes the next chunk of procedural audio, again and again, and counts CPU time."""

    def __init__(self, model: OpenedModel, chunk_s: float) -> None:
        assert model.classifier is not None
        rate = model.mel.sample_rate
        size = max(1, round(chunk_s * rate))
        audio = ProceduralAudio(rate, max(_AUDIO_S, 2 * chunk_s)).clips(1, 0)[0]
        self._chunks = cycle([audio[i : i + size] for i in range(0, len(audio) - size + 1, size)])
        self._stream = model.classifier.stream(window_s=max(_WINDOW_S, chunk_s), hop_s=chunk_s)
        self.calls, self.cpu_s = 0, 0.0

    def __call__(self) -> None:
        chunk = next(self._chunks)
        busy_s = time.process_time()
        self._stream.push(chunk)
        self.cpu_s += time.process_time() - busy_s
        self.calls += 1
