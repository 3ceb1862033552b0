"""FRAMI model inversion: a generator against the teacher, and the loop that fills a bank.

Shape legend: B batch, M mel bands, T frames, C channels, Z latent size, K classes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import random_crop, random_stretch
from frami_edge.bank import (
    FULL_SCALE,
    Bank,
    BankIndex,
    Clips,
    merge_parts,
    source_health,
    to_int16,
)
from frami_edge.config import (
    BASELINES,
    BankConfig,
    StudentArch,
    batch_norm_keys,
    budget,
    frames_in,
    section,
)
from frami_edge.device import (
    Compute,
    autocast,
    fused,
    generator,
    named_seed,
    place,
    rank_seed,
    read_every,
    upload,
    world,
)
from frami_edge.errors import BankError
from frami_edge.frontend import LogMel, RenderedTeacher, Renderer
from frami_edge.losses import (
    BatchNormStatistics,
    FeatureInvariantContrast,
    adversarial_loss,
    class_loss,
    contrastive_view,
    kl_from,
    live_batch_norms,
    logits_loss,
)
from frami_edge.models import Hidden, StudentNet, TeacherLike, only_answers
from frami_edge.progress import ProgressCallback, StepReport
from frami_edge.runs import damaged, load_state, save_state
from frami_edge.sources import (
    Batch,
    MakesMore,
    Source,
    SourceContext,
    balanced_labels,
    condition,
    descend,
    make_source,
    metrics_of,
)
from frami_edge.sources.procedural import procedural_audio, procedural_mels, samples_for
from frami_edge.sources.recordings import Recordings, recordings_in
from frami_edge_runtime.melspec import MelSpec

if TYPE_CHECKING:
    from frami_edge.checkpoint import Teacher
    from frami_edge.runs import RunFolder

log = logging.getLogger("frami_edge")


# --- The generator: noise and a class in, a normalised log-mel out


class PhysicalRange(nn.Module):
    """Squash into what the front end can produce: [floor, ceiling] of each mel band.

    ``y = f + (c - f) sigmoid(a + u / ((c - f) s (1 - s)))`` with s = sigmoid(a) = -f / (c - f): an
    input of 0 gives 0, the mean of the training data, with slope 1.
    """

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        floor_M, ceiling_M = torch.from_numpy(spec.floor), torch.from_numpy(spec.ceiling)
        width_M = ceiling_M - floor_M
        # A training mean outside the range (a broken front end) would have no logit.
        s_M = (-floor_M / width_M).clamp(0.02, 0.98)
        tensors = {
            "floor": floor_M,
            "width": width_M,
            "start": torch.logit(s_M),
            "slope": 1 / (width_M * s_M * (1 - s_M)),
        }
        for name, value_M in tensors.items():
            self.register_buffer(name, value_M[None, None, :, None], persistent=False)

    def forward(self, u_B1MT: Tensor) -> Tensor:
        """Any real numbers to normalised log-mels inside the range."""
        u = u_B1MT.float()
        y: Tensor = self.floor + self.width * torch.sigmoid(self.start + self.slope * u)  # type: ignore[operator]
        return y


class Generator(nn.Module):
    """Latents and classes to normalised log-mels.

    Source: the layer plan follows the small generator of G. Fang et al., *Contrastive Model
    Inversion*, IJCAI 2021; the class input, the smooth physical range and the sizes are ours.

    Args:
        spec: Front end of the teacher; the output stays in its physical range.
        n_classes: K.
        frames: T of the output.
        latent: Z.
        width: Channels of the first, coarsest layer.
    """

    def __init__(
        self, spec: MelSpec, n_classes: int, frames: int, latent: int = 128, width: int = 64
    ) -> None:
        super().__init__()
        self.latent, self.n_classes, self.width = latent, n_classes, width
        m, t = spec.n_mels, frames
        self.sizes = [(-(-m // 4), -(-t // 4)), (-(-m // 2), -(-t // 2)), (m, t)]
        self.start = nn.Linear(latent + n_classes, width * self.sizes[0][0] * self.sizes[0][1])
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 4)
        self.out = nn.Conv2d(width // 4, 1, 3, padding=1)
        self.range = PhysicalRange(spec)

    def forward(self, z_BZ: Tensor, labels_B: Tensor, wanted_BK: Tensor | None = None) -> Tensor:
        """Latents (B, Z) and classes (B,), or `requests` (B, K), to (B, 1, M, T) float32."""
        classes_BK = condition(labels_B, wanted_BK, self.n_classes).to(z_BZ.dtype)
        x = self.start(torch.cat([z_BZ, classes_BK], dim=1)).view(-1, self.width, *self.sizes[0])
        x = self.bn0(x)
        x = F.interpolate(x, size=self.sizes[1])
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        x = F.interpolate(x, size=self.sizes[2])
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        mel: Tensor = self.range(self.out(x))
        return mel


class AuxiliaryStudent:
    """A tiny student, co-trained on the latest synthetic clips for the adversarial term only."""

    def __init__(self, context: SourceContext) -> None:
        self.teacher, self.compute = context.teacher, context.compute
        self.output, self.spec = context.output, context.spec
        self.front_end = LogMel(context.spec).to(context.compute.device)
        arch = StudentArch(channels=(16, 24, 32, 48, 48))
        self.student = StudentNet(arch, context.spec.n_mels, context.n_classes)
        self.student.to(context.compute.device)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=2e-3, fused=fused(context.compute)
        )

    def logits(self, x_B1MT: Tensor) -> Tensor:
        """(B, K) with a gradient to the clips; BatchNorm uses its running statistics."""
        self.student.eval()
        with autocast(self.compute):
            logits: Tensor = self.student(x_B1MT)
        return logits

    def learn(self, x: Tensor, generator: torch.Generator) -> None:
        """One distillation step (`logits_loss`, τ = 2; detectors: their KL) on random stretches.

        The clips are log-mels (B, 1, M, T), or samples (B, N) for a `RenderedTeacher`.
        """
        self.student.train()
        audio = x.ndim == 2
        whole = self.spec.frames(x.shape[1]) if audio else x.shape[3]
        frames = max(self.student.receptive_field, round(0.75 * whole))
        x = random_crop(x, samples_for(self.spec, frames) if audio else frames, generator)
        with autocast(self.compute):
            with torch.no_grad():
                target = self.teacher.hidden(x).logits_BK
            prediction = self.student(self.front_end(x)[:, None] if audio else x)
        if self.output == "softmax":
            loss = logits_loss(prediction, target, temperature=2.0)
        else:
            loss = kl_from(target.float(), prediction.float(), self.output).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])


# --- A borrowed prior, for teachers without BatchNorm


class BorrowedPrior(nn.Module):
    """A teacher without BatchNorm, with the BatchNorms of a small student beside it.

    The student is distilled on procedural clips, which need no gradient of the teacher. Its running
    statistics then stand in for those of the teacher: clips of learned sources excite its features
    like plausible audio does. That is weaker than the teacher's own memory of its training data.
    """

    clips, steps, batch = 1_500, 400, 64

    def __init__(self, context: SourceContext) -> None:
        super().__init__()
        model = context.teacher
        self.model = context.module
        self.takes, self.head = model.takes, model.head
        self.channels, self.pooled_size = model.channels, model.pooled_size
        self.frame_stride, self.frame_offset = model.frame_stride, model.frame_offset
        torch.manual_seed(named_seed(context.seed, "prior"))
        learner = AuxiliaryStudent(context)
        seed = named_seed(context.seed, "prior/clips")
        spec = context.spec
        if isinstance(model, RenderedTeacher):
            clips = procedural_audio(spec.sample_rate, self.clips, context.samples, seed)
        else:
            clips = procedural_mels(spec, self.clips, context.frames, seed)
        for step in range(self.steps):
            rng = generator(context.seed, f"prior/{step}")
            index = torch.randint(0, len(clips), (self.batch,), generator=rng)
            learner.learn(upload(clips[index], context.compute.device), rng)
        self.prior = learner.student.eval().requires_grad_(False)
        self._layers = [layer for _, layer in live_batch_norms(self.prior)]

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """The teacher's; where BatchNorms are observed, the student runs too."""
        if any(layer._forward_pre_hooks for layer in self._layers):
            self.prior(x_B1MT)
        return cast(TeacherLike, self.model).hidden(x_B1MT, lengths_B)


