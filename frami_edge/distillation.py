"""Distillation: a student learns from the live teacher on synthetic clips, in one loop.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frami_edge.augment import (
    Energies,
    mix_pairs,
    overlay_pairs,
    random_crop,
    random_equaliser,
    random_gain,
    random_low_pass,
    random_masks,
    random_roll,
    random_tempo_and_pitch,
    random_volume,
)
from frami_edge.config import DistillConfig, JourneyConfig, frames_in
from frami_edge.device import (
    Compute,
    autocast,
    fused,
    generator,
    named_seed,
    place,
    rank_seed,
    read_every,
    trim_memory,
    upload,
    world,
)
from frami_edge.errors import BankError, ConfigError, RunError
from frami_edge.frontend import LogMel, ResampledLogMel, bridge_between
from frami_edge.losses import DistillationLoss, FeatureScale, detection_boundary, same_decision
from frami_edge.models import Hidden, ReusedHead, StudentNet, TeacherLike, only_answers
from frami_edge.progress import ProgressCallback, StepReport
from frami_edge.runs import damaged, load_state, save_state
from frami_edge.sources.procedural import procedural_mels, samples_for
from frami_edge.teachers.inheriting import inherit
from frami_edge_runtime.melspec import MelSpec

if TYPE_CHECKING:
    from frami_edge.checkpoint import Teacher
    from frami_edge.runs import RunFolder

log = logging.getLogger("frami_edge")


# --- Where the clips of a batch come from, beside `frami_edge.bank.BankSampler`


class Sampler(Protocol):
    """Random clips: of a bank, of real audio, of noise."""

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T) log-mels of the teacher's front end, or (n, N) samples at its rate."""
        ...


class TensorSampler:
    """Random clips of equal length, held in memory: log-mels (N, 1, M, T), or audio (N, S)."""

    def __init__(self, clips: Tensor) -> None:
        self.clips = clips

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T), or (n, S)."""
        return self.clips[torch.randint(0, len(self.clips), (n,), generator=generator)]


class ClipSampler:
    """Random stretches of real clips of any length: a control, never a part of the journey.

    Args:
        clips: (M, T_i) normalised log-mels, or (N_i,) samples.
        length: Frames or samples of every stretch; shorter clips are repeated.
    """

    def __init__(self, clips: Sequence[Tensor], length: int) -> None:
        clips = [repeat_to(x, length) for x in clips]
        self.clips, self.length = [x[None, None] if x.ndim == 2 else x[None] for x in clips], length

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T), or (n, S)."""
        index = torch.randint(0, len(self.clips), (n,), generator=generator).tolist()
        return torch.cat([random_crop(self.clips[i], self.length, generator) for i in index])


def repeat_to(mel_MT: Tensor, frames: int) -> Tensor:
    """Repeat a clip from its start until it has ``frames`` frames; longer ones stay unchanged."""
    t = mel_MT.shape[-1]
    return mel_MT if t >= frames else mel_MT[..., torch.arange(frames) % t]


# --- Schedule and parameter groups, which teacher training shares


def cosine_with_warmup(step: int, total: int, warmup: float) -> float:
    """Factor of the learning rate: linear rise over ``warmup`` of the steps, then a half cosine."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: decay for matrices and kernels, none for biases and BatchNorm."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


# --- What teacher and student make of a clip, each through its own front end


class Hearing:
    """What teacher and student receive of a clip, each through its own front end.

    Log-mels are the teacher's; the student's are equal, or computed from them (`MelBridge`).

    Args:
        teacher: The teacher; audio is at its rate.
        mel: The student's front end.
        device: Where the networks compute.
    """

    def __init__(self, teacher: Teacher, mel: MelSpec, device: torch.device) -> None:
        self.teacher, self.mel = teacher, mel
        self.of_teacher = LogMel(teacher.mel).to(device) if teacher.takes == "mel" else None
        self.shared = self.of_teacher is not None and mel == teacher.mel
        self.of_student = ResampledLogMel(mel, teacher.sample_rate).to(device)
        bridge = None
        if self.of_teacher and not self.shared:
            bridge = bridge_between(teacher.mel, mel)
        self.bridge = bridge.to(device) if bridge else None
        self.needs_audio = not self.shared and bridge is None
        """Whether log-mels of the teacher are of no use."""

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of teacher and student, of log-mels (B, 1, M, T) or samples (B, N).

        Raises:
            BankError: These are log-mels, and those of the student cannot be computed from them.
        """
        if x.ndim == 4:
            if self.needs_audio:
                raise BankError(
                    "The clips are log-mels, and audio is needed: the student has another front "
                    "end, or the teacher takes audio.",
                    fix="Make a bank with this config: `frami-edge invert`.",
                )
            return x, self.bridge(x) if self.bridge else x
        ours = x if self.of_teacher is None else self.of_teacher(x)[:, None]
        return ours, ours if self.shared else self.of_student(x)[:, None]

    @property
    def clock(self) -> tuple[float, float]:
        """Steps of the teacher's input per mel frame of the student, and its step at frame 0."""
        step_s, start_s = self.teacher.step_s, frame_0_s(self.mel)
        if self.of_teacher is not None:
            start_s -= frame_0_s(self.teacher.mel)
        return self.mel.hop_s / step_s, start_s / step_s


