"""Two models side by side: the same facts, and the same answers on the same clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch

from frami_edge.bank import Bank
from frami_edge.checkpoint import TrainedOn, load_checkpoint
from frami_edge.data.sets import load_set, read_audio, resolve_fold
from frami_edge.errors import BankError, CheckpointError, ConfigError
from frami_edge.evaluation import predict
from frami_edge.frontend import resample
from frami_edge.inspecting import CLASSIFIER_KEY, WAVEFORM_KEY, OnnxSession, read_info, read_onnx
from frami_edge.models import StudentNet
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge.teachers.opening import DESCRIPTIONS, open_teacher
from frami_edge_export.calibration import classify_mels
from frami_edge_export.parity import parity_lengths, sqnr_db
from frami_edge_runtime.backends import open_backend
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import METADATA_KEY, ModelInfo
from frami_edge_runtime.pooling import mean_std

# --- One of the two models of a comparison, whatever its form, and its answers to a batch of cli
# Shape legend: N clips, B batch, M mel bands, T mel frames, K classes.

Logits = npt.NDArray[np.float32]
Kind = Literal["student", "teacher", "streaming", "classifier", "waveform", "engine"]
ENGINES = (".engine", ".plan", ".trt")
_KINDS: dict[str, Kind] = {
    METADATA_KEY: "streaming",
    CLASSIFIER_KEY: "classifier",
    WAVEFORM_KEY: "waveform",
}
_BATCH_FRAMES = 4096
"""Mel frames of one run, at least one clip: bounds memory."""
_RUN_FRAMES = 64
"""Trunk frames of one run of an engine, as in the runtime."""


@dataclass
class Side:
    """A model, what it says of itself, and how to ask it.

    Attributes:
        path: Its file.
        kind: What it is.
        labels: (K,) class names.
        spec: Front end.
        answer: Logits (N, K) float32 to a batch of clips.
        precision: ``fp32``, ``fp16`` or ``int8``.
        receptive_field: In mel frames; None where it has none.
        stride: In mel frames.
        context: Mel frames before and after a clip; None where it has none.
        pool_eps: Added to the variance in the pooling.
        student_sha256: The student's checkpoint, where known.
        teacher_sha256: The teacher's, where known.
        heard: Real clips behind it, where it says so.
        classifier: The runtime's, for a model that streams.
    """

    path: Path
    kind: Kind
    labels: tuple[str, ...]
    spec: MelSpec
    answer: Callable[[Batch], Logits]
    precision: str = "fp32"
    receptive_field: int | None = None
    stride: int | None = None
    context: tuple[int, int] | None = None
    pool_eps: float | None = None
    student_sha256: str | None = None
    teacher_sha256: str | None = None
    heard: TrainedOn | None = None
    classifier: Classifier | None = None


def open_side(path: Path, backend: str = "auto") -> Side:
    """Open a checkpoint, a teacher's YAML, an ONNX file of `frami-edge export`, or an engine.

    Args:
        path: By its suffix.
        backend: Of the runtime, for a streaming file or an engine.

    Raises:
        CheckpointError: No such file, or no sound checkpoint.
        ModelFileError: No sound model of `frami-edge export`, or an engine that cannot run here.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder, not a model." if path.is_dir() else f"There is no model {path}.",
            fix="Give a .safetensors checkpoint, an .onnx file of `frami-edge export`, or an "
            ".engine.",
        )
    suffix = path.suffix.lower()
    if suffix in ENGINES:
        return _engine(path, backend)
    if suffix == ".onnx":
        return _onnx(path, backend)
    return _checkpoint(path)


