"""The quickstart: invert, distil, score, control, export and stream the embedded digit teacher."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frami_edge import api, plots
from frami_edge.assets import DIGITS_TEACHER
from frami_edge.bank import Bank
from frami_edge.checkpoint import Teacher, parameters
from frami_edge.config import JourneyConfig, frames_in
from frami_edge.controls import control_sampler
from frami_edge.data.decoding import read_audio
from frami_edge.data.sets import ROOT_VARIABLE, find_folder, load_set, set_info
from frami_edge.data.store import Features, FeatureStore
from frami_edge.device import Precision, generator
from frami_edge.evaluation import check_held_out, predict, score
from frami_edge.io import atomic_write_json
from frami_edge.progress import ProgressCallback
from frami_edge.runs import read_manifest
from frami_edge.sources.procedural import ProceduralAudio, procedural_mels
from frami_edge.tables import Table, percent
from frami_edge_export.calibration import classify_mels
from frami_edge_runtime.classifier import Classifier

log = logging.getLogger("frami_edge")

CALIBRATION_CLIPS = 384
"""Clips of the bank that int8 is calibrated and judged on."""
SYNTHETIC_TEST_CLIPS = 512
"""Fresh procedural clips on which agreement is reported where there are no real clips."""
CHUNK_S = 0.1


@dataclass
class TestClips:
    """What the students are scored on."""

    mels: list[Tensor]  # (M, T_i), normalised
    labels_N: Tensor | None  # None for synthetic clips
    teacher_NK: Tensor  # the teacher's logits
    what: str  # description of the clips
    samples: npt.NDArray[np.float32]  # a few seconds of audio to stream
    rate: int  # of the samples, in Hz

    def score(self, logits_NK: Tensor) -> tuple[float | None, float]:
        """(accuracy or None, agreement with the teacher)."""
        labels_N = self.teacher_NK.argmax(1) if self.labels_N is None else self.labels_N
        found = score(logits_NK, labels_N, self.teacher_NK)
        assert found.agreement is not None
        return (None if self.labels_N is None else found.accuracy), found.agreement


def run_quickstart(
    out: Path,
    config: JourneyConfig,
    *,
    data_root: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Run every step in the folder `out`; returns the figures, also written to `quickstart.json`.

    `out` is the student's run folder, with folders of the control and the export in it. `data_root`
    holds the Free Spoken Digit Dataset; under $FRAMI_EDGE_DATA, the default, the set is optional.
    The other arguments are those of `frami_edge.distill`.

    Raises:
        DataError: `data_root` is given and does not hold the data set.
        RunError: `out` is not empty.
    """
    start = time.monotonic()
    teacher = api.load_teacher(DIGITS_TEACHER)
    tests = find_clips(teacher, config, data_root)
    log.info("Scores are on %s.", tests.what)
    settings: dict[str, Any] = {"device": device, "precision": precision, "progress": progress}
    student = api.distill(teacher, config=config, out=out, overwrite=overwrite, **settings)
    noise = control_sampler("white_noise", teacher.mel, config)
    control = api.distill(teacher, noise, config=config, out=out / "control-noise", **settings)
    exporting = time.monotonic()
    exported = api.export(
        student,
        bank=Bank.open(out / "bank"),
        int8=True,
        samples=CALIBRATION_CLIPS,
        out=out / "export",
        progress=progress,
    )
    manifest = read_manifest(out)
    seconds = {
        **{name: manifest["seconds"][name] for name in ("invert", "distill")},
        "control": read_manifest(out / "control-noise")["seconds"]["distill"],
        "export": round(time.monotonic() - exporting, 2),
    }
    file, fp32 = exported.artifact("int8.cpu"), exported.artifact("fp32")
    int8 = out / "export" / file.path
    fp32_NK = predict(student.model, tests.mels)
    int8_NK = torch.from_numpy(classify_mels(int8, [mel.numpy() for mel in tests.mels]))
    accuracy, agreement = tests.score(fp32_NK)
    noise_accuracy, noise_agreement = tests.score(predict(control.model, tests.mels))
    pictures = {name: str(out / path) for name, path in manifest["plots"].items()}
    if tests.labels_N is not None:
        pictures["confusion"] = str(out / "plots" / "confusion.png")
        confusion = score(fp32_NK, tests.labels_N).confusion_KK
        title = f"Student on {tests.what}"
        plots.confusion(Path(pictures["confusion"]), confusion, list(teacher.labels), title)
    figures = {
        "teacher": {
            "accuracy": tests.score(tests.teacher_NK)[0],
            "parameters": parameters(teacher.model),
        },
        "student": {
            "accuracy": accuracy,
            "agreement": agreement,
            **{name: manifest["student"][name] for name in ("parameters", "macs_per_second")},
        },
        "controls": {"noise": {"accuracy": noise_accuracy, "agreement": noise_agreement}},
        "int8": {
            "accuracy": tests.score(int8_NK)[0],
            # With the fp32 student: what quantisation alone changes.
            "agreement": float((int8_NK.argmax(1) == fp32_NK.argmax(1)).float().mean()),
            "bytes": file.bytes,
            "fp32_bytes": fp32.bytes,
            "recommended": exported.recommended,
        },
        "stream": check_stream(int8, tests.samples, tests.rate),
        "seconds": seconds | {"total": round(time.monotonic() - start, 2)},
        "scored_on": tests.what,
        "steps": config.distill.steps,
        "seed": config.seed,
        "plots": pictures,
        "run_dir": str(out),
    }
    atomic_write_json(out / "quickstart.json", figures)
    return figures


