"""One inversion inside a run folder: bank, metrics, pictures, health, warnings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frami_edge import plots
from frami_edge.bank import Bank, BankIndex, Clips, source_health, warnings
from frami_edge.checkpoint import Teacher
from frami_edge.cli._output import Output
from frami_edge.config import BankConfig, batch_norm_keys, budget, section
from frami_edge.device import Compute, autocast, read_every
from frami_edge.distributed import Rows, broadcast, world
from frami_edge.errors import BankError, TeacherError
from frami_edge.losses import live_batch_norms
from frami_edge.rendering import write_wavs
from frami_edge.runs import NEVER, RunFolder, Stop, damaged, load_state, save_state
from frami_edge.sources import LEARNED, SOURCES
from frami_edge.sources.base import Batch, Context, Source

# --- Make a bank: run every source, write shards, resume where a killed run stopped

OnStep = Callable[[str, int, int, dict[str, float]], None]


@dataclass
class Hooks:
    """What the maker of a bank wants to know and to say.

    Attributes:
        on_step: Called with (source, steps done, steps, metrics).
        on_begin: Called with (source, steps done) before the source goes on; steps beyond these,
            which a killed run may have reported, are about to come again.
        on_saved: Called with (source) once all its steps so far are on disk, in a shard or a pause:
            a run that is killed later does none of them again.
        warn: Told of a checkpoint that cannot be used.
        stop: Asked whenever metrics are read.
    """

    on_step: OnStep = lambda *_: None
    on_begin: Callable[[str, int], None] = lambda *_: None
    on_saved: Callable[[str], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None
    stop: Stop = NEVER


def make_bank(
    folder: Path,
    context: Context,
    labels: tuple[str, ...],
    teacher_sha256: str,
    hooks: Hooks | OnStep | None = None,
) -> Bank:
    """Make a bank, or finish one that was begun with the same settings.

    Args:
        folder: Of the bank; made where it is not there.
        context: Teacher, front end, configuration, device, seed.
        labels: Class names.
        teacher_sha256: Of the teacher's checkpoint.
        hooks: What to call; a function alone is its `on_step`.

    Raises:
        BankError: The folder holds a bank of other settings.
        KeyboardInterrupt: `hooks.stop` asked for it; everything made so far is saved.
    """
    if not isinstance(hooks, Hooks):
        hooks = Hooks(hooks) if hooks else Hooks()
    index = BankIndex(
        mel=context.spec.to_dict(),
        frames=context.config.frames,
        labels=labels,
        teacher_sha256=teacher_sha256,
        config=context.config.model_dump(mode="json"),
        seed=context.seed,
    )
    if not world().main:
        # Every process runs every source; one writes.
        bank = Bank(folder, index)
    elif (folder / "bank.json").exists():
        bank = Bank.open(folder)
        _same(bank.index, index, folder)
    else:
        bank = Bank.create(folder, index)
    bank.index = broadcast(bank.index)
    for name in context.config.shares:
        _run_source(bank, context, name, hooks)
    if not world().main:
        bank.index = broadcast(bank.index)
        return bank
    if set(bank.index.health) != set(context.config.shares):
        bank.set_health(
            {n: source_health(context.teacher, bank, n, context.compute) for n in bank.sources}
        )
    broadcast(bank.index)
    return bank


def _same(found: BankIndex, wanted: BankIndex, folder: Path) -> None:
    for key in ("mel", "frames", "labels", "teacher_sha256", "config", "seed"):
        if getattr(found, key) != getattr(wanted, key):
            raise BankError(
                f"The bank in {folder} was made with another {key}.",
                fix="Use another --out, or delete the folder.",
            )


def _run_source(bank: Bank, context: Context, name: str, hooks: Hooks) -> None:
    source: Source = SOURCES[name](context)
    begun = _Begun(bank.next_step(name), bank.next_step(name))
    if world().main and begun.first < source.steps:
        begun = _begun(bank, name, hooks.warn)
    begun = broadcast(begun)
    hooks.on_begin(name, begun.done)
    first, waiting = begun.first, list(begun.waiting)
    if first >= source.steps:
        if world().main:
            # Of a run that was killed after the last shard.
            _forget(bank, name)
        return
    if begun.state is not None:
        source.load_state(begun.state)
    unread: list[tuple[int, Batch]] = []
    for i in range(begun.done, source.steps):
        batch = source.step(i)
        if batch.keep:
            waiting.append(batch)
        full = sum(len(b.labels_B) for b in waiting) >= context.config.shard_clips
        last = i + 1 == source.steps
        unread.append((i + 1, batch))
        look = full or last or len(unread) >= read_every(context.compute)
        if look:
            for done, told in unread:
                hooks.on_step(name, done, source.steps, _numbers(told.metrics))
            unread.clear()
        if waiting and (full or last):
            mels = torch.cat([b.mels_B1MT.cpu() for b in waiting])
            if not torch.isfinite(mels).all():
                raise BankError(
                    f"The source {name} diverged by step {i + 1}: its clips are not finite.",
                    fix=f"Use a smaller {section(name)}.learning_rate and another --out, "
                    "or --precision fp32.",
                )
            asked = torch.cat([b.labels_B.cpu() for b in waiting])
            # The state first, under its own step: whenever the run is killed, the state that the
            # last shard needs is there.
            if i + 1 < source.steps and world().main:
                save_state(_state_path(bank, name, i + 1), source.state())
            clips = Clips(mels, asked, _answers(context, mels))
            if world().main:
                bank.append(name, clips, first, i + 1)
                _state_path(bank, name, first).unlink(missing_ok=True)
                _pause_path(bank, name).unlink(missing_ok=True)
            hooks.on_saved(name)
            first, waiting = i + 1, []
        if look and hooks.stop.asked():
            if first < i + 1 and world().main:
                _pause(bank, name, _Begun(first, i + 1, source.state(), tuple(waiting)))
                hooks.on_saved(name)
            hooks.stop.leave()
    if world().main and name not in bank.sources:
        raise BankError(
            f"The source {name} made no clip: all {source.steps} steps are burn-in.",
            fix=f"Raise {budget(name)}.steps above {budget(name)}.burn_in.",
        )


def _numbers(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    """As plain numbers; those on a device come in one copy."""
    tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    if not tensors:
        return {name: float(value) for name, value in metrics.items()}
    read = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return {name: read[name] if name in read else float(metrics[name]) for name in metrics}


def _state_path(bank: Bank, source: str, next_step: int) -> Path:
    return bank.folder / f"state-{source}-{next_step:06d}.pt"


def _pause_path(bank: Bank, source: str) -> Path:
    return bank.folder / f"pause-{source}.pt"


@dataclass(frozen=True)
class _Begun:
    """Where a source stands.

    Attributes:
        first: First step whose clips are in no shard.
        done: Steps done.
        state: Of the source after `done`; None where it begins.
        waiting: Clips of the steps from `first` to `done`.
    """

    first: int = 0
    done: int = 0
    state: dict[str, Any] | None = None
    waiting: tuple[Batch, ...] = ()


def _begun(bank: Bank, name: str, warn: Callable[[str], None]) -> _Begun:
    """What an earlier run has left: its pause, else its last shard, else nothing."""
    first = bank.next_step(name)
    paused = _pause_path(bank, name)
    if paused.exists():
        found = load_state(paused)
        if found is None:
            warn(f"{paused} is damaged: {name} goes on from the shard before, to the same result.")
        elif found["first"] == first:
            clips = Batch(found["mels"], found["labels"], True, {})
            waiting = (clips,) if len(clips.labels_B) else ()
            return _Begun(first, found["done"], found["state"], waiting)
    if not first:
        return _Begun()
    path = _state_path(bank, name, first)
    state = load_state(path) if path.exists() else None
    if state is None:
        warn(damaged(path, f"the source {name}"))
        bank.drop(name)
        return _Begun()
    return _Begun(first, first, state)


def _pause(bank: Bank, name: str, begun: _Begun) -> None:
    """Save a source between two shards."""
    mels = torch.cat([torch.empty(0), *(b.mels_B1MT.cpu() for b in begun.waiting)])
    labels = torch.cat(
        [torch.empty(0, dtype=torch.int64), *(b.labels_B.cpu() for b in begun.waiting)]
    )
    where = {"first": begun.first, "done": begun.done, "state": begun.state}
    save_state(_pause_path(bank, name), {**where, "mels": mels, "labels": labels})


def _forget(bank: Bank, name: str) -> None:
    """Delete the states of a source that is done."""
    for path in bank.folder.glob(f"state-{name}-*.pt"):
        path.unlink(missing_ok=True)
    _pause_path(bank, name).unlink(missing_ok=True)


@torch.no_grad()
def _answers(context: Context, mels: Tensor) -> Tensor:
    logits = []
    rows = Rows(len(mels)) if len(mels) >= world().size else None
    for x in (rows.take(mels) if rows else mels).split(128):
        with autocast(context.compute):
            logits.append(context.teacher.hidden(x.to(context.compute.device)).logits_BK)
    own = torch.cat(logits).float()
    return (rows.gather(own) if rows else own).cpu()


# --- One inversion inside a run folder: bank, metrics, pictures, health, warnings

CLIPS_A_CLASS = 6
"""Columns of the mel grid."""
TERMS = (
    *("loss", "class", "batch_norm", "contrastive", "adversarial", "change"),
    *("activation", "balance", "variation", "requested"),
)
"""Of all learned sources, in the order of their pictures."""


def ready(teacher: Teacher, compute: Compute) -> Teacher:
    """Move a loaded network to where the run computes."""
    teacher.model.to(compute.device)
    if compute.channels_last:
        teacher.model.to(memory_format=torch.channels_last)
    return teacher


def context_of(teacher: Teacher, config: BankConfig, compute: Compute, seed: int) -> Context:
    """What the sources are made from; refuses a teacher that the configured terms cannot use.

    Raises:
        TeacherError: A BatchNorm term is asked for and the teacher has no live BatchNorm.
    """
    asked = [switch for name in config.shares for switch in batch_norm_keys(config, name)]
    if asked and not live_batch_norms(teacher.model):
        switches = " ".join(f"--set {key}=0" for key in asked)
        raise TeacherError(
            "The teacher has no BatchNorm with running statistics: they were folded into the "
            "weights, or it uses another norm.",
            fix=f"Give the checkpoint from before folding, or run without that term: {switches} "
            "(expect a poorer bank).",
        )
    labels = teacher.card.labels
    return Context(teacher.model, teacher.spec, len(labels), config, compute, seed)


def invert(
    run: RunFolder,
    folder: Path,
    context: Context,
    labels: tuple[str, ...],
    sha256: str,
    out: Output,
) -> Bank:
    """Make the bank, or finish it, with progress on stderr and rows in metrics.jsonl."""
    clock = SourceClock(run.manifest.get("source_seconds", {}))
    with run.timed("invert"), step_bars(out) as show, Stop() as stop:

        def on_step(source: str, done: int, steps: int, metrics: dict[str, float]) -> None:
            clock.tick(source)
            show(source, done, steps, metrics)
            if metrics:
                run.log(step=done, phase=source, **metrics)

        def on_begin(source: str, done: int) -> None:
            run.rewind(done, phase=source)
            if not done:
                clock.forget(source)

        def on_saved(source: str) -> None:
            # Not at the end alone, which a killed run never sees; and no later than the clips, or
            # the steps that a resumed run does again would count twice.
            clock.tick(source)
            run.record(source_seconds=clock.seconds)

        hooks = Hooks(on_step, on_begin, on_saved, out.warn, stop)
        bank = make_bank(folder, context, labels, sha256, hooks)
    run.record(bank={"clips": bank.sources, "health": bank.index.health})
    return bank


class SourceClock:
    """Seconds that the steps of each source take, and the saving of their clips.

    Each lasts from the end of the one before, whosever that was. A resumed run goes on from what
    was known when the clips it keeps were saved.

    Args:
        before: Those of the runs that this one resumes.

    Attributes:
        seconds: By source: ``wall``, and ``cpu`` of all threads of this process.
    """

    def __init__(self, before: Mapping[str, Mapping[str, float]]) -> None:
        self.seconds = {name: dict(spent) for name, spent in before.items()}
        self._last = time.monotonic(), time.process_time()

    def tick(self, source: str) -> None:
        """A step of the source is done, or its clips are saved."""
        now = time.monotonic(), time.process_time()
        spent = self.seconds.setdefault(source, {"wall": 0.0, "cpu": 0.0})
        spent["wall"] = round(spent["wall"] + now[0] - self._last[0], 3)
        spent["cpu"] = round(spent["cpu"] + now[1] - self._last[1], 3)
        self._last = now

    def forget(self, source: str) -> None:
        """The source begins at its first step: whatever it took before gave no clip."""
        self.seconds.pop(source, None)


@contextmanager
def step_bars(out: Output) -> Iterator[OnStep]:
    """One progress bar a source, for `make_bank`."""
    bars: dict[str, Any] = {}

    def close() -> None:
        for bar in bars.values():
            bar.__exit__(None, None, None)
        bars.clear()

    def show(source: str, done: int, steps: int, metrics: dict[str, float]) -> None:
        if source not in bars:
            close()
            bars[source] = out.progress(
                source, steps, fields=("loss", "requested"), completed=done - 1
            ).__enter__()
        bars[source].update(**{k: metrics[k] for k in ("loss", "requested") if k in metrics})

    try:
        yield show
    finally:
        close()


def report(run: RunFolder, bank: Bank, out: Output) -> dict[str, str]:
    """Health table, warnings and pictures; returns the pictures' paths inside the run."""
    health = bank.index.health
    rows = [
        (
            name,
            h["clips"],
            _percent(h["requested"]),
            h["batch_norm_error"],
            h["entropy"],
            h["embedding_variance"],
            h["cosine"],
            h["loudness_spread"],
        )
        for name, h in health.items()
    ]
    columns = (
        "source",
        "clips",
        "as requested",
        "BN error",
        "entropy",
        "variance",
        "cosine",
        "loudness",
    )
    out.table("Bank health (teacher only, no real clip involved)", columns, rows)
    for sentence in warnings(health):
        out.warn(sentence)
    return draw(run, bank)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.0f} %"


