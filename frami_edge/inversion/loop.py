"""Make a bank: run every source, write shards, resume where a killed run stopped."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frami_edge.device import autocast, read_every
from frami_edge.distributed import Rows, broadcast, world
from frami_edge.errors import BankError
from frami_edge.inversion.bank import Bank, BankIndex, Clips
from frami_edge.inversion.health import source_health
from frami_edge.inversion.sources import SOURCES, Batch, Context, Source
from frami_edge.io import atomic_write_bytes

OnStep = Callable[[str, int, int, dict[str, float]], None]


def make_bank(
    folder: Path,
    context: Context,
    labels: tuple[str, ...],
    teacher_sha256: str,
    on_step: OnStep = lambda *_: None,
) -> Bank:
    """Make a bank, or finish one that was begun with the same settings.

    Args:
        folder: Of the bank; made where it is not there.
        context: Teacher, front end, configuration, device, seed.
        labels: Class names.
        teacher_sha256: Of the teacher's checkpoint.
        on_step: Called with (source, steps done, steps, metrics).

    Raises:
        BankError: The folder holds a bank of other settings.
    """
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
        _run_source(bank, context, name, on_step)
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


def _run_source(bank: Bank, context: Context, name: str, on_step: OnStep) -> None:
    first = bank.next_step(name)
    source: Source = SOURCES[name](context)
    if first >= source.steps:
        return
    if first:
        saved = _load_state(_state_path(bank, name, first)) if world().main else {}
        source.load_state(broadcast(saved))
    waiting: list[Batch] = []
    unread: list[tuple[int, Batch]] = []
    for i in range(first, source.steps):
        batch = source.step(i)
        if batch.keep:
            waiting.append(batch)
        full = sum(len(b.labels_B) for b in waiting) >= context.config.shard_clips
        last = i + 1 == source.steps
        unread.append((i + 1, batch))
        if full or last or len(unread) >= read_every(context.choice):
            for done, told in unread:
                on_step(name, done, source.steps, _numbers(told.metrics))
            unread.clear()
        if waiting and (full or last):
            mels = torch.cat([b.mels_B1MT for b in waiting]).cpu()
            if not torch.isfinite(mels).all():
                raise BankError(
                    f"The source {name} diverged by step {i + 1}: its clips are not finite.",
                    fix=f"Use a smaller bank.{name}.learning_rate and another --out, "
                    "or --precision fp32.",
                )
            asked = torch.cat([b.labels_B for b in waiting]).cpu()
            # The state first, under its own step: whenever the run is killed, the state that the
            # last shard needs is there.
            if i + 1 < source.steps and world().main:
                _save_state(_state_path(bank, name, i + 1), source)
            clips = Clips(mels, asked, _answers(context, mels))
            if world().main:
                bank.append(name, clips, first, i + 1)
                _state_path(bank, name, first).unlink(missing_ok=True)
            first, waiting = i + 1, []
    if world().main and name not in bank.sources:
        raise BankError(
            f"The source {name} made no clip: all {source.steps} steps are burn-in.",
            fix=f"Raise bank.{name}.steps above bank.{name}.burn_in.",
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


def _save_state(path: Path, source: Source) -> None:
    buffer = io.BytesIO()
    torch.save(source.state(), buffer)
    atomic_write_bytes(path, buffer.getvalue())


def _load_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:
        raise BankError(
            f"{path} is missing or damaged, so its source cannot go on.",
            fix="Delete the bank's folder and make it again.",
        ) from error
    return state


@torch.no_grad()
def _answers(context: Context, mels: Tensor) -> Tensor:
    logits = []
    rows = Rows(len(mels)) if len(mels) >= world().size else None
    for x in (rows.take(mels) if rows else mels).split(128):
        with autocast(context.choice):
            logits.append(context.teacher.hidden(x.to(context.choice.device)).logits_BK)
    own = torch.cat(logits).float()
    return (rows.gather(own) if rows else own).cpu()