def _checkpoint(path: Path) -> Side:
    loaded = open_teacher(path) if path.suffix.lower() in DESCRIPTIONS else load_checkpoint(path)
    model, card = loaded.model, loaded.card

    def answer(batch: Batch) -> Logits:
        mels = [torch.from_numpy(mel) for mel in batch.mels_for(loaded.spec)]
        logits: Logits = predict(model, mels).numpy()
        return logits

    side = Side(
        path, card.kind, card.labels, loaded.spec, answer,
        stride=None, heard=card.heard, teacher_sha256=card.teacher_sha256,
    )  # fmt: skip
    if isinstance(model, StudentNet):
        side.receptive_field, side.stride = model.receptive_field, model.stride
        side.context, side.pool_eps = model.context, model.pool_eps
        side.student_sha256 = loaded.sha256
    else:
        side.teacher_sha256 = loaded.sha256
    return side


def _onnx(path: Path, backend: str) -> Side:
    model = read_onnx(path)
    found = read_info(model)
    if found is None:
        raise ModelFileError(
            f"{path} carries no description of frami-edge: labels and front end are unknown.",
            fix="Compare files of `frami-edge export`; `frami-edge inspect` shows what it is.",
        )
    key, info = found
    kind = _KINDS[key]
    if kind == "streaming":
        classifier = Classifier(path, backend=backend)
        answer: Callable[[Batch], Logits] = lambda b: classify_mels(path, b.mels_for(info.mel))  # noqa: E731
        if classifier.backend != "cpu":
            answer = _through(path, backend)
        return _described(path, kind, info, answer, classifier)
    session = OnnxSession(path, path.name)

    def run(x: npt.NDArray[np.float32]) -> Logits:
        return session.run(x)[0]

    if kind == "waveform":
        rate = info.mel.sample_rate
        return _described(
            path, kind, info,
            lambda b: np.concatenate([run(x[None]) for x in b.audio_for(rate)]),
        )  # fmt: skip
    return _described(path, kind, info, lambda b: _by_length(run, b.mels_for(info.mel)))


def _engine(path: Path, backend: str) -> Side:
    classifier = Classifier(path, backend=backend)
    return _described(path, "engine", classifier.info, _through(path, backend), classifier)


