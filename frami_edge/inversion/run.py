"""One inversion inside a run folder: bank, metrics, pictures, health, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from frami_edge import plots
from frami_edge.cli._output import Output
from frami_edge.device import Choice
from frami_edge.distributed import world
from frami_edge.errors import TeacherError
from frami_edge.inversion.bank import Bank
from frami_edge.inversion.bn_loss import live_batch_norms
from frami_edge.inversion.config import BankConfig
from frami_edge.inversion.health import warnings
from frami_edge.inversion.listen import write_wavs
from frami_edge.inversion.loop import OnStep, make_bank
from frami_edge.inversion.sources import Context
from frami_edge.models.checkpoint import Loaded
from frami_edge.runs import RunFolder

CLIPS_A_CLASS = 6
"""Columns of the mel grid."""


def ready(teacher: Loaded, choice: Choice) -> Loaded:
    """Move a loaded network to where the run computes."""
    teacher.model.to(choice.device)
    if choice.channels_last:
        teacher.model.to(memory_format=torch.channels_last)
    return teacher


def context_of(teacher: Loaded, config: BankConfig, choice: Choice, seed: int) -> Context:
    """What the sources are made from; refuses a teacher that the configured terms cannot use.

    Raises:
        TeacherError: A BatchNorm term is asked for and the teacher has no live BatchNorm.
    """
    learned = {"inversion": config.inversion.batch_norm, "translator": config.translator.batch_norm}
    asked = [name for name, weight in learned.items() if weight and name in config.shares]
    if asked and not live_batch_norms(teacher.model):
        switches = " ".join(f"--set bank.{name}.batch_norm=0" for name in asked)
        raise TeacherError(
            "The teacher has no BatchNorm with running statistics: they were folded into the "
            "weights, or it uses another norm.",
            fix=f"Give the checkpoint from before folding, or run without that term: {switches} "
            "(expect a poorer bank).",
        )
    labels = teacher.card.labels
    return Context(teacher.teacher, teacher.spec, len(labels), config, choice, seed)


def invert(
    run: RunFolder,
    folder: Path,
    context: Context,
    labels: tuple[str, ...],
    sha256: str,
    out: Output,
) -> Bank:
    """Make the bank, or finish it, with progress on stderr and rows in metrics.jsonl."""
    begun = world().main and (folder / "bank.json").exists()
    finished = Bank.open(folder) if begun else None
    if finished:
        for name in context.config.shares:
            run.rewind(finished.next_step(name), phase=name)
    with run.timed("invert"), step_bars(out) as show:

        def on_step(source: str, done: int, steps: int, metrics: dict[str, float]) -> None:
            show(source, done, steps, metrics)
            if metrics:
                run.log(step=done, phase=source, **metrics)

        bank = make_bank(folder, context, labels, sha256, on_step)
    run.record(bank={"clips": bank.sources, "health": bank.index.health})
    return bank


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
    for source in ("inversion", "translator"):
        rows = [r for r in metrics if r.get("phase") == source]
        if rows:
            pictures[f"curves-{source}"] = f"plots/curves-{source}.png"
            terms = ("loss", "class", "batch_norm", "contrastive", "adversarial", "change")
            groups = [[t] for t in (*terms, "requested") if any(t in r for r in rows)]
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