def find_clips(teacher: Teacher, config: JourneyConfig, root: Path | None) -> TestClips:
    """The official test split of FSDD where it is present, fresh procedural clips otherwise.

    Raises:
        DataError: `root` is given and does not hold the data set.
    """
    if root is None and (variable := os.environ.get(ROOT_VARIABLE)):
        root = Path(variable) if find_folder(set_info("fsdd"), Path(variable)) else None
    if root is not None:
        features = real_clips(teacher, root)
        read = [read_audio(clip.path) for clip in features.clips[:: len(features) // 10]]
        return TestClips(
            features.mels,
            features.labels,
            predict(teacher.model, features.mels),
            f"{len(features)} real clips, the official FSDD test split",
            np.concatenate([samples for samples, _ in read]),
            read[0][1],
        )
    seed = generator(config.seed, "held-out").initial_seed()
    frames = frames_in(config.bank.clip_s, teacher.mel)
    mels = list(procedural_mels(teacher.mel, SYNTHETIC_TEST_CLIPS, frames, seed)[:, 0])
    return TestClips(
        mels,
        None,
        predict(teacher.model, mels),
        f"{len(mels)} held-out synthetic clips (no FSDD under the data root)",
        ProceduralAudio(teacher.sample_rate, 5.0).clips(1, seed=0)[0],
        teacher.sample_rate,
    )


def real_clips(teacher: Teacher, root: Path) -> Features:
    """The official test clips, on which the embedded teacher was not trained."""
    data = load_set("fsdd", root)
    check_held_out(teacher.card.trained_on, data, "test")
    return FeatureStore(teacher.mel).load(data.split("test")[1])


def check_stream(model: Path, samples: npt.NDArray[np.float32], rate: int) -> dict[str, Any]:
    """Stream samples in chunks of 100 ms, then of 1 sample to 400 ms, and compare the logits.

    Returns:
        The largest difference between stream and whole clip, seconds of computing per second of
        audio (for chunks of 100 ms), and the predicted label.
    """
    classifier = Classifier(model)
    whole = classifier.classify(samples, rate)
    chunk, worst, spent = int(rate * CHUNK_S), 0.0, []
    sizes = np.random.default_rng(0).integers(1, 4 * chunk, size=len(samples))
    ragged = np.cumsum([*[1] * 50, *sizes])
    for ends in (np.arange(chunk, len(samples), chunk), ragged[ragged < len(samples)]):
        stream, start = classifier.stream(rate), time.perf_counter()
        for part in np.split(samples, ends):
            stream.push(part)
        last = stream.flush()
        spent.append(time.perf_counter() - start)
        assert last is not None
        worst = max(worst, float(np.abs(last.logits - whole.logits).max()))
    return {
        "max_abs_difference": worst,
        "real_time_factor": spent[0] / (len(samples) / rate),
        "label": whole.label,
    }


def summary(figures: dict[str, Any]) -> Table:
    """The figures as a table."""
    student, noise, int8 = figures["student"], figures["controls"]["noise"], figures["int8"]
    teacher, stream = figures["teacher"], figures["stream"]
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in figures["seconds"].items())
    rows = [
        ("teacher", percent(teacher["accuracy"]), None, f"{teacher['parameters']:,} parameters"),
        (
            "student (data-free)",
            percent(student["accuracy"]),
            f"{percent(student['agreement'])} with the teacher",
            f"{student['parameters']:,} parameters, {student['macs_per_second'] / 1e6:.1f} MMAC/s",
        ),
        (
            "control: same steps on white noise",
            percent(noise["accuracy"]),
            f"{percent(noise['agreement'])} with the teacher",
            None,
        ),
        (
            "student, int8 (calibrated data-free)",
            percent(int8["accuracy"]),
            f"{percent(int8['agreement'])} with fp32",
            f"{int8['bytes'] / 1000:.0f} kB, fp32 {int8['fp32_bytes'] / 1000:.0f} kB",
        ),
    ]
    return Table(
        "From a teacher to a device, without data",
        ("", "accuracy", "agreement", "size"),
        rows,
        f"On {figures['scored_on']}. Stream = whole clip within "
        f"{stream['max_abs_difference']:.1e}, {1 / stream['real_time_factor']:.0f}x real time. "
        f"Seconds: {seconds}. Last step, seed {figures['seed']}.",
    )