# --- FRAMI: clips that excite the teacher's hidden states like its training data


class Inversion:
    """A conditional generator against the teacher, in its hidden states.

    ``L = w_bn L_bn + w_class L_class + w_con L_contrastive + w_adv L_adv``; `frami_edge.losses` has
    each formula. The teacher predicts a random stretch of each clip, as the student will.

    The latents z of a batch learn too, for ``batch_steps`` steps: one generator alone gives all
    clips one texture. Source: learned latents follow G. Fang et al., *Contrastive Model Inversion*,
    IJCAI 2021, and *Up to 100x Faster Data-Free Knowledge Distillation*, AAAI 2022, which drop or
    reset the generator after each batch; here it keeps learning.
    """

    name = "inversion"

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        w = self.config = context.config.inversion
        self.steps = w.steps
        torch.manual_seed(named_seed(context.seed, self.name))
        self.generator = Generator(
            context.spec, context.n_classes, context.frames, w.latent, w.width
        )
        place(self.generator, context.compute)
        self.networks = nn.ModuleDict({"generator": self.generator})
        self.contrast: FeatureInvariantContrast | None = None
        if w.contrastive:
            self.contrast = FeatureInvariantContrast(
                context.teacher.channels,
                context.teacher.pooled_size,
                memory=w.contrastive_memory,
                temperature=w.temperature,
            ).to(context.compute.device)
            self.networks["contrast"] = self.contrast
        self.auxiliary = AuxiliaryStudent(context) if w.adversarial.weight else None
        self.batch_norms = BatchNormStatistics(context.module) if w.batch_norm else None
        self.optimizer = torch.optim.Adam(
            self.networks.parameters(),
            lr=w.learning_rate,
            betas=(0.5, 0.999),
            fused=fused(context.compute),
        )
        self._start_batch(torch.zeros(w.batch_size, w.latent, device=context.compute.device))

    def _start_batch(self, z_BZ: Tensor) -> None:
        self.z_BZ = z_BZ.requires_grad_()
        rate = self.config.latent_rate
        self.latent_optimizer = torch.optim.Adam([self.z_BZ], lr=rate, betas=(0.5, 0.999))

    def step(self, index: int) -> Batch:
        """One generator step; returns the clips that the step was taken on."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        number, place_in_batch = divmod(index, w.batch_steps)
        if not place_in_batch:
            self._start_batch(
                upload(torch.randn(w.batch_size, w.latent, generator=rng), c.compute.device)
            )
        labels = balanced_labels(w.batch_size, c.n_classes, number * w.batch_size)
        asked, wanted = c.requests(labels, generator(c.seed, f"{self.name}/requests/{number}"))
        labels, asked = upload(labels, c.compute.device), upload(asked, c.compute.device)
        adversary = self.auxiliary if index >= w.adversarial.warmup_steps else None

        self.generator.train()
        query = predicted = None
        with autocast(c.compute):
            mels = self.generator(self.z_BZ, labels, wanted)
            stretch = random_stretch(mels, w.shortest_view, rng) if w.shortest_view < 1 else mels
            with self.batch_norms or contextlib.nullcontext():
                hidden = c.teacher.hidden(stretch)
            if self.contrast:
                query = c.teacher.hidden(contrastive_view(mels, rng))
            if adversary:
                predicted = adversary.logits(stretch)

        # The losses are in float32: only the networks run at low precision.
        terms: dict[str, Tensor] = {}
        if self.batch_norms:
            terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
        if w.class_loss:
            terms["class"] = w.class_loss * class_loss(hidden.logits_BK, labels, wanted)
        if self.contrast and query:
            contrastive, keys = self.contrast(query=query, key=hidden)
            terms["contrastive"] = w.contrastive * contrastive
        if predicted is not None:
            adversarial = adversarial_loss(hidden.logits_BK, predicted, c.output)
            terms["adversarial"] = w.adversarial.weight * adversarial
        descend(terms, self.optimizer, self.latent_optimizer)

        mels = mels.detach()
        keep = index >= w.burn_in
        if self.contrast and keep and place_in_batch + 1 == w.batch_steps:
            # Once per batch: the clips of its other steps are nearly the same, hence no negatives.
            self.contrast.remember(keys)
        if self.auxiliary:
            for _ in range(w.adversarial.student_steps):
                self.auxiliary.learn(mels, rng)
        return Batch(mels, asked, keep, metrics_of(terms, hidden.logits_BK, asked, c.output))

    @torch.no_grad()
    def fresh(self, n: int) -> Batch:
        """Clips of new latents."""
        c, rng = self.context, generator(self.context.seed, f"{self.name}/fresh")
        z_BZ = upload(torch.randn(n, self.config.latent, generator=rng), c.compute.device)
        labels = balanced_labels(n, c.n_classes)
        asked, wanted = c.requests(labels, rng)
        with autocast(c.compute):
            mels = self.generator(z_BZ, upload(labels, c.compute.device), wanted)
        return Batch(mels, asked, False, {})

    def state(self) -> dict[str, Any]:
        """Networks, latents, auxiliary student, optimisers."""
        return {
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "z": self.z_BZ.detach(),
            "latent_optimizer": self.latent_optimizer.state_dict(),
            "auxiliary": self.auxiliary.state() if self.auxiliary else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._start_batch(state["z"].to(self.context.compute.device))
        self.latent_optimizer.load_state_dict(state["latent_optimizer"])
        if self.auxiliary:
            self.auxiliary.load_state(state["auxiliary"])


HELD_OUT = 512
"""Clips of each source that can make more, kept out of every student's training."""


