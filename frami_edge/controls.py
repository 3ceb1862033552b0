"""The control table: a student beside students of the same recipe on other clips than its own.

The student's card carries its recipe, so a control differs from it in the clips alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from frami_edge.bank import Bank, BankSampler, check_bank
from frami_edge.checkpoint import Teacher
from frami_edge.config import BASELINES, JourneyConfig, TrainConfig
from frami_edge.data.sets import Clip, SoundSet, check_disjoint, load_set
from frami_edge.data.store import Features, length_buckets
from frami_edge.device import Compute, generator, place
from frami_edge.distillation import ClipSampler, Sampler, TensorSampler, distill, new_student
from frami_edge.errors import CheckpointError, ConfigError
from frami_edge.evaluation import Control, predict, score
from frami_edge.models import StudentNet
from frami_edge.opening import OpenedModel
from frami_edge.progress import Progress, ProgressCallback
from frami_edge.runs import NEVER, RunFolder, Stop, Trail, load_state, save_state
from frami_edge.sources import LEARNED
from frami_edge.sources.noise import smooth_noise_mels, white_noise_mels
from frami_edge.sources.procedural import procedural_mels
from frami_edge.training import load_features, train_epochs, warn_rejected
from frami_edge_runtime.melspec import MelSpec

# --- Control rows: the same student and the same distillation on other clips than the bank's
# A headline means little without them. White noise shows what the teacher's answers alone carry,
# smooth noise and procedural audio what inversion adds, real audio what is lost without data.

SYNTHETIC = ("white_noise", "smooth_noise", "procedural")
"""Controls that need nothing but the front end."""
FROM_BANK = LEARNED
"""Controls that use one source of a bank alone."""
REAL = ("real", "unrelated")
"""Controls on real audio: the teacher's own training clips, and another set's."""
SUPERVISED = "scratch"
"""The same student on the same training clips with their labels and no teacher."""
CONTROLS = (*SYNTHETIC, *FROM_BANK, *REAL, SUPERVISED)
"""All of them."""


def control_feed(
    name: str,
    spec: MelSpec,
    config: JourneyConfig,
    *,
    bank: Bank | None = None,
    real: Sequence[Tensor] = (),
) -> Sampler:
    """The clips of one control.

    Args:
        name: One of `SYNTHETIC`, `FROM_BANK` or `REAL`.
        spec: Front end of the teacher.
        config: Of the run that is controlled: frames, numbers of clips, seed.
        bank: For `FROM_BANK`.
        real: (M, T_i) log-mels, for `REAL`.

    Raises:
        ConfigError: Unknown, or what it needs is not given.
    """
    frames, seed = config.bank.frames, generator(config.seed, f"control/{name}").initial_seed()
    if name == "white_noise":
        return TensorSampler(white_noise_mels(spec, config.bank.control_clips, frames, seed))
    if name == "smooth_noise":
        return TensorSampler(smooth_noise_mels(spec, config.bank.control_clips, frames, seed))
    if name == "procedural":
        return TensorSampler(procedural_mels(spec, config.bank.procedural_clips, frames, seed))
    if name in FROM_BANK:
        if bank is None:
            raise ConfigError(f"The control {name} needs a bank.", fix="Give --bank DIR.")
        return BankSampler(bank, {name: 1.0})
    if name in REAL:
        if not real:
            raise ConfigError(f"The control {name} needs real clips.", fix="Give --data-root.")
        return ClipSampler(real, frames)
    raise ConfigError(f"There is no control {name!r}.", fix=f"Known: {', '.join(CONTROLS)}.")


def control_student(
    name: str,
    teacher: Teacher,
    config: JourneyConfig,
    compute: Compute,
    *,
    bank: Bank | None = None,
    real: Features | None = None,
    run: RunFolder | None = None,
    progress: ProgressCallback | None = None,
) -> StudentNet:
    """The student of one control: same network, same seed, same number of steps.

    Args:
        name: One of `CONTROLS`.
        teacher: The teacher of the student that is controlled.
        config: Config of the run that is controlled.
        compute: Device and precision.
        bank: For `FROM_BANK`.
        real: For `REAL` (labels unused) and `SUPERVISED`.
        run: Keeps its checkpoint, from which a killed training resumes.
        progress: Called after each step.

    Raises:
        ConfigError: See `control_feed`.
    """
    mels = real.mels if real else ()
    phase = f"control-{name}"
    if name != SUPERVISED:
        sampler = control_feed(name, teacher.mel, config, bank=bank, real=mels)
        return distill(teacher, sampler, config, compute, run=run, phase=phase, progress=progress)
    if real is None:
        raise ConfigError(f"The control {name} needs real clips.", fix="Give --data-root.")
    d = config.distill
    alone = d.model_copy(update={"reuse_head": False})
    student = new_student(config.model_copy(update={"distill": alone}), teacher)
    batches = len(length_buckets([d.crop_max] * len(real), d.batch_size, generator=None))
    recipe = TrainConfig(
        epochs=max(1, round(d.steps / batches)),
        batch_size=d.batch_size,
        crop_frames=d.crop_max,
        mixup=d.mixup,
        gain=d.gain,
    )

    def on_step(done: int, steps: int, metrics: dict[str, float]) -> None:
        if progress:
            progress(Progress(phase, done, steps, metrics))

    with Stop() if run else nullcontext(NEVER) as stop:
        trail = Trail(run.path(f"{phase}-state.pt"), stop) if run else None
        train_epochs(
            student, real, recipe, compute=compute, seed=config.seed, on_step=on_step, trail=trail
        )
    return student.eval().requires_grad_(False)


# --- The control table: a student beside students of the same recipe on other clips than its own

ALL_SYNTHETIC = "all-synthetic"
"""Stands for every control that needs nothing but the front end."""
ALWAYS = "smooth_noise"
"""In every table: on easy sets it does nearly as well as a bank, and a reader must see that."""
UNRELATED = "unrelated"
_LABELS = {
    "white_noise": "same steps on white noise",
    "smooth_noise": "same steps on smooth noise",
    "procedural": "same steps on procedural audio",
    "inversion": "same steps on the bank's inversion alone",
    "translator": "same steps on the bank's translator alone",
    **{name: f"same steps on the bank's {name} alone" for name in BASELINES},
    "real": "same steps on the training clips of this set",
    UNRELATED: "same steps on real clips of another set",
    SUPERVISED: "the training clips with labels, no teacher",
}


@dataclass(frozen=True)
class Wanted:
    """The rows that were asked for.

    Attributes:
        names: Of `CONTROLS`, in their order.
        unrelated: The set of the control `unrelated`; empty where it is not wanted.
    """

    names: tuple[str, ...]
    unrelated: str = ""


def parse_controls(wanted: Sequence[str]) -> Wanted:
    """`white_noise`, `unrelated=esc40` as a list of rows; smooth noise is always one of them.

    Raises:
        ConfigError: An unknown control, or `unrelated` without a set.
    """
    names, unrelated = {ALWAYS}, ""
    for part in wanted:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name == ALL_SYNTHETIC and not equals:
            names |= set(SYNTHETIC)
        elif name == UNRELATED and value:
            names.add(name)
            unrelated = value
        elif name == UNRELATED:
            raise ConfigError(
                "The control unrelated needs a set of real clips.",
                fix="Write it like --controls unrelated=esc40.",
            )
        elif name in CONTROLS and not equals:
            names.add(name)
        else:
            known = ", ".join([*(n for n in CONTROLS if n != UNRELATED), "unrelated=SET"])
            raise ConfigError(
                f"There is no control {part.strip()!r}.",
                fix=f"Use {known}, or {ALL_SYNTHETIC}.",
            )
    return Wanted(tuple(name for name in CONTROLS if name in names), unrelated)


def student_recipe(judged: OpenedModel, reference: OpenedModel | None) -> JourneyConfig:
    """How the student was made.

    Raises:
        CheckpointError: There is no teacher, or the model is no student with its whole recipe.
    """
    if judged.kind != "student" or judged.network is None:
        raise CheckpointError(
            f"{judged.path} is no student's checkpoint but a model of the kind {judged.kind}: "
            "it has no recipe to repeat on other clips.",
            fix="Give the student.safetensors of `frami-edge distill`.",
        )
    if reference is None:
        raise CheckpointError(
            "Controls learn from the student's teacher, and none was given.",
            fix="Give --teacher FILE, the checkpoint that the student was distilled from.",
        )
    try:
        config = JourneyConfig.model_validate(judged.network.card.recipe)
    except ValidationError:
        config = None
    if config is None or config.student.model_dump(mode="json") != judged.network.card.arch:
        raise CheckpointError(
            f"{judged.path} does not say how it was distilled, so no control can repeat it.",
            fix="Give a student of this version's `frami-edge distill`.",
        )
    return config


@dataclass
class ControlTable:
    """Checks everything first, then distils one student after the other.

    Attributes:
        wanted: Rows.
        config: Recipe of the student that is controlled.
        teacher: Its teacher.
        compute: Device and precision.
        bank: For the rows that use one source of it.
        real: Clips of the rows on real audio, by row.
    """

    wanted: Wanted
    config: JourneyConfig
    teacher: Teacher
    compute: Compute
    bank: Bank | None = None
    real: dict[str, Features] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        wanted: Wanted,
        config: JourneyConfig,
        teacher: Teacher,
        compute: Compute,
        data: SoundSet,
        fold: str,
        out: Any,
        *,
        bank: Path | None = None,
        root: Path | None = None,
    ) -> ControlTable:
        """Open the bank and the real clips that the rows need.

        Args:
            wanted: Rows.
            config: Recipe of the student.
            teacher: Its teacher; moved to the device.
            compute: Device and precision.
            data: What the table is scored on.
            fold: The held-out fold: no row hears it.
            out: For progress and warnings.
            bank: Folder.
            root: Data root.

        Raises:
            ConfigError: A row needs a bank, and none is given.
            BankError: The bank is of another teacher, or lacks a source.
            DataError: Real clips are not there, or hold clips that the table is scored on.
        """
        place(teacher.model, compute)
        table = cls(wanted, config, teacher, compute)
        for name in wanted.names:
            if name in FROM_BANK:
                table.bank = table.bank or _bank(bank, name, teacher)
                BankSampler(table.bank, {name: 1.0})
        if set(wanted.names) & {"real", SUPERVISED}:
            features = _features(teacher, data.split(fold)[0], "training", out)
            table.real |= {"real": features, SUPERVISED: features}
        if wanted.unrelated:
            others = load_set(wanted.unrelated, root)
            check_disjoint(others, data)
            table.real[UNRELATED] = _features(teacher, others.clips, UNRELATED, out)
        return table

    def rows(
        self,
        tests: Features,
        theirs_NK: Tensor,
        run: RunFolder | None = None,
        progress: ProgressCallback | None = None,
    ) -> dict[str, Control]:
        """Distil and score each control.

        Args:
            tests: Clips with log-mels of the teacher's front end.
            theirs_NK: The teacher's logits on them.
            run: Keeps checkpoints and logits, from which a killed table resumes.
            progress: Called after each step.
        """
        found = {}
        for name in self.wanted.names:
            logits_NK = self._logits(name, tests, run, progress)
            mine = score(logits_NK, tests.labels, theirs_NK)
            facts = {"steps": self._steps(name), "seed": self.config.seed, **self._clips(name)}
            found[name] = Control(_LABELS[name], mine, facts)
        return found

    def _logits(
        self,
        name: str,
        tests: Features,
        run: RunFolder | None,
        progress: ProgressCallback | None,
    ) -> Tensor:
        """The logits of one control, (N, K): from an earlier run, or of a new student."""
        kept = run.path(f"controls/{name}.pt") if run else None
        found = load_state(kept) if kept and kept.exists() else None
        if found is not None and found["clips"] == tests.sha256:
            logits_NK: Tensor = found["logits"]
            return logits_NK
        student = control_student(
            name,
            self.teacher,
            self.config,
            self.compute,
            bank=self.bank,
            real=self.real.get(name),
            run=run,
            progress=progress,
        )
        logits_NK = predict(student, tests.mels)
        if run and kept:
            save_state(kept, {"clips": tests.sha256, "logits": logits_NK})
            run.path(f"control-{name}-state.pt").unlink(missing_ok=True)
        return logits_NK

    def _steps(self, name: str) -> int:
        """Training steps; whole epochs where labels are learned."""
        steps = self.config.distill.steps
        if name != SUPERVISED:
            return steps
        batches = math.ceil(len(self.real[name]) / self.config.distill.batch_size)
        return max(1, round(steps / batches)) * batches

    def _clips(self, name: str) -> dict[str, Any]:
        if name not in self.real:
            return {}
        clips = {"real_clips": len(self.real[name])}
        return clips | ({"data": self.wanted.unrelated} if name == UNRELATED else {})


def _bank(folder: Path | None, name: str, teacher: Teacher) -> Bank:
    if folder is None:
        raise ConfigError(
            f"The control {name} needs a bank.",
            fix="Give --bank DIR, the bank folder of the student's run.",
        )
    bank = Bank.open(folder)
    check_bank(bank, teacher.spec, teacher.card.labels, teacher.sha256)
    return bank


def _features(teacher: Teacher, clips: Sequence[Clip], what: str, out: Any) -> Features:
    features = load_features(teacher.spec, clips, out, f"Log-mels of {what} clips")
    warn_rejected(features, f"{what} clips", out)
    return features
