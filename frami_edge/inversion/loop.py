"""Make a bank: run every source, write shards, resume where a killed run stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frami_edge.device import autocast, read_every
from frami_edge.distributed import Rows, broadcast, world
from frami_edge.errors import BankError
from frami_edge.inversion.bank import Bank, BankIndex, Clips
from frami_edge.inversion.baselines_config import budget, section
from frami_edge.inversion.health import source_health
from frami_edge.inversion.sources import SOURCES, Batch, Context, Source
from frami_edge.states import damaged, load_state, save_state
from frami_edge.stopping import NEVER, Stop

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
            {n: source_health(context.teacher, bank, n, context.choice) for n in bank.sources}
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
        look = full or last or len(unread) >= read_every(context.choice)
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
        with autocast(context.choice):
            logits.append(context.teacher.hidden(x.to(context.choice.device)).logits_BK)
    own = torch.cat(logits).float()
    return (rows.gather(own) if rows else own).cpu()
