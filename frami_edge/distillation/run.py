"""One distillation inside a run folder: checkpoints, metrics, the student and its card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from frami_edge import plots
from frami_edge.cli._output import Output
from frami_edge.config import Strict
from frami_edge.device import Choice, generator
from frami_edge.distillation.config import DistillConfig, JourneyConfig
from frami_edge.distillation.loop import Distiller, Feed
from frami_edge.distillation.model_card import student_readme
from frami_edge.distributed import broadcast, world
from frami_edge.inversion.bank import Bank
from frami_edge.inversion.procedural import procedural_mels
from frami_edge.io import atomic_write_text, sha256_file
from frami_edge.models.checkpoint import Card, Loaded, parameters, save_checkpoint
from frami_edge.models.config import StudentArch
from frami_edge.models.student import Student
from frami_edge.runs import RunFolder
from frami_edge.states import damaged, load_state, save_state
from frami_edge.stopping import Stop

CHECKPOINT = "distill-state.pt"


def new_student(arch: StudentArch, teacher: Loaded, config: DistillConfig, seed: int) -> Student:
    """A student with the weights that the seed gives, and the teacher's head where it is reused."""
    torch.manual_seed(generator(seed, "student").initial_seed())
    head = teacher.teacher.head if config.reuse_head else None
    return Student(arch, teacher.spec.n_mels, len(teacher.card.labels), head)


def distill(
    run: RunFolder,
    teacher: Loaded,
    arch: StudentArch,
    config: DistillConfig,
    feed: Feed,
    choice: Choice,
    seed: int,
    out: Output,
    phase: str = "distill",
    watch: Callable[[int, Student], None] = lambda *_: None,
) -> Student:
    """Teach a new student, or go on where a killed run stopped; returns the one that ships.

    The student comes back with projector and head collapsed into one matrix. `watch` is called
    after each step with the steps done and the student, which it must leave as it is.
    """
    student = new_student(arch, teacher, config, seed)
    if config.reuse_head and teacher.teacher.head is None:
        out.note(
            "The teacher's way from pooled state to logits is not affine: the student gets a head "
            "of its own."
        )
    distiller = Distiller(teacher.teacher, student, config, choice, seed, feed)
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
    teacher: Loaded, student: Student, config: JourneyConfig, choice: Choice, clips: int = 512
) -> float:
    """Share of fresh procedural clips on which student and teacher say the same.

    They come from a seed that no bank uses: selection and reports without real data rest on it.
    """
    seed = generator(config.seed, "held-out").initial_seed()
    x = procedural_mels(teacher.spec, clips, config.bank.frames, seed).to(choice.device)
    same = [
        (student(part).argmax(1) == teacher.model(part).argmax(1)).float() for part in x.split(128)
    ]
    return float(torch.cat(same).mean())


def save_student(
    run: RunFolder, student: Student, teacher: Loaded, config: Strict, metrics: dict[str, Any]
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
    run: RunFolder, card: Card, student: Student, bank: Bank, pictures: dict[str, str]
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