# --- The loop: run every source, write shards, resume where a killed run stopped


def invert(
    teacher: Teacher,
    config: BankConfig,
    folder: Path,
    compute: Compute,
    seed: int,
    *,
    audio: bool = False,
    run: RunFolder | None = None,
    progress: ProgressCallback | None = None,
) -> Bank:
    """Make a bank, or finish one that was started with the same settings.

    A bank of audio holds 16-bit samples that every front end can hear: log-mels of learned sources
    are rendered. A teacher that takes audio always has one, and is inverted through the renderer.

    On a CPU several sources run at once, in threads. A killed call continues from the last shard of
    each source and gives the same bits, with as many threads. Under
    torchrun every process makes a bank of its own, with a seed of its own, in ``folder/rank-N``;
    rank 0 then writes ``folder/bank.json`` over the shards of all, so N processes make N times as
    many clips. Resume with the same number of processes.

    Args:
        teacher: Source of everything that the clips learn; moved to the device.
        config: The bank section of a config.
        folder: Folder of the bank; made where it does not exist.
        compute: Device and precision.
        seed: Seeds everything random.
        audio: Make a bank of audio also of a teacher that takes log-mels.
        run: Receives the losses of every step as rows, and the seconds per source.
        progress: Called after each step, from the thread of its source.

    Raises:
        BankError: The folder holds a bank of other settings, or a source diverged.
    """
    place(teacher.model, compute)
    rank, ranks = world()
    seed, audio = rank_seed(seed, rank), audio or teacher.takes == "audio"
    own = folder if ranks == 1 else folder / f"rank-{rank}"
    bank = _open_bank(own, teacher, config, seed, audio=audio)
    with run.timed("invert") if run else contextlib.nullcontext():
        if set(bank.index.health) != set(config.shares):  # health is measured last
            context = source_context(teacher, config, compute, seed, audio=audio)
            _Filler(bank, teacher, context, run, progress).fill()
        bank = _finish(bank, folder, teacher, compute)
    if run:
        run.record(bank={"clips": bank.sources, "health": bank.index.health})
    return bank


