"""Control rows: the student's network, recipe and seed on other clips than its bank's.

A headline means little without them. White noise shows how much the teacher's predictions alone
carry, smooth noise and procedural audio show what the inversion adds, and real audio shows what is
lost without data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from frami_edge.bank import Bank, bank_sampler, check_bank
from frami_edge.checkpoint import Student, Teacher
from frami_edge.config import BASELINES, JourneyConfig, TrainConfig, frames_in
from frami_edge.data.clips import SoundSet, check_unrelated, read_audio
from frami_edge.data.sets import load_set
from frami_edge.data.store import Features, length_buckets, load_features
from frami_edge.device import Compute, named_seed
from frami_edge.distillation import (
    ClipSampler,
    Hearing,
    Sampler,
    TensorSampler,
    distill,
    new_student,
)
from frami_edge.errors import CheckpointError, ConfigError
from frami_edge.evaluation import Control, Score, predict
from frami_edge.frontend import Renderer, resample
from frami_edge.models import StudentNet
from frami_edge.opening import OpenedModel
from frami_edge.progress import ProgressCallback
from frami_edge.runs import RunFolder
from frami_edge.sources.baselines import smooth_noise_mels, white_noise_mels
from frami_edge.sources.procedural import (
    measured,
    procedural_audio,
    procedural_mels,
    samples_for,
)
from frami_edge.training import train_epochs
from frami_edge_runtime.melspec import MelSpec

SYNTHETIC = ("white_noise", "smooth_noise", "procedural")
"""Controls that need only the front end."""
ALL_SYNTHETIC, ALWAYS, UNRELATED, SCRATCH = "all-synthetic", "smooth_noise", "unrelated", "scratch"
"""`ALWAYS` is in every table: on easy data sets it does nearly as well as a bank."""
CONTROLS = {
    "white_noise": "same steps on white noise",
    "smooth_noise": "same steps on smooth noise",
    "procedural": "same steps on procedural audio",
    **{
        name: f"same steps on the bank's {name} alone"
        for name in ("inversion", "translator", *BASELINES)
    },
    "real": "same steps on the training clips of this set",
    UNRELATED: "same steps on real clips of another set",
    SCRATCH: "the training clips with labels, no teacher",
}
"""Descriptions of all controls, in the order of the rows."""


def parse_controls(wanted: Sequence[str]) -> dict[str, str]:
    """Names like `white_noise` and `unrelated=esc40`, as {name: data set or ""}, in row order.

    Raises:
        ConfigError: A name is unknown, or `unrelated` has no data set.
    """
    found = {ALWAYS: ""}
    for part in wanted:
        name, equals, data = (piece.strip() for piece in part.partition("="))
        if name == ALL_SYNTHETIC and not equals:
            found |= dict.fromkeys(SYNTHETIC, "")
        elif name in CONTROLS and (name == UNRELATED) == bool(data) == bool(equals):
            found[name] = data
        else:
            known = ", ".join(n for n in CONTROLS if n != UNRELATED)
            raise ConfigError(
                f"There is no control {part.strip()!r}.",
                fix=f"Use {known}, unrelated=SET, or {ALL_SYNTHETIC}.",
            )
    return {name: found[name] for name in CONTROLS if name in found}


def student_recipe(student: OpenedModel, teacher: OpenedModel | None) -> JourneyConfig:
    """The config that a student was distilled with.

    Raises:
        CheckpointError: There is no teacher, or the model is not a student with its recipe.
    """
    if teacher is None:
        raise CheckpointError(
            "Controls are distilled from the student's teacher, and there is none.",
            fix="Give --teacher FILE, the teacher that the student was distilled from.",
        )
    if isinstance(student.network, Student):
        with suppress(ValidationError):
            config = JourneyConfig.model_validate(student.network.card.recipe)
            if config.student.model_dump(mode="json") == student.network.card.arch:
                return config
    raise CheckpointError(
        f"{student.path}, a {student.kind}, does not record how it was distilled, so no control "
        "can repeat it.",
        fix="Give the student.safetensors of this version's `frami-edge distill`.",
    )


def control_sampler(
    name: str,
    teacher: Teacher,
    config: JourneyConfig,
    *,
    bank: Bank | None = None,
    real: Features | None = None,
    audio: bool = False,
) -> Sampler:
    """The clips of a control other than `scratch`, as many and as long as `config` says.

    `real` holds the clips of `real` and `unrelated`, through the teacher's front end. With
    ``audio`` all clips are audio: those files are read again, and noise is rendered.

    Raises:
        BankError: The bank lacks the source.
        ConfigError: The bank is missing.
    """
    b, mel = config.bank, teacher.mel
    if teacher.takes == "audio":  # its front end is a proposal, perhaps without mean and std
        mel = measured(mel)
    frames = frames_in(b.clip_s, mel)
    seed = named_seed(config.seed, f"control/{name}")
    made = {
        "white_noise": (white_noise_mels, b.control_clips),
        "smooth_noise": (smooth_noise_mels, b.control_clips),
        "procedural": (procedural_mels, b.procedural_clips),
    }
    samples = samples_for(mel, frames)
    if name == "procedural" and audio:
        return TensorSampler(procedural_audio(mel.sample_rate, b.procedural_clips, samples, seed))
    if name in made:
        make, clips = made[name]
        mels = make(mel, clips, frames, seed)
        if not audio:
            return TensorSampler(mels)
        render = Renderer(mel)
        with torch.no_grad():
            return TensorSampler(torch.cat([render(part) for part in mels.split(64)]))
    if real and audio:
        heard = [_samples(clip.path, teacher.sample_rate) for clip in real.clips]
        return ClipSampler(heard, samples)
    if real:
        return ClipSampler(real.mels, frames)
    if bank is None:
        raise ConfigError(
            f"The control {name} needs a bank.",
            fix="Give --bank DIR, the bank folder of the student's run.",
        )
    return bank_sampler(bank, config, teacher.output, {name: 1.0})


def scratch_student(
    real: Features,
    teacher: Teacher,
    config: JourneyConfig,
    compute: Compute,
    *,
    run: RunFolder | None = None,
    progress: ProgressCallback | None = None,
) -> StudentNet:
    """The student's network trained on labels instead of a teacher, for about as many steps.

    It uses only the front end and the classes of the teacher. A `run` keeps a checkpoint, from
    which a killed training resumes.
    """
    d, phase = config.distill, f"control-{SCRATCH}"
    alone = d.model_copy(update={"reuse_head": False})
    student = new_student(config.model_copy(update={"distill": alone}), teacher, real.mel)
    recipe = TrainConfig(
        epochs=_scratch_steps(config, len(real))[0],
        batch_size=d.batch_size,
        crop_s=d.crop_max_s,
        mixup=d.mixup,
        gain=d.gain,
    )
    train_epochs(
        student,
        real,
        recipe,
        compute=compute,
        seed=config.seed,
        checkpoint=run.path(f"{phase}-state.pt") if run else None,
        phase=phase,
        progress=progress,
    )
    return student.eval().requires_grad_(False)


def labelled(clips: Features, targets_DK: Tensor) -> Features:
    """The clips of the model's classes, with its labels instead of those of the set."""
    targets_NK = targets_DK[clips.labels]
    known_N = targets_NK.any(1)
    found = clips.only(known_N.tolist())
    found.labels = targets_NK[known_N].int().argmax(1)
    return found


