"""One inversion inside a run folder: bank, metrics, pictures, health, warnings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from frami_edge import plots
from frami_edge.cli._output import Output
from frami_edge.device import Choice
from frami_edge.errors import TeacherError
from frami_edge.inversion.bank import Bank
from frami_edge.inversion.bn_loss import live_batch_norms
from frami_edge.inversion.config import BankConfig, batch_norm_keys
from frami_edge.inversion.health import warnings
from frami_edge.inversion.listen import write_wavs
from frami_edge.inversion.loop import Hooks, OnStep, make_bank
from frami_edge.inversion.sources import LEARNED, Context
from frami_edge.models.checkpoint import Loaded
from frami_edge.runs import RunFolder
from frami_edge.stopping import Stop

CLIPS_A_CLASS = 6
"""Columns of the mel grid."""
TERMS = (
    *("loss", "class", "batch_norm", "contrastive", "adversarial", "change"),
    *("activation", "balance", "variation", "requested"),
)
"""Of all learned sources, in the order of their pictures."""


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