def sources_at_once(context: SourceContext) -> int:
    """How many sources run side by side: on a CPU one per core, on a GPU one.

    A second thread makes a step of one source 1.4 times as fast; a second source doubles the rate.
    Published methods run alone: their steps draw from torch's global generator.
    """
    shares = context.config.shares
    if context.compute.device.type != "cpu" or set(shares) & set(BASELINES):
        return 1
    return min(len(shares), torch.get_num_threads())


@contextlib.contextmanager
def threads_of_one(at_once: int) -> Iterator[Callable[[], None]]:
    """What sets the threads of one source; afterwards those of the caller are as they were."""
    threads = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(max(1, threads // at_once))
    finally:
        torch.set_num_threads(threads)


class _Filler:
    """Runs the sources of a bank, each from its last shard on."""

    def __init__(
        self,
        bank: Bank,
        teacher: Teacher,
        context: SourceContext,
        run: RunFolder | None,
        progress: ProgressCallback | None,
    ) -> None:
        self.bank, self.teacher, self.context = bank, teacher, context
        self.run, self.progress = run, progress
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.cpu_s = time.process_time

    def fill(self) -> None:
        """Run all sources, several at once where that is faster."""
        names = list(self.context.config.shares)
        at_once = sources_at_once(self.context)
        copies = [_copied(self.teacher, self.context) for _ in names] if at_once > 1 else []
        if not all(copies) or at_once == 1:
            for name in names:
                self.make(name, self.teacher, self.context)
            return
        self.cpu_s = time.thread_time
        with (
            threads_of_one(at_once) as share,
            ThreadPoolExecutor(at_once, initializer=share) as pool,
        ):
            tasks = [
                pool.submit(self.make, name, *copied)
                for name, copied in zip(names, copies, strict=True)
                if copied
            ]
            try:
                wait(tasks, return_when=FIRST_EXCEPTION)
            finally:
                self.stopped.set()
            for task in tasks:
                task.result()

    def make(self, name: str, teacher: Teacher, context: SourceContext) -> None:
        """Run one source to its end, or to where another one has failed."""
        bank, compute = self.bank, context.compute
        keeper = _Keeper(teacher, context)
        with self.lock:  # the first weights come from the global generator
            source = make_source(name, context)
            first = _resume(bank, source)
            report = StepReport(
                name, first, source.steps, read_every(compute), self.run, self.progress
            )
        start = time.monotonic(), self.cpu_s()
        waiting: list[Batch] = []
        for step in range(first, source.steps):
            if self.stopped.is_set():
                return
            batch = source.step(step)
            done = step + 1
            if batch.keep:
                waiting.append(batch)
            full = sum(len(b.labels_B) for b in waiting) >= context.config.shard_clips
            due = full or done == source.steps
            with self.lock:
                report.step(batch.metrics, read=due)
            if waiting and due:
                held_out = None
                if done == source.steps and isinstance(source, MakesMore):
                    held_out = keeper.clips(source.fresh(HELD_OUT))
                clips = _made(source.name, keeper, waiting, done)
                with self.lock:
                    if held_out is not None:
                        bank.keep_out(name, held_out)
                    _save_shard(bank, source, clips, first, done)
                    end = time.monotonic(), self.cpu_s()
                    _record_seconds(self.run, name, start, end, new=first == 0)
                    start = end
                first, waiting = done, []
        with self.lock:
            _check_made(bank, source)
            if isinstance(source, Recordings) and source.used:
                bank.update(recordings=len(source.used))


def _copied(teacher: Teacher, context: SourceContext) -> tuple[Teacher, SourceContext] | None:
    """Teacher and context with networks for one thread: they keep what they saw of a pass.

    None where a network cannot be copied, or its copy does not answer alike.
    """
    try:
        model = copy.deepcopy(teacher.model)
        network = model if context.teacher is teacher.model else copy.deepcopy(context.teacher)
        x = torch.zeros(1, 1, context.spec.n_mels, context.frames)
        with torch.no_grad(), autocast(context.compute):
            known, found = (n.hidden(x).frames_BCT for n in (context.teacher, network))
    except Exception as error:  # somebody else's network: one source after the other
        log.debug("The teacher cannot be copied: %s", error)
        return None
    if not torch.equal(known, found):
        return None
    return replace(teacher, model=model), replace(context, teacher=network)


def source_context(
    teacher: Teacher, config: BankConfig, compute: Compute, seed: int, *, audio: bool = False
) -> SourceContext:
    """What the sources of a bank are made from; arguments as in `invert`."""
    network = teacher.model
    if teacher.takes == "audio":
        audio, network = True, RenderedTeacher(network, teacher.mel).to(compute.device)
    samples = samples_for(teacher.mel, frames_in(config.clip_s, teacher.mel)) if audio else 0
    context = SourceContext(
        network, teacher.mel, len(teacher.labels), config, compute, seed, teacher.output, samples
    )
    terms = [key for name in config.shares for key in batch_norm_keys(config, name)]
    if terms and not live_batch_norms(teacher.model):
        log.info(
            "The teacher has no BatchNorm with running statistics: a small student is distilled on "
            "procedural clips, and inversion follows its statistics. Expect a poorer bank."
        )
        context.teacher = BorrowedPrior(context)
    return context


def check_recordings(config: BankConfig) -> None:
    """Refuse a folder of recordings without audio files, before the bank is begun.

    Raises:
        DataError: It is missing, or has none.
    """
    if config.shares.get("recordings"):
        recordings_in(config)


def _open_bank(
    folder: Path, teacher: Teacher, config: BankConfig, seed: int, *, audio: bool
) -> Bank:
    frames = frames_in(config.clip_s, teacher.mel)
    index = BankIndex(
        mel=teacher.mel.to_dict(),
        frames=frames,
        samples=samples_for(teacher.mel, frames) if audio else 0,
        labels=teacher.labels,
        teacher_sha256=teacher.sha256,
        config=config.model_dump(mode="json"),
        seed=seed,
        output=teacher.output,
    )
    return Bank.open_or_create(folder, index)


def _resume(bank: Bank, source: Source) -> int:
    """Load the state next to the source's last shard; returns the step to continue with."""
    first = bank.next_step(source.name)
    if 0 < first < source.steps:
        path = _state_path(bank, source.name, first)
        state = load_state(path)
        if state is None:
            log.warning(damaged(path, f"the source {source.name}"))
            bank.drop(source.name)
            return 0
        source.load_state(state)
    elif first:
        # The last shard is written; a kill right after it leaves the state before it.
        for path in bank.folder.glob(f"state-{source.name}-*.pt"):
            path.unlink(missing_ok=True)
    return first


def _state_path(bank: Bank, source: str, next_step: int) -> Path:
    return bank.folder / f"state-{source}-{next_step:06d}.pt"


def _record_seconds(
    run: RunFolder | None,
    source: str,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    new: bool,
) -> None:
    """Add wall and CPU seconds to those of the source's earlier shards."""
    if run:
        before = {} if new else run.manifest.get("source_seconds", {}).get(source, {})
        spent = {
            key: round(before.get(key, 0.0) + now - then, 3)
            for key, now, then in zip(("wall", "cpu"), end, start, strict=True)
        }
        run.record(source_seconds={source: spent})


class _Keeper:
    """Makes what a bank stores of the clips of its sources, and asks the teacher about it."""

    def __init__(self, teacher: Teacher, context: SourceContext) -> None:
        self.teacher, self.context = teacher, context
        self.answering = only_answers(teacher.model)
        self.renderer = Renderer(context.spec).to(context.compute.device)
        self.front_end = LogMel(context.spec)

    def clips(self, batch: Batch) -> Tensor:
        """On the host: log-mels (B, 1, M, T), or samples (B, S) of a bank of audio."""
        samples, audio_BN = self.context.samples, batch.audio_BN
        if audio_BN is None:
            assert batch.mels_B1MT is not None
            if not samples:
                return batch.mels_B1MT.cpu()
            audio_BN = self.renderer(batch.mels_B1MT.to(self.context.compute.device)).cpu()
        if samples:  # as they will be read again
            return to_int16(audio_BN[:, :samples]).float() / FULL_SCALE
        mels = [self.front_end(part) for part in audio_BN.cpu().split(64)]
        return torch.cat(mels)[:, None, :, : self.context.frames]

    def logits(self, clips: Tensor) -> Tensor:
        """(B, K) float32 logits of such clips, on the host."""
        found, compute = [], self.context.compute
        for x in clips.split(128):
            x = x.to(compute.device)
            with autocast(compute):
                heard = self.teacher.listen(x) if self.context.samples else x
                found.append(self.answering.hidden(heard).logits_BK)
        return torch.cat(found).float().cpu()


@torch.no_grad()
def _made(name: str, keeper: _Keeper, batches: list[Batch], done: int) -> Clips:
    """The clips of some steps with the teacher's logits.

    Raises:
        BankError: A clip is not finite.
    """
    clips = torch.cat([keeper.clips(b) for b in batches])
    if not torch.isfinite(clips).all():
        raise diverged(name, done, "its clips are not finite")
    labels = torch.cat([b.labels_B.cpu() for b in batches])
    return Clips(clips, labels, keeper.logits(clips), clips if keeper.context.samples else None)


def _save_shard(bank: Bank, source: Source, clips: Clips, first: int, done: int) -> None:
    """Write clips, and the state of the source next to them.

    The state is saved under the step that follows, and before the shard: whenever the process is
    killed, the state that the last shard needs exists.
    """
    if done < source.steps:
        save_state(_state_path(bank, source.name, done), source.state())
    bank.append(source.name, clips, first, done)
    _state_path(bank, source.name, first).unlink(missing_ok=True)


def _check_made(bank: Bank, source: Source) -> None:
    if source.name not in bank.sources:
        where = budget(source.name)
        raise BankError(
            f"The source {source.name} made no clip: all {source.steps} steps are burn-in.",
            fix=f"Raise {where}.steps above {where}.burn_in.",
        )


def _finish(bank: Bank, folder: Path, teacher: Teacher, compute: Compute) -> Bank:
    """Merge the banks of all ranks, and measure the health of the whole."""
    rank, ranks = world()
    if ranks > 1:
        dist.barrier()
        bank = merge_parts(folder, ranks) if rank == 0 else bank
    if rank == 0 and set(bank.index.health) != set(bank.sources):
        bank.update(
            health={n: source_health(teacher.model, bank, n, compute) for n in bank.sources}
        )
    if ranks > 1:
        dist.barrier()
        bank = Bank.open(folder)
    return bank


def diverged(source: str, done: int, how: str) -> BankError:
    """The error of a source whose losses or clips are no longer finite."""
    return BankError(
        f"The source {source} diverged by step {done}: {how}.",
        fix=f"Use a smaller {section(source)}.learning_rate and another --out, "
        "or --precision fp32.",
    )
