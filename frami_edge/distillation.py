"""One distillation inside a run folder: checkpoints, metrics, the student and its card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from frami_edge import plots
from frami_edge.augment import mix_pairs, random_crop, random_gain, random_masks
from frami_edge.bank import Bank
from frami_edge.cards import student_readme
from frami_edge.checkpoint import Card, Teacher, parameters, save_checkpoint
from frami_edge.cli._output import Output
from frami_edge.config import DistillConfig, JourneyConfig, Strict, StudentArch
from frami_edge.device import Compute, autocast, generator, read_every, upload
from frami_edge.distributed import Rows, broadcast, share_batch_norms, world
from frami_edge.errors import ConfigError, RunError
from frami_edge.io import atomic_write_text, sha256_file
from frami_edge.losses import FeatureScale, HiddenMatch, Terms, over_processes
from frami_edge.models import ReusedHead, StudentNet, TeacherLike
from frami_edge.runs import NEVER, RunFolder, Stop, damaged, load_state, save_state
from frami_edge.sources.procedural import procedural_mels

# --- Schedules and parameter groups shared by the training loops


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


# --- Feeds beside the bank: clips in memory and real clips, for control rows
# Shape legend: N clips, M mel bands, T frames.


def repeat_to(mel_MT: Tensor, frames: int) -> Tensor:
    """Repeat a clip from its start until it has ``frames`` frames; longer ones stay as they are."""
    t = mel_MT.shape[-1]
    return mel_MT if t >= frames else mel_MT[..., torch.arange(frames) % t]


class TensorFeed:
    """Random clips of equal length that lie in memory.

    Args:
        mels_N1MT: Normalised log-mels.
    """

    def __init__(self, mels_N1MT: Tensor) -> None:
        self.mels = mels_N1MT

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T)."""
        return self.mels[torch.randint(0, len(self.mels), (n,), generator=generator)]


class ClipFeed:
    """Random stretches of real clips of any length: a control, never a part of the journey.

    Args:
        mels: (M, T_i) normalised log-mels.
        frames: T of every stretch; shorter clips are repeated.
    """

    def __init__(self, mels: Sequence[Tensor], frames: int) -> None:
        self.mels, self.frames = [repeat_to(m, frames) for m in mels], frames

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T)."""
        index = torch.randint(0, len(self.mels), (n,), generator=generator).tolist()
        clips = [random_crop(self.mels[i][None, None], self.frames, generator) for i in index]
        return torch.cat(clips)


# --- The distillation loop
# Shape legend: B batch, M mel bands, T frames.


class Feed(Protocol):
    """Where the clips of a batch come from: a bank, real clips, noise."""

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T) normalised log-mels, float32."""
        ...


