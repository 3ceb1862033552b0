"""Compare two models: the same facts, the same answers to the same clips, stream = whole clip.

Shape legend: N clips, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from frami_edge.bank import Bank
from frami_edge.checkpoint import TrainedOn
from frami_edge.data.decoding import read_audio
from frami_edge.data.sets import load_set, resolve_fold
from frami_edge.errors import BankError, CheckpointError
from frami_edge.models import StudentNet
from frami_edge.opening import OpenedModel
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_export.parity import parity_lengths, sqnr_db
from frami_edge_export.report import Gate
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec

Array = npt.NDArray[np.float32]

PROCEDURAL_SECONDS: Final = 2.0
LONGEST_SECONDS: Final = 30.0
STREAM_TOLERANCE: Final = 1e-6
"""Largest difference of a logit between a stream and the whole clip; the aim is 0."""

_RECEPTIVE_FIELD, _STRIDE = 31, 4  # where neither model has them: two teachers
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
    audio: list[tuple[Array, int]] = dataclasses.field(default_factory=list)
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
        if model.mel != self.mel:
            raise BankError(
                f"The bank's log-mels have another front end than {model.path.name}.",
                fix="Give the bank of these models, or compare on audio: --data, or no --bank.",
            )
        return model.logits(self.mels)


def bank_clips(folder: Path, count: int) -> ClipSet:
    """About ``count`` clips of a bank, spread evenly over each of its sources.

    Raises:
        BankError: The bank is missing, damaged or empty.
    """
    bank = Bank.open(folder)
    if not bank.sources:
        raise BankError(f"The bank in {folder} is empty.", fix="Make it again.")
    names: list[str] = []
    mels: list[Tensor] = []
    for source, total in bank.sources.items():
        clips = bank.read(source, max(1, count // len(bank.sources))).mels_N1MT[:, 0]
        mels += list(clips)
        names += [f"{source} {i}" for i in _spread(total, len(clips))]
    return ClipSet("bank", names, mels=mels, mel=bank.spec)


def real_clips(
    data: str, root: Path | None, fold: str | None, trained_on: TrainedOn | None, count: int
) -> ClipSet:
    """At most ``count`` real clips, spread evenly over a fold.

    Args:
        data: Name of a data set, or ``folder:PATH``.
        root: Folder that holds the data sets.
        fold: Test fold; None for the one that the models' teacher held out, else for all folds.
        trained_on: What that teacher was trained on, where known.
        count: Largest number of clips.

    Raises:
        DataError: The data set or fold does not exist.
    """
    sound_set = load_set(data, root)
    if fold is None and trained_on is not None and trained_on.data == sound_set.name:
        fold = trained_on.test_fold
    clips = list(sound_set.clips)
    if fold is not None:
        key = resolve_fold(sound_set, fold)
        clips = [clip for clip in clips if clip.fold == key]
    chosen = [clips[i] for i in _spread(len(clips), min(count, len(clips)))]
    audio = [read_audio(clip.path) for clip in chosen]
    return ClipSet("real", [clip.path.name for clip in chosen], audio)


def procedural_clips(mel: MelSpec, count: int, seed: int) -> ClipSet:
    """Synthesised sounds (shaped noise, tones, impacts), without any recording."""
    clips = ProceduralAudio(mel.sample_rate, PROCEDURAL_SECONDS).clips(count, seed)
    names = [f"procedural {i}" for i in range(count)]
    return ClipSet("procedural", names, [(clip, mel.sample_rate) for clip in clips])


def length_clips(mel: MelSpec, receptive_field: int, stride: int, seed: int) -> ClipSet:
    """One procedural sound cut to many lengths: one frame, around the receptive field, to 30 s."""
    rate, longest = mel.sample_rate, round(LONGEST_SECONDS * mel.sample_rate)
    first = 0 if mel.center else mel.n_fft
    frames = parity_lengths(receptive_field, stride, mel)
    lengths = {max(mel.min_samples, (n - 1) * mel.hop_length + first) for n in frames}
    lengths = {min(n, longest) for n in lengths}
    sound = ProceduralAudio(rate, LONGEST_SECONDS).clips(1, seed)[0]
    audio = []
    for n in sorted(lengths):
        start = (len(sound) - n) // 2  # the middle: the first samples may be silence
        audio.append((sound[start : start + n], rate))
    return ClipSet("lengths", [f"{len(x) / rate:.3g} s" for x, _ in audio], audio)


def _spread(total: int, count: int) -> list[int]:
    return [round(i) for i in np.linspace(0, max(total - 1, 0), count)]


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
    """Share of clips on which both predict the same class."""
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
    warnings: tuple[str, ...]
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
    """Compare facts, then answers on the clips and on many lengths, then streams.

    Args:
        a: Reference.
        b: Model to check.
        clip_sets: Clips to compare on.
        min_agreement: Gate: share of clips on which both predict the same class.
        max_difference: Gate: largest absolute difference of a logit; None for no such gate.
        seed: Seeds the clips of many lengths and the chunk sizes.

    Raises:
        CheckpointError: The models have different classes, so no logit can be compared.
        BankError: The log-mels of a bank do not fit a model.
        ModelFileError: A model fails, or answers with values that are not finite.
    """
    facts, warnings = _compare_facts(a, b)
    known = {fact.fact: fact.a or fact.b for fact in facts}
    field, stride = known["receptive field"] or _RECEPTIVE_FIELD, known["stride"] or _STRIDE
    lengths = length_clips(a.mel, field, stride, seed)
    answers, gates = {}, []
    for clips in (*clip_sets, lengths):
        logits_a, logits_b = (clips.logits(model).numpy() for model in (a, b))
        found = answers[clips.name] = compare_logits(logits_a, logits_b, clips.clip_names)
        # A clip of one frame says nothing about classes: lengths are judged by values alone.
        if clips is not lengths:
            gates.append(Gate.at_least(f"agreement, {clips.name}", found.agreement, min_agreement))
        if max_difference is not None:
            gates.append(
                Gate.at_most(f"difference, {clips.name}", found.max_abs_difference, max_difference)
            )
    streams = tuple(
        compare_stream(model, lengths, seed) for model in (a, b) if model.classifier is not None
    )
    gates += [
        Gate.at_most(f"stream = whole, {s.file}", s.from_classify, STREAM_TOLERANCE)
        for s in streams
    ]
    return ModelComparison(facts, warnings, answers, streams, tuple(gates))


def _compare_facts(a: OpenedModel, b: OpenedModel) -> tuple[tuple[FactPair, ...], tuple[str, ...]]:
    if a.labels != b.labels:
        only_one = sorted(set(a.labels) ^ set(b.labels))
        what = "have the same classes in another order"
        if only_one:
            what = f"have different classes ({', '.join(only_one[:5])} only in one of them)"
        raise CheckpointError(
            f"{a.path.name} and {b.path.name} {what}: their answers cannot be compared.",
            fix="Compare two models of the same teacher.",
        )
    facts, warnings = [], []
    for (name, first), second in zip(_facts(a).items(), _facts(b).values(), strict=True):
        unknown = first is None or second is None or name in ("kind", "precision")
        facts.append(FactPair(name, first, second, None if unknown else first == second))
        if unknown or first == second:
            continue
        if name == "front end":
            fields = [f.name for f in dataclasses.fields(a.mel)]
            changed = [f for f in fields if getattr(a.mel, f) != getattr(b.mel, f)]
            warnings.append(
                f"The front ends differ in {', '.join(changed)}: each model uses its own."
            )
        else:
            warnings.append(f"{name} differs: {first} and {second}.")
    return tuple(facts), tuple(warnings)


def _facts(model: OpenedModel) -> dict[str, Any]:
    info, opened = model.info, model.network
    network = None if opened is None else opened.model
    teacher, student = model.teacher_sha256, None if info is None else info.student_sha256
    field = stride = context = eps = None
    if info is not None:
        field, stride, eps = info.receptive_field, info.stride, info.pooling.eps
        context = (info.context.left, info.context.right)
    elif isinstance(network, StudentNet):
        student = model.sha256
        field, stride, eps = network.receptive_field, network.stride, network.pool_eps
        context = network.context
    else:
        teacher = model.sha256
    return {
        "kind": model.kind,
        "classes": len(model.labels),
        "front end": model.mel.digest[:16],
        "receptive field": field,
        "stride": stride,
        "context": context,
        "pooling eps": eps,
        "student": student and student[:16],
        "teacher": teacher and teacher[:16],
        "precision": "fp32" if info is None else info.precision,
    }


def compare_logits(
    a_NK: npt.NDArray[np.floating], b_NK: npt.NDArray[np.floating], clip_names: Sequence[str]
) -> LogitDifference:
    """Compare (N, K) logits with (N, K) logits.

    Raises:
        ModelFileError: A logit is not finite.
    """
    a, b = a_NK.astype(np.float64), b_NK.astype(np.float64)
    for which, z in (("first", a), ("second", b)):
        if not np.isfinite(z).all():
            worst = clip_names[int((~np.isfinite(z)).any(axis=1).argmax())]
            raise ModelFileError(
                f"The {which} model answers with values that are not finite on {worst}.",
                fix="Its weights overflow: distil the student again.",
            )
    difference = np.abs(a - b).max(axis=1)
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    kl = (np.exp(log_a) * (log_a - log_b)).sum(axis=1)
    return LogitDifference(
        clips=len(a),
        agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        max_abs_difference=float(difference.max()),
        kl_nats=float(np.maximum(kl, 0).mean()),
        sqnr_db=sqnr_db(a, b),
        worst_clip=clip_names[int(difference.argmax())],
    )


def _log_softmax(z_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = z_NK - z_NK.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


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
