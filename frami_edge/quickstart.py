"""Invert, distil, score, control, export, stream: one run, every figure from it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frami_edge import distillation, inversion, plots
from frami_edge.bank import BankFeed
from frami_edge.cards import CARD, export_readme
from frami_edge.checkpoint import Teacher, load_checkpoint, parameters
from frami_edge.cli._output import Output
from frami_edge.config import JourneyConfig
from frami_edge.controls import control_feed
from frami_edge.data.decoding import read_audio
from frami_edge.data.sets import SoundSet, load_set
from frami_edge.data.store import Features, FeatureStore
from frami_edge.device import Compute, generator
from frami_edge.evaluation import Score, check_unheard, predict, score
from frami_edge.exporting import bank_mels, facts_of
from frami_edge.io import atomic_write_text
from frami_edge.models import StudentNet, macs_per_second
from frami_edge.runs import RunFolder
from frami_edge.sources.procedural import ProceduralAudio, procedural_mels
from frami_edge_export.calibration import classify_mels
from frami_edge_export.exporter import export_student
from frami_edge_export.report import ExportReport
from frami_edge_runtime.classifier import Classifier

# --- Push a clip through the exported model in pieces, and compare with the whole clip at once


@dataclass
class StreamCheck:
    """How the stream did.

    Attributes:
        label: What it heard.
        max_abs_difference: Largest difference between the logits of stream and whole clip.
        real_time_factor: Seconds computed for each second of audio.
        seconds: Of audio.
    """

    label: str
    max_abs_difference: float
    real_time_factor: float
    seconds: float


def check_stream(model: Path, samples: npt.NDArray[np.float32], sample_rate: int) -> StreamCheck:
    """Stream ``samples`` in chunks of 100 ms, then in ragged ones from one sample to 400 ms."""
    classifier = Classifier(model)
    whole = classifier.classify(samples, sample_rate)
    worst = 0.0
    rng = np.random.default_rng(0)
    hop = sample_rate // 10
    regular = [hop] * (len(samples) // hop + 1)
    ragged = [1] * 50 + rng.integers(1, 4 * hop, size=len(samples)).tolist()
    spent = np.inf
    for sizes in (regular, ragged):
        stream = classifier.stream(sample_rate)
        begun, start = time.perf_counter(), 0
        for size in sizes:
            if start >= len(samples):
                break
            stream.push(samples[start : start + size])
            start += size
        last = stream.flush()
        if sizes is regular:
            spent = time.perf_counter() - begun
        assert last is not None
        worst = max(worst, float(np.abs(last.logits - whole.logits).max()))
    seconds = len(samples) / sample_rate
    return StreamCheck(whole.label, worst, spent / seconds, seconds)


# --- Invert, distil, score, control, export, stream: one run, every figure from it

CALIBRATION_CLIPS = 384
"""Clips of the bank that int8 is calibrated on and held to."""
SYNTHETIC_TEST_CLIPS = 512
"""Fresh procedural clips on which agreement is reported where no real clips are here."""


@dataclass
class TestClips:
    """What students are scored on.

    Attributes:
        mels: (M, T_i) normalised log-mels.
        labels_N: True classes; None for synthetic clips, which have none.
        teacher_NK: The teacher's logits.
        what: In words.
    """

    mels: list[Tensor]
    labels_N: Tensor | None
    teacher_NK: Tensor
    what: str

    def score(self, logits_NK: Tensor) -> tuple[float | None, float]:
        """(accuracy or None, agreement with the teacher)."""
        labels = self.teacher_NK.argmax(1) if self.labels_N is None else self.labels_N
        found = score(logits_NK, labels, self.teacher_NK)
        assert found.agreement is not None
        return (None if self.labels_N is None else found.accuracy), found.agreement


def real_clips(teacher: Teacher, root: Path) -> tuple[SoundSet, Features]:
    """The official test clips that the embedded teacher never heard."""
    data = load_set("fsdd", root)
    heard = teacher.card.trained_on
    check_unheard(heard, data, "test")
    return data, FeatureStore(teacher.spec).load(data.split("test")[1])


def test_clips(teacher: Teacher, features: Features | None, config: JourneyConfig) -> TestClips:
    """Real clips where there are any, fresh procedural ones otherwise."""
    if features is not None:
        logits = predict(teacher.model, features.mels)
        what = f"{len(features)} real clips, the official FSDD test split"
        return TestClips(features.mels, features.labels, logits, what)
    seed = generator(config.seed, "held-out").initial_seed()
    made = procedural_mels(teacher.spec, SYNTHETIC_TEST_CLIPS, config.bank.frames, seed)
    mels = list(made[:, 0])
    what = f"{len(mels)} held-out synthetic clips (no FSDD under the data root)"
    return TestClips(mels, None, predict(teacher.model, mels), what)


def journey(
    run: RunFolder,
    teacher: Teacher,
    config: JourneyConfig,
    compute: Compute,
    features: Features | None,
    out: Output,
) -> dict[str, Any]:
    """All steps; returns the figures."""
    begun = time.monotonic()
    tests = test_clips(teacher, features, config)
    teacher_accuracy, _ = tests.score(tests.teacher_NK)
    out.note(f"Scores are on {tests.what}.")

    context = inversion.context_of(teacher, config.bank, compute, config.seed)
    bank = inversion.invert(
        run, run.path("bank"), context, teacher.card.labels, teacher.sha256, out
    )
    student = _distilled(run, teacher, config, BankFeed(bank, config.bank.shares), compute, out)
    noise = _distilled(
        run,
        teacher,
        config,
        control_feed("white_noise", teacher.spec, config),
        compute,
        out,
        phase="control-noise",
    )
    accuracy, agreement = tests.score(predict(student, tests.mels))
    noise_accuracy, noise_agreement = tests.score(predict(noise, tests.mels))
    metrics = {"accuracy": accuracy, "agreement": agreement, "scored_on": tests.what}
    card, _ = distillation.save_student(run, student, teacher, config, metrics)
    with run.timed("export"):
        exported = _export(run)
    int8 = exported.artifact("int8.cpu")
    fp32 = exported.artifact("fp32")
    assert int8 is not None
    assert fp32 is not None
    folder = run.path("export/x").parent
    int8_logits = classify_mels(folder / int8.path, [m.numpy() for m in tests.mels])
    int8_accuracy, int8_agreement = _int8_score(
        tests, torch.from_numpy(int8_logits), predict(student, tests.mels)
    )
    streamed = check_stream(folder / int8.path, *_sound(teacher, features))
    pictures = inversion.report(run, bank, out) | distillation.draw(run)
    if tests.labels_N is not None:
        pictures |= _confusion(run, student, tests, teacher)
    distillation.write_readme(run, card, student, bank, pictures)
    seconds = run.manifest["seconds"]
    return {
        "teacher": {"accuracy": teacher_accuracy, "parameters": parameters(teacher.model)},
        "student": {
            "accuracy": accuracy,
            "agreement": agreement,
            "parameters": parameters(student),
            "macs_per_second": macs_per_second(student, teacher.spec),
        },
        "controls": {"noise": {"accuracy": noise_accuracy, "agreement": noise_agreement}},
        "int8": {
            "accuracy": int8_accuracy,
            "agreement": int8_agreement,
            "bytes": int8.bytes,
            "fp32_bytes": fp32.bytes,
            "recommended": exported.recommended,
        },
        "stream": {
            "max_abs_difference": streamed.max_abs_difference,
            "real_time_factor": streamed.real_time_factor,
            "label": streamed.label,
        },
        "seconds": {
            "invert": seconds["invert"],
            "distill": seconds["distill"],
            "control": seconds["control-noise"],
            "export": seconds["export"],
            "total": round(time.monotonic() - begun, 2),
        },
        "scored_on": tests.what,
        "steps": config.distill.steps,
        "seed": config.seed,
        "plots": {name: str(run.path(path)) for name, path in pictures.items()},
        "run_dir": str(run.folder),
    }


def _distilled(
    run: RunFolder,
    teacher: Teacher,
    config: JourneyConfig,
    feed: Any,
    compute: Compute,
    out: Output,
    phase: str = "distill",
) -> StudentNet:
    return distillation.distill(
        run, teacher, config.student, config.distill, feed, compute, config.seed, out, phase
    )


def _export(run: RunFolder) -> ExportReport:
    """What `frami-edge export --int8 --bank` does, on the files that the run has written."""
    student = load_checkpoint(run.path("student.safetensors"), "student")
    assert isinstance(student.model, StudentNet)
    clips = bank_mels(run.path("bank"), student, CALIBRATION_CLIPS)
    folder = run.path("export/x").parent
    report = export_student(
        student.model,
        facts_of(student),
        folder,
        int8=True,
        calibration=clips.mels,
        source=clips.source,
    )
    atomic_write_text(folder / CARD, export_readme(report, student, None))
    return report


def _int8_score(tests: TestClips, int8_NK: Tensor, fp32_NK: Tensor) -> tuple[float | None, float]:
    """Accuracy, and agreement with the fp32 student: what quantisation alone changed."""
    accuracy, _ = tests.score(int8_NK)
    return accuracy, float((int8_NK.argmax(1) == fp32_NK.argmax(1)).float().mean())


def _sound(teacher: Teacher, features: Features | None) -> tuple[np.ndarray[Any, Any], int]:
    """A few seconds of audio: real digits one after the other, or procedural sounds."""
    if features is not None:
        read = [read_audio(clip.path) for clip in features.clips[:: len(features) // 10]]
        return np.concatenate([samples for samples, _ in read]), read[0][1]
    rate = teacher.spec.sample_rate
    return ProceduralAudio(rate, 5.0).clips(1, seed=0)[0], rate


def _confusion(
    run: RunFolder, student: StudentNet, tests: TestClips, teacher: Teacher
) -> dict[str, str]:
    assert tests.labels_N is not None
    found: Score = score(predict(student, tests.mels), tests.labels_N)
    path = "plots/confusion.png"
    labels = list(teacher.card.labels)
    plots.confusion(run.path(path), found.confusion_KK, labels, f"Student on {tests.what}")
    return {"confusion": path}


def show(figures: dict[str, Any], out: Output) -> None:
    """The table that ends the quickstart."""

    def percent(value: float | None) -> str | None:
        return None if value is None else f"{100 * value:.2f} %"

    student, int8, stream = figures["student"], figures["int8"], figures["stream"]
    parts = [f"{name} {value:.1f}" for name, value in figures["seconds"].items()]
    out.table(
        "From a teacher to a device, without data",
        ("", "accuracy", "agreement", "size"),
        [
            (
                "teacher",
                percent(figures["teacher"]["accuracy"]),
                None,
                f"{figures['teacher']['parameters']:,} parameters",
            ),
            (
                "student (data-free)",
                percent(student["accuracy"]),
                f"{percent(student['agreement'])} with the teacher",
                f"{student['parameters']:,} parameters, "
                f"{student['macs_per_second'] / 1e6:.1f} MMAC/s",
            ),
            (
                "control: same steps on white noise",
                percent(figures["controls"]["noise"]["accuracy"]),
                f"{percent(figures['controls']['noise']['agreement'])} with the teacher",
                None,
            ),
            (
                "student, int8 (calibrated data-free)",
                percent(int8["accuracy"]),
                f"{percent(int8['agreement'])} with fp32",
                f"{int8['bytes'] / 1000:.0f} kB, fp32 {int8['fp32_bytes'] / 1000:.0f} kB",
            ),
        ],
        caption=f"On {figures['scored_on']}. Stream = whole clip within "
        f"{stream['max_abs_difference']:.1e}, {1 / stream['real_time_factor']:.0f}x real time. "
        f"Seconds: {', '.join(parts)}. Last step, seed {figures['seed']}.",
    )
