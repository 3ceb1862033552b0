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
from frami_edge.bank import Bank
from frami_edge.checkpoint import DIGITS_TEACHER, Teacher, parameters
from frami_edge.config import JourneyConfig, frames_in
from frami_edge.controls import control_sampler
from frami_edge.data.clips import read_audio
from frami_edge.data.sets import ROOT_VARIABLE, find_folder, get_set, load_set, set_info
from frami_edge.data.store import Features, FeatureStore, cache_folder
from frami_edge.device import Precision, generator
from frami_edge.errors import DataError
from frami_edge.evaluation import check_held_out, predict, score
from frami_edge.io import atomic_write_json
from frami_edge.progress import ProgressCallback
from frami_edge.runs import read_manifest
from frami_edge.sources.procedural import ProceduralAudio, procedural_mels
from frami_edge.tables import Table, percent
from frami_edge_export.calibration import classify_mels
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.state import check_place

log = logging.getLogger("frami_edge")

CALIBRATION_CLIPS = 384
"""Clips of the bank that int8 is calibrated and judged on."""
SYNTHETIC_TEST_CLIPS = 512
"""Fresh procedural clips beside the held-out ones of the bank, where there are no real clips."""
SURE = 0.9
"""Least probability of the teacher's answer to a synthetic test clip. Most procedural clips
resemble no digit, and noise suffices to copy the answer that they get."""
FETCH_S = 60.0
"""Seconds after which the download of 10 MB is given up."""
CHUNK_S = 0.1
CONTROL_SHARE = 6
"""The control has a sixth of the student's steps: on its own clips it answers like the teacher
long before that. With 2,200 steps it has 28 % on FSDD (docs/results/fsdd.md)."""


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
    fetch: bool = True,
    overwrite: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Run every step in the folder `out`; returns the figures, also written to `quickstart.json`.

    `out` is the student's run folder, with folders of the control and the export in it. `data_root`
    holds the Free Spoken Digit Dataset. Without it the set is looked for under $FRAMI_EDGE_DATA or
    in the user's cache, and downloaded there with `fetch`; no network is no error. The other
    arguments are those of `frami_edge.distill`.

    Raises:
        DataError: `data_root` is given and does not hold the data set.
        RunError: `out` is not empty.
    """
    start = time.monotonic()
    teacher = api.load_teacher(DIGITS_TEACHER)
    check_place(out, folder=True)
    root = data_root or digits_root(fetch)
    tests = None if root is None else real_tests(teacher, root)
    settings: dict[str, Any] = {"device": device, "precision": precision, "progress": progress}
    student = api.distill(teacher, config=config, out=out, overwrite=overwrite, **settings)
    noise = control_sampler("white_noise", teacher, config)
    few = max(1, config.distill.steps // CONTROL_SHARE)
    control = api.distill(
        teacher, noise, config=config, steps=few, out=out / "control-noise", **settings
    )
    bank = Bank.open(out / "bank")
    tests = tests or synthetic_tests(teacher, config, bank)
    log.info("Scores are on %s.", tests.what)
    exporting = time.monotonic()
    exported = api.export(
        student,
        bank=bank,
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
            "ready": manifest["student"]["readiness"]["ready"],
            **{name: manifest["student"][name] for name in ("parameters", "macs_per_second")},
        },
        "controls": {
            "noise": {"accuracy": noise_accuracy, "agreement": noise_agreement, "steps": few}
        },
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


def digits_root(fetch: bool) -> Path | None:
    """The data root with FSDD: $FRAMI_EDGE_DATA, or the user's cache; None where it has none.

    With `fetch` the set is downloaded where it is missing.
    """
    given = os.environ.get(ROOT_VARIABLE)
    root = Path(os.path.expanduser(given)) if given else cache_folder()
    if find_folder(set_info("fsdd"), root):
        return root
    if not fetch:
        return None
    log.info("Fetching the Free Spoken Digit Dataset (10 MB) into %s.", root)
    try:
        get_set("fsdd", root, limit_s=FETCH_S)
    except DataError as error:
        log.debug("%s", error)
        log.info("It could not be fetched: `frami-edge data get fsdd` says why.")
        return None
    return root


def real_tests(teacher: Teacher, root: Path) -> TestClips:
    """The official test split of FSDD in `root`.

    Raises:
        DataError: `root` does not hold the data set.
    """
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


def synthetic_tests(teacher: Teacher, config: JourneyConfig, bank: Bank) -> TestClips:
    """New clips of every source that makes more, the ones that the teacher is sure of."""
    seed = generator(config.seed, "held-out").initial_seed()
    frames = frames_in(config.bank.clip_s, teacher.mel)
    made = [procedural_mels(teacher.mel, SYNTHETIC_TEST_CLIPS, frames, seed)]
    kept = [clips for name in bank.sources if (clips := bank.held_out(name)) is not None]
    made += [bank.heard(clips) if bank.index.samples else clips for clips in kept]
    mels = list(torch.cat(made)[:, 0])
    logits_NK = predict(teacher.model, mels)
    sure = (logits_NK.softmax(1).amax(1) >= SURE).nonzero()[:, 0]
    if not len(sure):
        sure = torch.arange(len(mels))
    return TestClips(
        [mels[i] for i in sure.tolist()],
        None,
        logits_NK[sure],
        f"{len(sure)} synthetic clips that neither student was trained on and that the teacher is "
        f"at least {100 * SURE:.0f} % sure of (no FSDD was found)",
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
            f"control: {noise['steps']:,} steps on white noise",
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
        f"The student is {'' if student['ready'] else 'not '}ready, judged without data. "
        f"Seconds: {seconds}. Last step of {figures['steps']:,}, seed {figures['seed']}.",
    )