def _through(path: Path, backend: str) -> Callable[[Batch], Logits]:
    """Answers of the runtime's backend to log-mels: the trunk in runs, float64 pooling, head."""
    model = open_backend(path, backend)
    info = model.info
    field, stride = info.receptive_field, info.stride
    most = min(_RUN_FRAMES, (model.max_mel_frames - field) // stride + 1)
    around = ((0, 0), (info.context.left, info.context.right))

    def answer(batch: Batch) -> Logits:
        rows = []
        for mel_MT in batch.mels_for(info.mel):
            x_MT = np.pad(mel_MT, around, constant_values=info.context.value)
            parts = []
            for first in range(0, total := info.trunk_frames(mel_MT.shape[1]), most):
                last = min(first + most, total) - 1
                run_MT = x_MT[:, first * stride : last * stride + field]
                parts.append(model.frames(np.ascontiguousarray(run_MT[None, None]))[0])
            pooled_D = mean_std(np.concatenate(parts, axis=1), info.pooling.eps)
            rows.append(model.logits(pooled_D[None].astype(np.float32))[0])
        return np.stack(rows)

    return answer


def _described(
    path: Path,
    kind: Kind,
    info: ModelInfo,
    answer: Callable[[Batch], Logits],
    classifier: Classifier | None = None,
) -> Side:
    return Side(
        path, kind, info.labels, info.mel, answer, info.precision, info.receptive_field,
        info.stride, (info.context.left, info.context.right), info.pooling.eps,
        info.student_sha256, info.teacher_sha256, None, classifier,
    )  # fmt: skip


def _by_length(
    run: Callable[[npt.NDArray[np.float32]], Logits], mels: list[npt.NDArray[np.float32]]
) -> Logits:
    """Clips of one length share runs."""
    groups: dict[int, list[int]] = {}
    for i, mel in enumerate(mels):
        groups.setdefault(mel.shape[1], []).append(i)
    rows: dict[int, Logits] = {}
    for length, indices in groups.items():
        step = max(1, _BATCH_FRAMES // length)
        for start in range(0, len(indices), step):
            some = indices[start : start + step]
            rows.update(zip(some, run(np.stack([mels[i] for i in some])[:, None]), strict=True))
    return np.stack([rows[i] for i in range(len(mels))])


# --- Clips that two models are compared on: log-mels of a bank, or audio, real or made
# Audio goes through each model's own front end, the device's; log-mels of a bank fit only models of
# the bank's front end.
#
# Shape legend: N clips, M mel bands, T mel frames.

Array = npt.NDArray[np.float32]

MADE_SECONDS: Final = 2.0
"""Of a procedural clip."""
LONGEST_SECONDS: Final = 30.0
"""Of the clips that compare lengths."""


@dataclass
class Batch:
    """Clips of one kind.

    Attributes:
        name: What they are, in one word: ``bank``, ``real``, ``procedural`` or ``lengths``.
        names: Of the clips.
        mels: (M, T) each, of ``spec``; None where there is audio.
        audio: (samples,) float32 each, with their rates in Hz; None where there are log-mels.
        spec: Front end of ``mels``.
    """

    name: str
    names: list[str]
    mels: list[Array] | None = None
    audio: list[tuple[Array, int]] | None = None
    spec: MelSpec | None = None
    _kept: dict[str, list[Array]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Clips."""
        return len(self.names)

    def mels_for(self, spec: MelSpec) -> list[Array]:
        """(M, T) log-mels of a front end.

        Raises:
            BankError: These are log-mels of another one.
        """
        if self.mels is not None:
            if spec != self.spec:
                raise BankError(
                    "The bank's log-mels are of another front end than the models'.",
                    fix="Give the bank of these models, or compare on audio: --data, or no --bank.",
                )
            return self.mels
        if spec.digest not in self._kept:
            made = [log_mel(x, spec).T for x in self.audio_for(spec.sample_rate)]
            self._kept[spec.digest] = [np.ascontiguousarray(mel) for mel in made]
        return self._kept[spec.digest]

    def audio_for(self, sample_rate: int) -> list[Array]:
        """(samples,) float32 each at a rate.

        Raises:
            BankError: There is no audio behind log-mels.
        """
        if self.audio is None:
            raise BankError(
                "A bank holds log-mels, and this model takes samples.",
                fix="Compare on audio: --data NAME, or no --bank for procedural clips.",
            )
        return [
            x if rate == sample_rate
            else resample(torch.from_numpy(x), rate, sample_rate).numpy()
            for x, rate in self.audio
        ]  # fmt: skip


def bank_batch(folder: Path, count: int) -> Batch:
    """Clips of a bank, as many of each source, spread evenly over it.

    Raises:
        BankError: No whole bank, or an empty one.
    """
    bank = Bank.open(folder)
    sources = list(bank.sources)
    if not sources:
        raise BankError(f"The bank in {folder} is empty.", fix="Make it again.")
    share = max(1, count // len(sources))
    names, mels = [], []
    for source in sources:
        clips = bank.read(source, share).mels_N1MT[:, 0].numpy()
        mels += list(clips)
        names += [f"{source} {i}" for i in _spread(bank.sources[source], len(clips))]
    return Batch("bank", names, mels=mels, spec=bank.spec)


def real_batch(
    data: str, root: Path | None, asked: str | None, heard: TrainedOn | None, count: int
) -> Batch:
    """Real clips of one fold, spread evenly over it; of all folds where nobody names one.

    Args:
        data: Name of a set, or ``folder:PATH``.
        root: Folder that holds the sets.
        asked: Fold; None for the one that the models' teacher held out.
        heard: What that teacher heard, where known.
        count: At most so many.

    Raises:
        DataError: The set or fold is not there.
    """
    sound_set = load_set(data, root)
    if asked is None and heard is not None and heard.data == sound_set.name:
        asked = heard.test_fold
    clips = list(sound_set.clips)
    if asked is not None:
        fold = resolve_fold(sound_set, asked)
        clips = [clip for clip in clips if clip.fold == fold]
    chosen = [clips[i] for i in _spread(len(clips), min(count, len(clips)))]
    return Batch(
        "real", [clip.path.name for clip in chosen], audio=[read_audio(c.path) for c in chosen]
    )


def made_batch(spec: MelSpec, count: int, seed: int) -> Batch:
    """Procedural clips: shaped noise, tones, impacts; no recording."""
    clips = ProceduralAudio(spec.sample_rate, MADE_SECONDS).clips(count, seed)
    audio = [(clip, spec.sample_rate) for clip in clips]
    return Batch("procedural", [f"procedural {i}" for i in range(count)], audio=audio)


def length_batch(spec: MelSpec, receptive_field: int, stride: int, seed: int) -> Batch:
    """One procedural sound cut to many lengths: one frame, around the receptive field, to 30 s."""
    lengths = [
        max(spec.min_samples, (frames - 1) * spec.hop_length + (0 if spec.center else spec.n_fft))
        for frames in parity_lengths(receptive_field, stride, spec)
    ]
    longest = round(LONGEST_SECONDS * spec.sample_rate)
    lengths = sorted({min(n, longest) for n in lengths})
    sound = ProceduralAudio(spec.sample_rate, LONGEST_SECONDS).clips(1, seed)[0]
    # The middle of the sound: its first samples may be silence.
    starts = [(len(sound) - n) // 2 for n in lengths]
    audio = [(sound[i : i + n], spec.sample_rate) for i, n in zip(starts, lengths, strict=True)]
    return Batch("lengths", [f"{n / spec.sample_rate:.3g} s" for n in lengths], audio=audio)


def _spread(total: int, count: int) -> list[int]:
    return [round(i) for i in np.linspace(0, max(total - 1, 0), count)]


# --- How far the answers of two models are apart
# Shape legend: N clips, K classes.


@dataclass(frozen=True)
class Answers:
    """Logits of a second model against those of a first, on the same clips."""

    clips: int
    agreement: float
    """Share of clips on which both name the same class."""
    max_abs_difference: float
    """Largest |difference| of a logit."""
    kl_nats: float
    """Mean KL(first ‖ second) over the clips."""
    sqnr_db: float | None
    """Signal of the first to the difference, dB; None where there is none."""
    worst_clip: str
    """Where the largest difference is."""
    disagreeing: tuple[str, ...]
    """Clips on which they name different classes, the first 8."""


def compare_answers(
    first_NK: npt.NDArray[np.floating], second_NK: npt.NDArray[np.floating], names: list[str]
) -> Answers:
    """Compare (N, K) with (N, K).

    Raises:
        ModelFileError: A logit is not finite, or the shapes differ.
    """
    a, b = first_NK.astype(np.float64), second_NK.astype(np.float64)
    if a.shape != b.shape:
        raise ModelFileError(
            f"The first model answers {a.shape}, the second {b.shape}.",
            fix="Compare two models of the same classes.",
        )
    for which, z in (("first", a), ("second", b)):
        if not np.isfinite(z).all():
            where = names[int((~np.isfinite(z)).any(axis=1).argmax())]
            raise ModelFileError(
                f"The {which} model answers with values that are not finite on {where}.",
                fix="Its weights overflow: distil the student again.",
            )
    apart = np.abs(a - b).max(axis=1)
    same = a.argmax(axis=1) == b.argmax(axis=1)
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    kl = (np.exp(log_a) * (log_a - log_b)).sum(axis=1)
    return Answers(
        clips=len(a),
        agreement=float(same.mean()),
        max_abs_difference=float(apart.max()),
        kl_nats=float(np.maximum(kl, 0).mean()),
        sqnr_db=sqnr_db(a, b),
        worst_clip=names[int(apart.argmax())],
        disagreeing=tuple(names[i] for i in np.flatnonzero(~same)[:8]),
    )


def _log_softmax(z_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = z_NK - z_NK.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


# --- What two models must share before a number of one can be held against a number of the other


@dataclass(frozen=True)
class Finding:
    """One fact of both, side by side."""

    fact: str
    first: Any
    second: Any
    same: bool | None
    """None where one of them does not say."""


def compare_facts(a: Side, b: Side) -> tuple[Finding, ...]:
    """Names and shapes first: classes, front end, geometry, origin.

    Raises:
        CheckpointError: They answer with different classes, so that no logit can be compared.
    """
    _same_labels(a, b)
    found = [
        Finding("kind", a.kind, b.kind, None),
        _finding("classes", len(a.labels), len(b.labels)),
        _finding("front end", a.spec.digest[:16], b.spec.digest[:16]),
    ]
    for name in ("receptive_field", "stride", "context", "pool_eps"):
        found.append(_finding(name.replace("_", " "), getattr(a, name), getattr(b, name)))
    for name in ("student_sha256", "teacher_sha256"):
        first, second = getattr(a, name), getattr(b, name)
        found.append(_finding(name.removesuffix("_sha256"), _short(first), _short(second)))
    found.append(Finding("precision", a.precision, b.precision, None))
    return tuple(found)


def sentences(a: Side, b: Side, findings: tuple[Finding, ...]) -> list[str]:
    """What a reader must know before the numbers: every fact that differs, in words."""
    said = []
    for finding in findings:
        if finding.same is not False:
            continue
        if finding.fact == "front end":
            said.append(
                f"The front ends differ in {_changed(a, b)}: each model hears the audio through "
                "its own."
            )
        elif finding.fact in ("student", "teacher"):
            said.append(
                f"They were made from different {finding.fact}s: {finding.first} and "
                f"{finding.second}."
            )
        else:
            said.append(f"{finding.fact} differs: {finding.first} and {finding.second}.")
    return said


def _same_labels(a: Side, b: Side) -> None:
    if a.labels == b.labels:
        return
    if sorted(a.labels) == sorted(b.labels):
        what = "hold the same classes in another order"
    else:
        missing = sorted(set(a.labels) ^ set(b.labels))
        missing = sorted(set(a.labels) ^ set(b.labels))
        what = f"know different classes ({', '.join(missing[:5])} only one of them)"
    raise CheckpointError(
        f"{a.path.name} and {b.path.name} {what}: their answers cannot be compared.",
        fix="Compare two models of the same teacher.",
    )


def _finding(fact: str, first: Any, second: Any) -> Finding:
    same = None if first is None or second is None else bool(first == second)
    return Finding(fact, first, second, same)


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest[:16]


def _changed(a: Side, b: Side) -> str:
    fields = [f.name for f in dataclasses.fields(a.spec)]
    return ", ".join(n for n in fields if getattr(a.spec, n) != getattr(b.spec, n))


# --- Where two ONNX graphs of one student part: signal to noise after each convolution
# Shape legend: B batch, M mel bands, T mel frames.

CLIPS: Final = 16
_ACTIVATIONS = ("Relu", "Clip")
_PREFIX = "trunk."
"""Of the same layer's name in the whole classifier."""


@dataclass(frozen=True)
class LayerNoise:
    """After one convolution and its activation."""

    layer: str
    sqnr_db: float | None
    """None where both are equal."""


def compare_layers(a: Side, b: Side, batch: Batch) -> list[LayerNoise]:
    """From the input on; both graphs run on the same log-mels.

    Raises:
        ConfigError: One is no ONNX file that takes log-mels, or they share no layer.
    """
    for side in (a, b):
        if side.kind not in ("streaming", "classifier"):
            raise ConfigError(
                f"--layers looks into two ONNX files that take log-mels; {side.path.name} is none.",
                fix="Leave --layers out, or compare two .onnx files of one export.",
            )
    taps = [_taps(read_onnx(side.path)) for side in (a, b)]
    shared = [name for name in taps[0] if name in taps[1]]
    if not shared:
        raise ConfigError(
            f"{a.path.name} and {b.path.name} share no layer by name: they are not of one student.",
            fix="Leave --layers out, or compare two files of one export.",
        )
    mels = batch.mels_for(a.spec)
    shortest = min(mel.shape[1] for mel in mels)
    x_B1MT = np.stack([mel[:, :shortest] for mel in mels[:CLIPS]])[:, None]
    first, second = (
        _run(side, [tap[name] for name in shared], x_B1MT)
        for side, tap in zip((a, b), taps, strict=True)
    )
    return [
        LayerNoise(name, sqnr_db(x, y))
        for name, x, y in zip(shared, first, second, strict=True)
        if x.shape == y.shape
    ]


def _taps(model: onnx.ModelProto) -> dict[str, str]:
    """Convolution to the tensor behind it: after its activation, and after rounding to 8 bits."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        tensor = node.output[0]
        for wanted in (_ACTIVATIONS, ("QuantizeLinear",), ("DequantizeLinear",)):
            following = readers.get(tensor, [])
            if len(following) == 1 and following[0].op_type in wanted:
                tensor = following[0].output[0]
            elif wanted is not _ACTIVATIONS:
                break
        found[node.name.removeprefix(_PREFIX)] = tensor
    return found


def _run(
    side: Side, tensors: list[str], x_B1MT: npt.NDArray[np.float32]
) -> list[npt.NDArray[np.float32]]:
    model = read_onnx(side.path)
    known = {port.name for port in model.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    if side.kind == "streaming" and side.context is not None:
        x_B1MT = np.pad(x_B1MT, ((0, 0), (0, 0), (0, 0), side.context))
    unique = list(dict.fromkeys(tensors))
    session = OnnxSession(model.SerializeToString(), side.path.name)
    found = dict(zip(unique, session.run(x_B1MT, unique), strict=True))
    return [found[name] for name in tensors]


# --- Whether a model's stream gives what the same model gives for the whole clip

TOLERANCE: Final = 1e-6
"""Of a logit, stream against `Classifier.classify`: one code path, so the aim is 0."""
_CLIPS = 4
_LONGEST_CHUNK_S = 0.25


@dataclass(frozen=True)
class StreamCheck:
    """Of one file."""

    file: str
    clips: int
    chunks: int
    """Pushes of random sizes."""
    stream_vs_classify: float
    """Largest |difference| of a logit."""
    stream_vs_whole_run: float
    """The same against one run of the graph over the whole clip: float32 rounds differently."""


def check_stream(side: Side, batch: Batch, seed: int) -> StreamCheck | None:
    """Push some clips of a batch in random chunks; None for a model that does not stream.

    Args:
        side: The model.
        batch: With audio; the last clips are taken, the longest of `length_batch`.
        seed: Of the chunk sizes.
    """
    classifier = side.classifier
    if classifier is None or batch.audio is None:
        return None
    rng = np.random.default_rng(seed)
    rate = side.spec.sample_rate
    few = Batch(batch.name, batch.names[-_CLIPS:], audio=batch.audio[-_CLIPS:])
    whole_NK = side.answer(few)
    chunks, against_classify, against_whole = 0, 0.0, 0.0
    for samples, row_K in zip(few.audio_for(rate), whole_NK, strict=True):
        stream = classifier.stream()
        at = 0
        while at < len(samples):
            size = int(rng.integers(1, max(2, int(_LONGEST_CHUNK_S * rate))))
            stream.push(samples[at : at + size])
            at, chunks = at + size, chunks + 1
        last = stream.flush()
        assert last is not None
        classified_K = classifier.classify(samples).logits
        against_classify = max(against_classify, _apart(last.logits, classified_K))
        against_whole = max(against_whole, _apart(last.logits, row_K))
    return StreamCheck(side.path.name, len(few), chunks, against_classify, against_whole)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


# --- Two models side by side: the same facts, and the same answers on the same clips

__all__ = [
    "Answers",
    "Batch",
    "Finding",
    "Side",
    "bank_batch",
    "compare_answers",
    "compare_facts",
    "length_batch",
    "made_batch",
    "open_side",
    "real_batch",
]