def _scratch_steps(config: JourneyConfig, clips: int) -> tuple[int, int]:
    """(epochs, steps): whole epochs that come nearest to the steps of the distillation."""
    d = config.distill
    batches = len(length_buckets([1] * clips, d.batch_size, generator=None))
    epochs = max(1, round(d.steps / batches))
    return epochs, epochs * math.ceil(clips / d.batch_size)


@dataclass(frozen=True)
class ControlPlan:
    """Everything that the control rows of one student need, checked before any is distilled."""

    wanted: Mapping[str, str]
    """The rows, see `parse_controls`."""
    bank: Bank | None
    real: Mapping[str, Features]
    """Real clips by control."""
    config: JourneyConfig
    teacher: Teacher
    mel: MelSpec
    """The student's front end."""
    compute: Compute

    def rows(
        self,
        tests: Features,
        scored: Callable[[Tensor], Score],
        run: RunFolder | None = None,
        progress: ProgressCallback | None = None,
    ) -> dict[str, Control]:
        """Distil every control and score it on `tests`, log-mels of the student's front end.

        A `run` keeps checkpoints, from which a killed evaluation resumes.
        """
        found, c = {}, self.config
        if UNRELATED in self.real:
            check_unrelated(self.wanted[UNRELATED], self.real[UNRELATED].audio, tests.audio)
        hear = Hearing(self.teacher, self.mel, self.compute.device)
        audio = hear.needs_audio
        for name, data in self.wanted.items():
            facts: dict[str, Any] = {"steps": c.distill.steps, "seed": c.seed}
            clips = self.real.get(name)
            if clips is not None:
                facts["real_clips"] = len(clips)
            if data:
                facts["data"] = data
            if name == SCRATCH and clips is not None:
                facts["steps"] = _scratch_steps(c, len(clips))[1]
                student = scratch_student(
                    clips, self.teacher, c, self.compute, run=run, progress=progress
                )
            else:
                sampler = control_sampler(
                    name, self.teacher, c, bank=self.bank, real=clips, audio=audio
                )
                student = distill(
                    self.teacher,
                    sampler,
                    c,
                    self.compute,
                    mel=self.mel,
                    run=run,
                    phase=f"control-{name}",
                    progress=progress,
                )
            result = scored(predict(student, tests.mels))
            found[name] = Control(CONTROLS[name], result, facts)
        return found