def normalised(teacher: Teacher, mel: MelSpec, sampler: Sampler, seed: int) -> MelSpec:
    """The student's front end with mean and std of the bank's clips, where it has none (0 and 1).

    One number each, over 256 clips.
    """
    if mel.mean != 0 or mel.std != 1:
        return mel
    clips = sampler.batch(256, generator(seed, "distill/normalisation"))
    hear = Hearing(teacher, mel, clips.device)
    mels = torch.cat([hear(part)[1] for part in clips.split(64)])
    return mel.replace(mean=round(float(mels.mean()), 4), std=round(float(mels.std()), 4))


def frame_0_s(mel: MelSpec) -> float:
    """Centre of a front end's first frame, in seconds from the start of the audio."""
    return (mel.span / 2 - mel.pad) / mel.sample_rate


# --- The loop

_REMEMBERED = 400
"""Batches that later steps learn from again, where a step need not take a new one."""
_AT_ONCE = 1 << 20
"""Input values per forward pass on a CPU. Larger passes allocate fresh pages each time, and clips
of many lengths fragment the heap."""


def distill(
    teacher: Teacher,
    sampler: Sampler,
    config: JourneyConfig,
    compute: Compute,
    *,
    mel: MelSpec | None = None,
    run: RunFolder | None = None,
    phase: str = "distill",
    progress: ProgressCallback | None = None,
) -> StudentNet:
    """Train a new student on unlabelled clips with live teacher targets, or resume a killed run.

    Everything random in step i comes from the seed and i, so that a resumed run gives the same
    bits. The last step's student is the result, never the best one's. It comes back with projector
    and head collapsed into one matrix, in evaluation mode and without gradients.

    Under torchrun this is plain DistributedDataParallel: every process draws a batch of
    ``batch_size`` of its own and the gradients are averaged. BatchNorm normalises each process's
    own batch, which is as large as without torchrun, and rank 0's running statistics are kept.

    Args:
        teacher: Frozen; moved to the device.
        sampler: Clips.
        config: Student, loss weights, augmentation, schedule, seed.
        compute: Device and precision.
        mel: The student's front end; None for the teacher's.
        run: Receives the losses of every step as rows, and the checkpoints; only on rank 0.
        phase: Name of this training in the rows and of its checkpoint.
        progress: Called after each step.

    Raises:
        BankError: The clips are log-mels, and teacher and student share no front end.
        ConfigError: No term would train the student's head.
        RunError: The loss or a weight is no longer finite.
    """
    c, device, (rank, ranks) = config.distill, compute.device, world()
    seed = rank_seed(config.seed, rank)
    place(teacher.model, compute)
    hear = Hearing(teacher, mel or teacher.mel, device)
    probe = scenes(sampler, 256, c.join, generator(config.seed, "distill/scale"))
    clips = hear(probe.to(device))[0]
    student = new_student(config, teacher, mel, clips)
    _check_head(teacher.model, student, c)
    place(student, compute)
    with torch.no_grad(), autocast(compute):
        known = teacher.hidden(clips)
        scale = FeatureScale.measure(known)
    boundary = _boundary(sampler, teacher, known.logits_BK, c)
    torch.manual_seed(named_seed(config.seed, "distill/projectors"))
    losses: nn.Module = DistillationLoss(
        student, teacher.model, scale, c, compute, boundary, hear.clock
    ).to(device)
    groups = weight_groups(losses, c.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=c.learning_rate, fused=fused(compute))
    path = run.path(f"{phase}-state.pt") if run else None
    first = _load(path, losses, optimizer)
    network = DistributedDataParallel(losses, find_unused_parameters=True) if ranks > 1 else losses
    heard = _Heard(teacher, student, hear, sampler, c, compute, seed)
    report = StepReport(phase, first, c.steps, read_every(compute), run, progress)

    with run.timed(phase) if run else nullcontext():
        for step in range(first, c.steps):
            inputs, target = heard.batch(step)
            for group in optimizer.param_groups:
                group["lr"] = c.learning_rate * cosine_with_warmup(step, c.steps, c.warmup)
            student.train()
            terms, logits_BK = network(inputs, target)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            agreement = same_decision(logits_BK, target.logits_BK, teacher.output).float().mean()
            done = step + 1
            due = done % c.checkpoint_steps == 0 or done == c.steps
            rows = report.step({"loss": loss, **terms, "agreement": agreement}, read=due)
            if not all(math.isfinite(row["loss"]) for row in rows):
                raise _diverged(done, c.steps)
            if due and path:
                parts = {"losses": losses.state_dict(), "optimizer": optimizer.state_dict()}
                save_state(path, {"done": done, **parts})
    return _finished(student, c.steps)


