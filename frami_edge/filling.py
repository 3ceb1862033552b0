"""The loop that fills a bank: run every source, write shards, resume where a killed run stopped."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from frami_edge.bank import FULL_SCALE, Bank, BankIndex, Clips, merge_parts, source_health, to_int16
from frami_edge.config import BASELINES, BankConfig, batch_norm_keys, budget, frames_in, section
from frami_edge.device import (
    Compute,
    autocast,
    place,
    rank_seed,
    read_every,
    trim_memory,
    world,
)
from frami_edge.errors import BankError
from frami_edge.frontend import LogMel, RenderedTeacher, Renderer
from frami_edge.inversion import BorrowedPrior
from frami_edge.losses import live_batch_norms
from frami_edge.models import only_answers
from frami_edge.progress import ProgressCallback, StepReport
from frami_edge.runs import damaged, load_state, save_state
from frami_edge.sources import Batch, Independent, MakesMore, Source, SourceContext, make_source
from frami_edge.sources.procedural import samples_for
from frami_edge.sources.recordings import Recordings, recordings_in

if TYPE_CHECKING:
    from frami_edge.checkpoint import Teacher
    from frami_edge.runs import RunFolder

log = logging.getLogger("frami_edge")

HELD_OUT = 512
"""Clips of each source that can make more, kept out of every student's training."""


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
    each source, and gives the same bits with as many threads.

    Under torchrun every process makes a bank of its own, with a seed of its own, in
    ``folder/rank-N``; rank 0 then writes ``folder/bank.json`` over the shards of all, so N
    processes make N times as many clips. Resume with the same number of processes.

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
        self.pool: ThreadPoolExecutor | None = None
        self.helped_s: defaultdict[str, float] = defaultdict(float)
        """CPU seconds of a source's steps in other threads than its own."""

    def fill(self) -> None:
        """Run all sources, several at once where that is faster."""
        names = list(self.context.config.shares)
        at_once = sources_at_once(self.context)
        copies = _copies(self.teacher, self.context, len(names)) if at_once > 1 else None
        if copies is None:
            for name in names:
                self.make(name, self.teacher, self.context)
            return
        self.cpu_s = time.thread_time
        with (
            threads_of_one(at_once) as share,
            ThreadPoolExecutor(at_once, initializer=share) as pool,
        ):
            self.pool = pool
            tasks = [
                pool.submit(self.make, name, *copied)
                for name, copied in zip(names, copies, strict=True)
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
            other = self._beside(source)
            report = StepReport(
                name, first, source.steps, read_every(compute), self.run, self.progress
            )
        start = time.monotonic(), self.cpu_s()
        waiting: list[Batch] = []
        for done, batch in enumerate(self._batches(source, other, first), first + 1):
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
                    end = time.monotonic(), self.cpu_s() + self.helped_s[name]
                    _record_seconds(self.run, name, start, end, new=first == 0)
                    start = end
                first, waiting = done, []
                trim_memory()
        if self.stopped.is_set():
            return
        with self.lock:
            _check_made(bank, source)
            if isinstance(source, Recordings) and source.used:
                bank.update(recordings=len(source.used))

    def _beside(self, source: Source) -> Source | None:
        if self.pool is None or not isinstance(source, Independent):
            return None
        copies = _copies(self.teacher, self.context, 1)
        return source.beside(copies[0][1]) if copies else None

    def _batches(self, source: Source, other: Source | None, first: int) -> Iterator[Batch]:
        """Batches in order; an idle core makes every second one with ``other``, the same source."""
        ahead: Future[Batch | None] | None = None
        for step in range(first, source.steps):
            if ahead is not None and not ahead.cancel():  # a free core has begun it
                batch, ahead = ahead.result(), None
            else:
                if other is not None and self.pool and step + 1 < source.steps:
                    ahead = self.pool.submit(self._helped, other, step + 1)
                batch = self._step(source, step)
            if batch is None:
                return
            yield batch

    def _step(self, source: Source, step: int) -> Batch | None:
        """A batch, or None after another source has failed."""
        return None if self.stopped.is_set() else source.step(step)

    def _helped(self, source: Source, step: int) -> Batch | None:
        start = self.cpu_s()
        batch = self._step(source, step)
        self.helped_s[source.name] += self.cpu_s() - start
        return batch


def _copies(
    teacher: Teacher, context: SourceContext, n: int
) -> list[tuple[Teacher, SourceContext]] | None:
    """Teachers and contexts with networks for one thread each, for they keep what a pass showed.

    None where a network cannot be copied, or a copy does not answer alike.
    """
    made = []
    x = torch.zeros(1, 1, context.spec.n_mels, context.frames)
    for _ in range(n):
        try:
            model = copy.deepcopy(teacher.model)
            network = model if context.teacher is teacher.model else copy.deepcopy(context.teacher)
            with torch.no_grad(), autocast(context.compute):
                known, found = (n.hidden(x).frames_BCT for n in (context.teacher, network))
        except Exception as error:  # somebody else's network: one source after the other
            log.debug("The teacher cannot be copied: %s", error)
            return None
        if not torch.equal(known, found):
            return None
        made.append((replace(teacher, model=model), replace(context, teacher=network)))
    return made


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