def _samples(path: Path, rate: int) -> Tensor:
    """(N,) samples of a file at that rate."""
    samples, given = read_audio(path)
    return resample(torch.from_numpy(samples), given, rate)


def plan_controls(
    wanted: Mapping[str, str],
    config: JourneyConfig,
    teacher: Teacher,
    mel: MelSpec,
    compute: Compute,
    data: SoundSet,
    fold: str,
    targets_DK: Tensor,
    *,
    bank: Path | None = None,
    root: Path | None = None,
    progress: ProgressCallback | None = None,
) -> ControlPlan:
    """Open the bank and the real clips that the rows need.

    The rows are scored on the test fold `fold` of `data`, and none is trained on it; `mel` is the
    student's front end, and `targets_DK` says which of the teacher's classes are those of the set.

    Raises:
        BankError: The bank belongs to another teacher, or lacks a source.
        ConfigError: A row needs a bank, and there is none.
        DataError: Real clips are missing, or are part of the test data.
    """
    opened = None
    if bank is not None:
        opened = Bank.open(bank)
        check_bank(opened, teacher.mel, teacher.labels, teacher.sha256)
    real: dict[str, Features] = {}
    if wanted.get(UNRELATED):
        others = load_set(wanted[UNRELATED], root)
        check_unrelated(others.name, others.files, data.files)
        real[UNRELATED] = load_features(teacher.mel, others.clips, progress)
    for name, own in (("real", teacher.mel), (SCRATCH, mel)):
        if name in wanted:
            clips = load_features(own, data.split(fold)[0], progress)
            real[name] = labelled(clips, targets_DK) if name == SCRATCH else clips
    for name in wanted:
        if name not in (*SYNTHETIC, *real):
            control_sampler(name, teacher, config, bank=opened)
    return ControlPlan(wanted, opened, real, config, teacher, mel, compute)