def draw(run: RunFolder, bank: Bank) -> dict[str, str]:
    """Mel grids, loss curves and the diversity figure."""
    pictures: dict[str, str] = {}
    for source in bank.sources:
        pictures[f"mels-{source}"] = f"plots/mels-{source}.png"
        plots.mel_grid(
            run.path(pictures[f"mels-{source}"]),
            examples(bank, source),
            bank.spec,
            f"What the teacher hears in the {source.replace('_', ' ')} clips",
        )
    metrics = run.metrics()
    for source in LEARNED:
        rows = [r for r in metrics if r.get("phase") == source]
        if rows:
            pictures[f"curves-{source}"] = f"plots/curves-{source}.png"
            groups = [[t] for t in TERMS if any(t in r for r in rows)]
            plots.curves(
                run.path(pictures[f"curves-{source}"]), rows, groups, f"{source}: loss terms"
            )
    pictures["diversity"] = "plots/diversity.png"
    plots.diversity(
        run.path(pictures["diversity"]),
        {**bank.index.health, "labels": list(bank.index.labels)},
    )
    return pictures


def examples(bank: Bank, source: str, per_class: int = CLIPS_A_CLASS) -> dict[str, Any]:
    """Clips of each class, by what the teacher hears: {label: (n, M, T)}, latest first."""
    clips = bank.read(source, 2048)
    answer = clips.logits_NK.argmax(1)
    found = {}
    for k, label in enumerate(bank.index.labels):
        index = (answer == k).nonzero()[:, 0].flip(0)[:per_class]
        if len(index):
            found[label] = clips.mels_N1MT[index, 0]
    return found


def listen(bank: Bank, source: str, folder: Path, per_class: int = 1) -> Sequence[Path]:
    """Write a few clips as WAV, so that one can hear what the teacher remembers."""
    mels, names = [], []
    for label, clips in examples(bank, source, per_class).items():
        for i, mel in enumerate(clips):
            mels.append(mel)
            names.append(f"{source}-{label}-{i}")
    return write_wavs(folder, mels, names, bank.spec)
