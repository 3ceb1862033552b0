"""What `invert`, `distill` and `export` need around their work: configs, run folders, clips."""

import dataclasses
import json
import logging
import math
import os
import re
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch import Tensor

from frami_edge import plots
from frami_edge.bank import (
    Bank,
    bank_sampler,
    check_bank,
    check_length,
    health_warnings,
    least_hit_rate,
)
from frami_edge.checkpoint import Card, Student, Teacher
from frami_edge.config import BankConfig, JourneyConfig, frames_in
from frami_edge.data.store import Features
from frami_edge.device import (
    Compute,
    Precision,
    choose_compute,
    named_seed,
    place,
    set_seed,
    world,
)
from frami_edge.distillation import Hearing, Sampler
from frami_edge.errors import BankError
from frami_edge.evaluation import score
from frami_edge.frontend import comparable, mel_to_audio
from frami_edge.io import atomic_path, plain
from frami_edge.models import StudentNet
from frami_edge.runs import CONFIG, RunFolder, record_compute
from frami_edge.sizing import fitted, parse_budget, reason, scaled_keys, sized_for, value_at
from frami_edge.sources import LEARNED
from frami_edge.sources.procedural import ProceduralAudio, measured, procedural_mels
from frami_edge.teachers import load_teacher
from frami_edge.teachers.opening import TeacherDescription, read_mel, write_description
from frami_edge.yaml_config import load_config
from frami_edge_export.calibration import classify_mels
from frami_edge_export.graph import StudentFacts
from frami_edge_export.thresholds import ThresholdClips
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.state import check_place
from frami_edge_runtime.thresholds import PEAK_S

log = logging.getLogger("frami_edge")