class Distiller:
    """Teaches a student on clips whose labels nobody knows: the teacher answers.

    Every random choice of step i comes from the seed and i, so that a resumed run is the same run.
    Several processes share each batch out by rows; gradients, BatchNorm statistics and losses are
    those of the whole batch.

    Args:
        teacher: Frozen.
        student: Trained in place.
        config: Weights, augmentation, schedule.
        compute: Device and precision.
        seed: Of batches and augmentation.
        feed: Clips.

    Raises:
        ConfigError: No term would train the student's head.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentNet,
        config: DistillConfig,
        compute: Compute,
        seed: int,
        feed: Feed,
    ) -> None:
        self.teacher, self.student, self.config = teacher, student, config
        self.compute, self.seed, self.feed = compute, seed, feed
        # oneDNN's backward of depthwise kernels is several times slower in bf16 than in fp32 on a
        # CPU.
        self.student_autocast = compute.device.type != "cpu" and compute.dtype != torch.float32
        _check_head(teacher, student, config)
        self.done = 0
        self.rows = Rows(config.batch_size)
        share_batch_norms(student)
        student.to(compute.device)
        if compute.channels_last:
            student.to(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(compute):
            probe = feed.batch(256, generator(seed, "distill/scale")).to(compute.device)
            scale = FeatureScale.measure(teacher.hidden(probe))
        torch.manual_seed(generator(seed, "distill/projectors").initial_seed())
        self.match = HiddenMatch(student, teacher, scale).to(compute.device)
        groups = weight_groups(student, config.weight_decay) + weight_groups(
            self.match, config.weight_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.terms = Terms(student, self.match, config, compute, self.student_autocast)
        self._terms = over_processes(self.terms)

    def step(self) -> dict[str, float]:
        """One step; returns its losses, over all processes."""
        return self._read([self._advance()])[0]

    def _advance(self) -> Tensor:
        """One step; its loss, terms and agreement, which nobody waits for."""
        c, i = self.config, self.done
        rng = generator(self.seed, f"distill/{i}")
        x = upload(self.rows.take(self._augmented(rng)), self.compute.device)
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * cosine_with_warmup(i, c.steps, c.warmup)
        self.student.train()
        with torch.no_grad(), autocast(self.compute):
            t = self.teacher.hidden(x)
        terms, logits_BK = self._terms(x, t)
        loss = terms.sum()
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel takes the mean over processes, whose parts may differ by a row.
        size = self.rows.world.size
        (loss if size == 1 else loss * (size * self.rows.share)).backward()
        self.optimizer.step()
        self.done += 1
        agree = (logits_BK.argmax(1) == t.logits_BK.argmax(1)).float().mean()
        return torch.cat([loss.detach()[None], terms.detach(), agree[None]])

    def _read(self, latest: list[Tensor]) -> list[dict[str, float]]:
        """The numbers of the latest steps, over all processes, in one copy from the device."""
        names = ("loss", *self.terms.names, "agreement")
        rows = [
            dict(zip(names, values, strict=True))
            for values in self.rows.mean(torch.stack(latest)).tolist()
        ]
        for i, row in enumerate(rows):
            if not math.isfinite(row["loss"]):
                raise self._diverged(self.done - len(rows) + i + 1)
        return rows

    def _augmented(self, rng: torch.Generator) -> Tensor:
        c = self.config
        x = self.feed.batch(c.batch_size, rng)
        frames = int(torch.randint(c.crop_min, c.crop_max + 1, (), generator=rng))
        x = random_crop(x, frames, rng)
        if c.gain:
            x = random_gain(x, c.gain, rng)
        if c.mixup:
            x = mix_pairs(x, c.mixup, rng)[0]
        if c.mask_bands or c.mask_frames:
            x = random_masks(x, c.mask_bands, c.mask_frames, rng)
        return x

    def run(
        self,
        on_step: Callable[[int, dict[str, float]], None] = lambda *_: None,
        on_checkpoint: Callable[[dict[str, Any]], None] | None = None,
        stop: Stop = NEVER,
    ) -> StudentNet:
        """All remaining steps; the last one's student is the result, never the best one's.

        Args:
            on_step: Called with the number of steps done and the losses.
            on_checkpoint: Called with `state` every ``checkpoint_steps``, after the last step, and
                before the loop ends because `stop` asked for it.
            stop: Asked whenever losses are read.

        Raises:
            RunError: The loss or a weight is no longer finite.
            KeyboardInterrupt: `stop` asked for it.
        """
        c = self.config
        unread: list[Tensor] = []
        while self.done < c.steps:
            unread.append(self._advance())
            due = self.done % c.checkpoint_steps == 0 or self.done == c.steps
            if due or len(unread) >= read_every(self.compute):
                first = self.done - len(unread) + 1
                for i, metrics in enumerate(self._read(unread)):
                    on_step(first + i, metrics)
                unread.clear()
                stopping = stop.asked()
                if on_checkpoint and (due or stopping):
                    on_checkpoint(self.state())
                if stopping:
                    stop.leave()
        if not all(torch.isfinite(p).all() for p in self.student.state_dict().values()):
            raise self._diverged(self.done)
        self.student.eval()
        return self.student

    def _diverged(self, step: int) -> RunError:
        return RunError(
            f"The distillation diverged by step {step} of {self.config.steps}: "
            "its loss or its weights are no longer finite.",
            fix="Use a smaller distill.learning_rate and another --out, or --precision fp32.",
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; tensors and plain values only."""
        return {
            "done": self.done,
            "student": self.student.state_dict(),
            "match": self.match.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.student.load_state_dict(state["student"])
        self.match.load_state_dict(state["match"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = int(state["done"])


def _check_head(teacher: TeacherLike, student: StudentNet, config: DistillConfig) -> None:
    """Hidden terms alone train no head; the teacher's own needs none where it fits as it is."""
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
        "distill.before_pooling alone will do.",
    )


# --- One distillation inside a run folder: checkpoints, metrics, the student and its card

CHECKPOINT = "distill-state.pt"


def new_student(
    arch: StudentArch, teacher: Teacher, config: DistillConfig, seed: int
) -> StudentNet:
    """A student with the weights that the seed gives, and the teacher's head where it is reused."""
    torch.manual_seed(generator(seed, "student").initial_seed())
    head = teacher.model.head if config.reuse_head else None
    return StudentNet(arch, teacher.spec.n_mels, len(teacher.card.labels), head)


def distill(
    run: RunFolder,
    teacher: Teacher,
    arch: StudentArch,
    config: DistillConfig,
    feed: Feed,
    compute: Compute,
    seed: int,
    out: Output,
    phase: str = "distill",
    watch: Callable[[int, StudentNet], None] = lambda *_: None,
) -> StudentNet:
    """Teach a new student, or go on where a killed run stopped; returns the one that ships.

    The student comes back with projector and head collapsed into one matrix. `watch` is called
    after each step with the steps done and the student, which it must leave as it is.
    """
    student = new_student(arch, teacher, config, seed)
    if config.reuse_head and teacher.model.head is None:
        out.note(
            "The teacher's way from pooled state to logits is not affine: the student gets a head "
            "of its own."
        )
    distiller = Distiller(teacher.model, student, config, compute, seed, feed)
    saved = run.path(CHECKPOINT if phase == "distill" else f"{phase}-state.pt")
    state = None
    if world().main and saved.exists():
        state = load_state(saved)
        if state is None:
            out.warn(damaged(saved, "the distillation"))
    state = broadcast(state)
    if state is not None:
        distiller.load_state(state)
        out.note(f"Going on from step {distiller.done} of {config.steps}.")
    # Also without a checkpoint: a run that was killed before its first one has written rows.
    run.rewind(distiller.done, phase=phase)

    def save(state: dict[str, Any]) -> None:
        save_state(saved, state)

    with (
        run.timed(phase),
        out.progress(phase, config.steps, ("loss", "agreement"), completed=distiller.done) as bar,
        Stop() as stop,
    ):

        def on_step(done: int, metrics: dict[str, float]) -> None:
            bar.update(loss=metrics["loss"], agreement=metrics["agreement"])
            run.log(step=done, phase=phase, **metrics)
            watch(done, student)

        distiller.run(on_step, save if world().main else None, stop)
    return student.collapse().requires_grad_(False)


@torch.no_grad()
def held_out_agreement(
    teacher: Teacher, student: StudentNet, config: JourneyConfig, compute: Compute, clips: int = 512
) -> float:
    """Share of fresh procedural clips on which student and teacher say the same.

    They come from a seed that no bank uses: selection and reports without real data rest on it.
    """
    seed = generator(config.seed, "held-out").initial_seed()
    x = procedural_mels(teacher.spec, clips, config.bank.frames, seed).to(compute.device)
    same = [
        (student(part).argmax(1) == teacher.model(part).argmax(1)).float() for part in x.split(128)
    ]
    return float(torch.cat(same).mean())


def save_student(
    run: RunFolder, student: StudentNet, teacher: Teacher, config: Strict, metrics: dict[str, Any]
) -> tuple[Card, str]:
    """Write student.safetensors; returns its card and SHA-256."""
    card = Card(
        kind="student",
        arch=student.arch.model_dump(mode="json"),
        mel=teacher.spec.to_dict(),
        labels=teacher.card.labels,
        teacher_sha256=teacher.sha256,
        teacher_trained_on=teacher.card.trained_on,
        recipe=config.model_dump(mode="json"),
        metrics=metrics,
        licence=teacher.card.licence,
    )
    return card, save_checkpoint(run.path("student.safetensors"), student, card)


def write_readme(
    run: RunFolder, card: Card, student: StudentNet, bank: Bank, pictures: dict[str, str]
) -> None:
    """The model card, README.md."""
    text = student_readme(
        card,
        student,
        parameters(student),
        sha256_file(run.path("student.safetensors")),
        bank.index.health,
        pictures,
        run.manifest,
    )
    atomic_write_text(run.path("README.md"), text)


def draw(run: RunFolder) -> dict[str, str]:
    """The distillation's loss curves."""
    rows = [r for r in run.metrics() if r.get("phase") == "distill"]
    known = ("logits", "before", "after")
    groups = [[t] for t in ("loss", *known, "agreement") if t in rows[0]]
    plots.curves(run.path("plots/curves-distill.png"), rows, groups, "Distillation: loss terms")
    return {"curves-distill": "plots/curves-distill.png"}