class _Heard:
    """Batches with the teacher's answers, each of which `DistillConfig.repeats` steps learn from.

    What a step gets depends on the seed and the step alone: a resumed run computes the batches anew
    that an unbroken one would remember.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: StudentNet,
        hear: Hearing,
        sampler: Sampler,
        config: DistillConfig,
        compute: Compute,
        seed: int,
    ) -> None:
        self.teacher, self.student, self.hear, self.sampler = teacher, student, hear, sampler
        self.config, self.compute, self.seed = config, compute, seed
        self.answering = only_answers(teacher.model)
        self.kept: dict[int, tuple[Tensor, Hidden]] = {}

    def batch(self, step: int) -> tuple[Tensor, Hidden]:
        """What the student's frozen layers and the teacher make of a batch, new or remembered."""
        number, repeat = divmod(step, self.config.repeats)
        most = _REMEMBERED if self.config.repeats > 1 else 1
        known = range(max(0, number + 1 - most), number + 1)
        for i in known:
            if i not in self.kept:
                self.kept[i] = self._compute(i)
                trim_memory()
        for i in set(self.kept) - set(known):
            del self.kept[i]
        if repeat:
            rng = generator(self.seed, f"distill/{number}/{repeat}")
            number = known[int(torch.randint(len(known), (), generator=rng))]
        return self.kept[number]

    @torch.no_grad()
    def _compute(self, number: int) -> tuple[Tensor, Hidden]:
        rng, c = generator(self.seed, f"distill/{number}"), self.config
        clips = scenes(self.sampler, c.batch_size, c.join, rng)
        clips = augmented(clips, c, rng, self.teacher.mel)
        ours, x = self.hear(upload(clips, self.compute.device))
        on_cpu = self.compute.device.type == "cpu"
        n = max(1, _AT_ONCE // ours[0].numel()) if on_cpu else len(ours)
        firsts, targets = [], []
        with autocast(self.compute):
            for theirs, mine in zip(ours.split(n), x.split(n), strict=True):
                target = self.answering.hidden(theirs)
                if not c.before_pooling:
                    target.frames_BCT = target.frames_BCT[..., :0]  # many batches are remembered
                targets.append(target)
                firsts.append(self.student.first(mine))
        return torch.cat(firsts), _joined(targets)


def _joined(parts: list[Hidden]) -> Hidden:
    whole = [part.whole_BK for part in parts if part.whole_BK is not None]
    return Hidden(
        torch.cat([part.frames_BCT for part in parts]),
        torch.cat([part.pooled_BD for part in parts]),
        torch.cat([part.logits_BK for part in parts]),
        torch.cat(whole) if whole else None,
    )


def _boundary(
    sampler: Sampler, teacher: Teacher, probe_BK: Tensor, config: DistillConfig
) -> Tensor | None:
    """Where detectors are compared: a bank knows the teacher's logits of all its clips."""
    if teacher.output == "softmax":
        return None
    known: Tensor | None = getattr(sampler, "boundary_K", None)
    return detection_boundary(probe_BK, config.boundary) if known is None else known


def _finished(student: StudentNet, steps: int) -> StudentNet:
    """The student to ship; every process returns the same one."""
    if not all(torch.isfinite(p).all() for p in student.state_dict().values()):
        raise _diverged(steps, steps)
    if world()[1] > 1:
        for buffer in student.buffers():
            dist.broadcast(buffer, src=0)
    return student.eval().collapse().requires_grad_(False)


def check_inherited(config: JourneyConfig, teacher: Teacher, mel: MelSpec) -> None:
    """Refuse layers that cannot be inherited, before a bank is made for their student.

    Raises:
        ConfigError, TeacherError: As `new_student`.
    """
    if config.student.inherit is not None:
        clips = procedural_mels(teacher.mel, 4, frames_in(config.bank.clip_s, teacher.mel), 0)
        new_student(config, teacher, mel, clips.to(next(teacher.model.parameters()).device))


def new_student(
    config: JourneyConfig,
    teacher: Teacher,
    mel: MelSpec | None = None,
    clips: Tensor | None = None,
) -> StudentNet:
    """A student with the initial weights of the seed, and the teacher's head where it is reused.

    Args:
        config: Student, and whether the head is reused.
        teacher: The teacher.
        mel: The student's front end; None for the teacher's.
        clips: Inputs of the teacher, for a student that inherits its first layers.

    Raises:
        ConfigError: A student that inherits layers has a front end of its own.
        TeacherError: The layers cannot be inherited.
    """
    arch = config.student
    if arch.inherit is not None:
        if clips is None or (mel or teacher.mel) != teacher.mel:
            raise ConfigError(
                "A student that inherits layers needs its teacher's front end.",
                fix="Leave student_mel out, or student.inherit.",
            )
        inherited = inherit(teacher.model, arch.inherit, clips)
        arch = arch.model_copy(update={"layers": inherited.layers})
    torch.manual_seed(named_seed(config.seed, "student"))
    head = teacher.model.head if config.distill.reuse_head else None
    if config.distill.reuse_head and head is None:
        log.info(
            "The teacher's map from pooled state to logits is not affine: the student gets a head "
            "of its own."
        )
    student = StudentNet(arch, (mel or teacher.mel).n_mels, len(teacher.labels), head)
    if arch.inherit is not None:
        student.inherited.load_state_dict(inherited.state_dict())
    return student


def scenes(sampler: Sampler, n: int, join: int, rng: torch.Generator) -> Tensor:
    """Rows of ``join`` random clips, one after the other: (n, 1, M, T) or (n, samples)."""
    parts = [sampler.batch(n, rng)]
    for _ in range(join - 1):
        # A sampler may order its clips, such as by class: neighbours must not follow from it.
        parts.append(sampler.batch(n, rng)[torch.randperm(n, generator=rng)])
    return torch.cat(parts, dim=-1)


def augmented(x: Tensor, config: DistillConfig, rng: torch.Generator, mel: MelSpec) -> Tensor:
    """Random crop, gain, mixup and masks, on the host, from one generator.

    Audio (B, N) has no masks; ``mel``, the teacher's front end, says what a frame of a crop and a
    unit of the gain are in samples.
    """
    c, audio = config, x.ndim == 2
    shortest, longest = frames_in(c.crop_min_s, mel), frames_in(c.crop_max_s, mel)
    frames = int(torch.randint(shortest, longest + 1, (), generator=rng))
    if c.roll:
        x = random_roll(x, rng)
    x = random_crop(x, samples_for(mel, frames) if audio else frames, rng)
    if not audio and (c.overlay or c.tempo or c.pitch_bands or c.equaliser_db or c.low_pass):
        energies = Energies(mel)
        x = energies.of(x)
        if c.tempo or c.pitch_bands:
            x = random_tempo_and_pitch(x, c.tempo, c.pitch_bands, rng)
        if c.overlay:
            x = overlay_pairs(x, c.overlay, rng)
        if c.equaliser_db:
            x = random_equaliser(x, c.equaliser_db, rng)
        if c.low_pass:
            floor_M1 = energies.of(torch.from_numpy(mel.floor)[:, None])
            x = random_low_pass(x, c.low_pass, floor_M1, rng)
        x = energies.back(x)
    if c.gain and audio:
        # In amplitude: one unit of the front end's std is std / log_scale nepers of its power.
        x = random_volume(x, c.gain * float(np.mean(mel.std)) / mel.log_scale / mel.power, rng)
    elif c.gain:
        x = random_gain(x, c.gain, rng)
    if c.mixup:
        x = mix_pairs(x, c.mixup, rng)[0]
    if (c.mask_bands or c.mask_frames) and not audio:
        x = random_masks(x, c.mask_bands, c.mask_frames, rng)
    return x


def _check_head(teacher: TeacherLike, student: StudentNet, config: DistillConfig) -> None:
    """Hidden terms alone train no head; the teacher's own needs no training where it fits."""
    if config.logits:
        return
    if isinstance(student.head, ReusedHead):
        projector = student.head.projector
        fits = projector.in_features == projector.out_features
        if config.after_pooling or (fits and student.channels == teacher.channels):
            return
    raise ConfigError(
        "No term would train the student's head: distill.logits is 0, and the terms on hidden "
        "states do not reach it.",
        fix="Set distill.logits above 0, or distill.reuse_head to true and distill.after_pooling "
        "above 0; with the teacher's head and student.out_channels equal to the teacher's C, "
        "distill.before_pooling alone is enough.",
    )


def _load(path: Path | None, losses: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a checkpoint, which rank 0 alone has; returns the number of steps done."""
    found = [load_state(path) if path and path.exists() else None]
    if path and path.exists() and found[0] is None:
        log.warning(damaged(path, "the distillation"))
    if world()[1] > 1:
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    state = found[0]
    if state is None:
        return 0
    losses.load_state_dict(state["losses"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("Continuing from step %d.", state["done"])
    return int(state["done"])


def _diverged(step: int, steps: int) -> RunError:
    return RunError(
        f"The distillation diverged by step {step} of {steps}: its loss or its weights are no "
        "longer finite.",
        fix="Use a smaller distill.learning_rate and another --out, or --precision fp32.",
    )