PathLike = str | os.PathLike[str]
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def journey_config(
    config: JourneyConfig | PathLike | None,
    teacher: Teacher,
    *,
    bank: Bank | None = None,
    seed: int | None = None,
    sources: Mapping[str, float] | Sequence[str] | None = None,
    recordings: PathLike | None = None,
    steps: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> JourneyConfig:
    """The config of a run, with everything that the arguments of `invert` or `distill` change.

    Where `config` is None, it is sized for the teacher, and a given `bank` has its own config and
    seed. A value of None in `overrides` changes nothing.

    Raises:
        ConfigError: With every mistake, one per line.
    """
    given = config
    if config is None:
        config = sized_for(teacher)
        if bank is not None:
            made = BankConfig.model_validate(bank.index.config)
            crops = {"crop_min_s": made.clip_s / 2, "crop_max_s": made.clip_s}
            changes_of = {"bank": made, "seed": bank.index.seed}
            config = config.model_copy(
                update=changes_of | {"distill": config.distill.model_copy(update=crops)}
            )
    if sources is not None and not isinstance(sources, Mapping):
        sources = dict.fromkeys(sources, 1.0)
    changes: dict[str, Any] = {"seed": seed, "bank.sources": sources}
    changes |= {f"bank.{source}.steps": steps for source in ("inversion", "translator")}
    if bank is not None and "recordings" in (sources or {}):
        changes["bank.recordings"] = bank.index.config.get("recordings")  # its clips are there
    changes |= dict(overrides or {})
    if recordings is not None:
        changes["bank.recordings"] = os.fspath(recordings)
        mix = changes.get("bank.sources")
        mix = changed(config, JourneyConfig, None).bank.sources if mix is None else mix
        changes["bank.sources"] = {"recordings": 1.0, **mix}
    found = changed(config, JourneyConfig, changes)
    if given is None:
        log.info(reason(teacher, found))
    return found


def changed(config: BaseModel | PathLike, model: type[M], overrides: Mapping[str, Any] | None) -> M:
    """A config with values replaced by their dotted keys, validated again.

    Raises:
        ConfigError: With every mistake, one per line.
    """
    changes = {key: value for key, value in (overrides or {}).items() if value is not None}
    if isinstance(config, model) and not changes:
        return config
    texts = [f"{key}={json.dumps(plain(value))}" for key, value in changes.items()]
    if isinstance(config, BaseModel):
        return load_config(model, config.model_dump(mode="json"), texts)
    return load_config(model, Path(config) if isinstance(config, os.PathLike) else config, texts)


@dataclass(frozen=True)
class Journey:
    """One inversion or distillation: what it reads, where it computes and where it writes.

    Attributes:
        teacher: The teacher, on its device.
        config: The config.
        compute: Device and precision.
        deterministic: Whether a GPU uses deterministic kernels.
        out: Run folder; None for a temporary one.
    """

    teacher: Teacher
    config: JourneyConfig
    compute: Compute
    deterministic: bool
    out: PathLike | None

    @classmethod
    def prepare(
        cls,
        teacher: Teacher | PathLike,
        config: JourneyConfig,
        out: PathLike | None,
        device: str,
        precision: Precision,
        deterministic: bool,
    ) -> "Journey":
        """Open the teacher and choose the device; nothing is written.

        Raises:
            OutputError: `out` cannot be written.
        """
        if out is not None:
            check_place(out, folder=True)
        compute = compute_for(device, precision, deterministic, config.seed)
        loaded = load_teacher(teacher)
        if loaded.takes == "audio":  # its front end is a proposal, perhaps without mean and std
            loaded = dataclasses.replace(loaded, mel=measured(loaded.mel))
        place(loaded.model, compute)
        for sentence in getattr(loaded.model, "notes", ()):
            log.info(sentence)
        for sentence in getattr(loaded.model, "doubts", ()):
            log.warning(sentence)
        return cls(loaded, config, compute, deterministic, out)

    @cached_property
    def folder(self) -> Path:
        """The run folder."""
        return new_folder(self.out)

    @cached_property
    def student_mel(self) -> MelSpec:
        """The student's front end, as it is before `normalised`."""
        given = self.config.student_mel
        return self.teacher.mel if given is None else read_mel(given)

    @cached_property
    def audio(self) -> bool:
        """Whether the bank must hold audio."""
        needed = Hearing(self.teacher, self.student_mel, self.compute.device).needs_audio
        if needed and self.teacher.takes == "mel":
            log.info(
                "The student's log-mels cannot be computed from the teacher's: the bank holds "
                "audio, and inverted log-mels are rendered."
            )
        return needed or self.config.bank.audio

    def within(
        self, budget: str | float, sampler: Sampler | None, *, resume: bool = False
    ) -> "Journey":
        """This journey with as many steps as take about that time; a resumed run keeps its own.

        Raises:
            ConfigError: The budget is not a time, steps are given too, or it is too short.
        """
        seconds = parse_budget(budget)
        saved = Path(self.out or ".") / CONFIG
        if resume and saved.is_file():
            before, keys = load_config(JourneyConfig, saved), scaled_keys(self.config, not sampler)
            found = {key: value_at(before, key) for key in keys}
        else:
            found, line = fitted(
                self.teacher, self.config, self.compute, seconds,
                mel=self.student_mel, audio=self.audio, sampler=sampler,
            )  # fmt: skip
            log.info(line)
        if world()[1] > 1:
            shared = [found]
            dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
            found = shared[0]
        return dataclasses.replace(self, config=changed(self.config, JourneyConfig, found))

    @contextmanager
    def run(
        self,
        command: str,
        *,
        hashes: Mapping[str, str] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> Iterator[RunFolder]:
        """The run folder, with what decides the result recorded.

        Under torchrun rank N > 0 has a folder of its own, named `folder.rank-N`.
        """
        log.info("Device: %s", self.compute.reason)
        rank, ranks = world()
        folder = self.folder.with_name(f"{self.folder.name}.rank-{rank}") if rank else self.folder
        with RunFolder.create(
            folder,
            command=command,
            config=self.config,
            resume=resume,
            overwrite=overwrite,
            hashes={"teacher": self.teacher.sha256, **(hashes or {})},
            seeds={"seed": self.config.seed},
            device=self.compute.reason,
        ) as run:
            record_compute(run, self.compute, deterministic=self.deterministic)
            if isinstance(self.teacher.description, TeacherDescription):
                write_description(run.path("teacher.yaml"), self.teacher.description)
            yield run
        if ranks > 1:
            dist.barrier()  # no process returns before rank 0 has written everything

    def sampler(self, bank: Bank | Sampler) -> Sampler:
        """Clips of a given bank, which must fit teacher and config; any other sampler as it is.

        Raises:
            BankError: The bank belongs to another teacher, lacks a source, or has clips of another
                length.
        """
        if not isinstance(bank, Bank):
            return bank
        check_bank(bank, self.teacher.mel, self.teacher.labels, self.teacher.sha256)
        check_length(bank, self.config.bank.clip_s)
        return bank_sampler(bank, self.config, self.teacher.output)

    def card(
        self, student: StudentNet, metrics: dict[str, Any], mel: MelSpec, recordings: int = 0
    ) -> Card:
        """The card of the student, distilled with so many of the user's recordings in its bank."""
        recipe = self.config.model_dump(mode="json")
        if self.config.bank.recordings:  # their folder stays private
            recipe["bank"]["recordings"] = Path(self.config.bank.recordings).name
        return Card(
            kind="student",
            arch=student.arch.model_dump(mode="json"),
            mel=mel.to_dict(),
            recordings=recordings,
            labels=self.teacher.labels,
            output=self.teacher.output,
            keep=self.teacher.card.keep,
            teacher_sha256=self.teacher.sha256,
            teacher_trained_on=self.teacher.card.trained_on,
            recipe=recipe,
            metrics=metrics,
            licence=self.teacher.card.licence,
        )


def compute_for(device: str, precision: Precision, deterministic: bool, seed: int) -> Compute:
    """Device and precision; on a GPU with deterministic kernels where asked for."""
    compute = choose_compute(device, precision)
    if deterministic and compute.device.type == "cuda":
        set_seed(seed, deterministic=True)
    return compute


def new_folder(out: PathLike | None) -> Path:
    """The folder `out`, or a temporary one."""
    return Path(tempfile.mkdtemp(prefix="frami-edge-") if out is None else out)


def kept(result: T, folder: Path, out: PathLike | None) -> T:
    """The result; a temporary folder is deleted together with it."""
    if out is None:
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


def draw_bank(run: RunFolder, bank: Bank) -> dict[str, str]:
    """Mel grids, loss curves and diversity; their paths in the run. Warns of a poor bank."""
    health, labels = bank.index.health, bank.index.labels
    for sentence in health_warnings(health, labels):
        log.warning(sentence)
    pictures = {"diversity": "plots/diversity.png"}
    least = least_hit_rate(len(labels))
    plots.diversity(run.path(pictures["diversity"]), health, labels, least)
    for source in bank.sources:
        title = f"{source.replace('_', ' ')}: clips by the class that the teacher predicts"
        if examples := bank.examples(source):  # of detectors perhaps none is above 0.5
            pictures[f"mels-{source}"] = f"plots/mels-{source}.png"
            plots.mel_grid(run.path(pictures[f"mels-{source}"]), examples, bank.spec, title)
        if source in LEARNED:
            pictures |= draw_curves(run, source)
    return pictures


def draw_curves(run: RunFolder, phase: str) -> dict[str, str]:
    """One curve per metric of a phase; the path in the run."""
    rows = [row for row in run.metrics() if row.get("phase") == phase]
    if not rows:
        return {}
    names = dict.fromkeys(key for row in rows for key in row if key not in ("step", "phase"))
    path = f"plots/curves-{phase}.png"
    plots.curves(run.path(path), rows, list(names), f"{phase}: loss terms")
    return {f"curves-{phase}": path}


PEAK_DBFS: Final = -1.0
"""Loudest sample of a written clip."""


def write_examples(bank: Bank, source: str, folder: Path, per_class: int = 1) -> list[Path]:
    """Write the latest clips of each class that the teacher predicts as 16-bit WAV.

    Each clip is normalised to a peak of -1 dBFS. Its name is ``SOURCE-CLASS-NUMBER``, where
    characters other than letters, digits, ``.`` and ``-`` become ``_``.

    Raises:
        MelSpecError: See `mel_to_audio`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    numbers: Counter[str] = Counter()  # two classes may get the same name
    for label, mels in bank.examples(source, per_class).items():
        for mel in mels:
            samples = mel_to_audio(mel, bank.spec)
            samples *= 10 ** (PEAK_DBFS / 20) / max(float(np.abs(samples).max()), 1e-9)
            stem = re.sub(r"[^\w.-]+", "_", f"{source}-{label}")
            path = folder / f"{stem}-{numbers[stem]}.wav"
            numbers[stem] += 1
            with atomic_path(path) as temporary:
                soundfile.write(
                    temporary, samples, bank.spec.sample_rate, subtype="PCM_16", format="WAV"
                )
            written.append(path)
    return written


NOISE: Final = frozenset({"smooth_noise", "white_noise"})


@dataclass(frozen=True)
class CalibrationMels:
    """Clips that set the int8 ranges and judge the result.

    Attributes:
        mels: (N, 1, M, T) normalised log-mels.
        source: `bank` or `procedural`.
        clips: Number of clips from each source of the bank.
    """

    mels: npt.NDArray[np.float32]
    source: str
    clips: dict[str, int]

    def __str__(self) -> str:
        listed = ", ".join(f"{n} {name}" for name, n in self.clips.items())
        return f"{len(self.mels)} synthetic clips from the {self.source} ({listed})"


def calibration_mels(
    student: Student, bank: Bank | None = None, *, count: int = 1024, seed: int = 0
) -> CalibrationMels:
    """About `count` clips for int8: of the student's bank, or procedural ones of that seed.

    Clips of a bank are mixed by the weights of the student's recipe. Noise in a bank counts only
    for a student that was trained on it.

    Raises:
        BankError: The bank is empty, or belongs to another teacher, front end or classes.
    """
    mel, recipe = student.mel, student.card.recipe.get("bank", {})
    if bank is None:
        frames = frames_in(recipe.get("clip_s", 1.0), mel)
        mels = procedural_mels(mel, count, frames, seed).numpy()
        return CalibrationMels(mels, "procedural", {"procedural": count})
    owner = student.card.teacher_sha256 or bank.index.teacher_sha256
    own = comparable(bank.spec, mel) and student.card.recipe.get("student_mel")
    check_bank(bank, bank.spec if own else mel, student.labels, owner)
    shares = recipe.get("sources", {})
    weights = {name: float(shares[name]) for name in bank.sources if shares.get(name)}
    if not weights:  # a bank of other sources than the recipe's, or a card without a recipe
        weights = dict.fromkeys([n for n in bank.sources if n not in NOISE] or bank.sources, 1.0)
    if not weights:
        raise BankError(f"The bank in {bank.folder} is empty.", fix="Make it again.")
    total = sum(weights.values())
    parts = {
        n: bank.mels(n, bank.some(n, math.ceil(count * w / total)), mel) for n, w in weights.items()
    }
    mels = torch.cat(list(parts.values())).numpy()
    return CalibrationMels(mels, "bank", {n: len(part) for n, part in parts.items()})


BACKGROUND_CLIPS: Final = 240
"""Held-out procedural clips for thresholds: twenty minutes."""
POSITIVE_CLIPS: Final = 1500


def threshold_clips(student: Student, bank: Bank | None, seed: int) -> ThresholdClips:
    """Clips that set the thresholds of events: held-out procedural sounds, and a bank's classes.

    Clips of a bank stand for a class that they were made for, where the teacher assigns them to it.
    """
    audio = ProceduralAudio(student.mel.sample_rate, PEAK_S)
    sounds = audio.clips(BACKGROUND_CLIPS, named_seed(seed, "thresholds"))
    mels, targets = [], []
    for source in bank.sources if bank else ():
        assert bank is not None
        numbers = bank.some(source, POSITIVE_CLIPS)
        labels_N, logits_NK = bank.answers(source, numbers)
        sure_NK = logits_NK.softmax(1) >= 0.5 if student.output == "softmax" else logits_NK >= 0
        targets_NK = sure_NK & (labels_N[:, None] == torch.arange(len(student.labels)))
        used_N = targets_NK.any(1)
        if used_N.any():
            mels.append(bank.mels(source, numbers[used_N], student.mel))
            targets.append(targets_NK[used_N])
    if not mels:
        return ThresholdClips(sounds)
    return ThresholdClips(sounds, torch.cat(mels).numpy(), torch.cat(targets).numpy())


def facts_of(student: Student) -> StudentFacts:
    """What the model file records, from the checkpoint's card."""
    card = student.card
    return StudentFacts(
        student.mel, card.labels, card.teacher_sha256, student.sha256, card.licence, card.output
    )


def accuracy_on(features: Features, labels_N: Tensor) -> Callable[[str | Path], float]:
    """A function that gives the accuracy of a streaming model file on real clips.

    `labels_N` holds their classes among the model's labels, -1 for none.
    """
    mels = [mel.numpy() for mel in features.mels]
    return lambda path: score(torch.from_numpy(classify_mels(path, mels)), labels_N).accuracy
