"""One training inside a run folder: checkpoints, metrics, the teacher and its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from frami_edge import plots
from frami_edge.cli._output import Output
from frami_edge.device import Choice, generator
from frami_edge.evaluation import Score, predict, score
from frami_edge.io import atomic_write_text
from frami_edge.models.checkpoint import Card, load_checkpoint, parameters, save_checkpoint
from frami_edge.models.teacher import ResNetTeacher
from frami_edge.runs import RunFolder
from frami_edge.states import damaged, load_state, save_state
from frami_edge.stopping import Stop
from frami_edge.training.config import TeacherConfig
from frami_edge.training.loop import TeacherTrainer
from frami_edge.training.material import Material, load_material
from frami_edge.training.model_card import teacher_readme

CHECKPOINT = "train-state.pt"
TEACHER = "teacher.safetensors"


@dataclass
class TrainedTeacher:
    """What a training gave.

    Attributes:
        path: Of the checkpoint.
        sha256: Of the checkpoint.
        card: What it says of itself.
        score: On the held-out fold, after the last epoch.
        parameters: Of the network.
        seconds: Of training, those of the runs that this one resumes included.
    """

    path: Path
    sha256: str
    card: Card
    score: Score
    parameters: int
    seconds: float


def train_teacher(
    run: RunFolder, config: TeacherConfig, root: Path | None, choice: Choice, out: Output
) -> TrainedTeacher:
    """Train, or go on where a killed run stopped, and test on the held-out fold.

    Writes `teacher.safetensors`, `plots/*.png` and `README.md` into the run. The fold is scored
    once, after the last epoch: it selects nothing.
    """
    with run.timed("features"):
        material = load_material(config, root, out)
    run.record(data=material.manifest(), mel=material.spec.to_dict())
    if (run.folder / TEACHER).exists():
        # Killed after the last epoch: what was trained is not trained again.
        model = load_checkpoint(run.folder / TEACHER, "teacher").model
        assert isinstance(model, ResNetTeacher)
        model.to(choice.device)
    else:
        model = fit(run, config, material, choice, out)
    with run.timed("test"):
        logits_NK = predict(model, material.test.mels)
    result = score(logits_NK, material.test.labels)
    seconds = float(run.manifest["seconds"].get("train", 0.0))
    metrics = {"accuracy": result.accuracy, "test_clips": result.clips}
    card = Card(
        kind="teacher",
        arch=config.arch.model_dump(mode="json"),
        mel=material.spec.to_dict(),
        labels=material.data.labels,
        trained_on=material.trained_on(),
        recipe=config.model_dump(mode="json"),
        metrics=metrics,
        licence=material.data.licence,
    )
    sha256 = save_checkpoint(run.path(TEACHER), model, card)
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    trained = TrainedTeacher(run.folder / TEACHER, sha256, card, result, parameters(model), seconds)
    run.record(**metrics, parameters=trained.parameters, teacher_sha256=sha256)
    pictures = draw(run, card, result)
    atomic_write_text(run.path("README.md"), teacher_readme(trained, pictures, run.manifest))
    return trained


def fit(
    run: RunFolder, config: TeacherConfig, material: Material, choice: Choice, out: Output
) -> ResNetTeacher:
    """All epochs that are left, with progress, a row of metrics and a checkpoint after each."""
    torch.manual_seed(generator(config.seed, "teacher").initial_seed())
    model = ResNetTeacher(config.arch, material.spec.n_mels, len(material.data.labels))
    trainer = TeacherTrainer(model, material.train, config.train, choice, config.seed)
    saved = run.path(CHECKPOINT)
    if saved.exists():
        state = load_state(saved)
        if state is None:
            out.warn(damaged(saved, "the training"))
        else:
            trainer.load_state(state)
            done = f"epoch {trainer.epochs_done} of {config.train.epochs}"
            out.note(f"Going on after {done}, step {trainer.steps_done} of {trainer.steps}.")
    run.rewind(trainer.epochs_done, phase="train")

    def on_epoch(metrics: dict[str, float]) -> None:
        run.log(step=trainer.epochs_done, phase="train", **metrics)
        if trainer.epochs_done % config.train.checkpoint_epochs == 0:
            save()

    def save() -> None:
        save_state(saved, trainer.state())

    with (
        run.timed("train"),
        out.progress("train", trainer.steps, completed=trainer.steps_done) as bar,
        Stop() as stop,
    ):
        trainer.run(lambda loss: bar.update(loss=loss), on_epoch, save, stop)
    return model


def draw(run: RunFolder, card: Card, result: Score) -> dict[str, str]:
    """Training curves and the confusion picture; their paths inside the run."""
    pictures = {"curves": "plots/curves.png", "confusion": "plots/confusion.png"}
    rows = [r | {"epoch": r["step"]} for r in run.metrics() if r.get("phase") == "train"]
    plots.curves(
        run.path(pictures["curves"]),
        rows,
        [["loss"], ["train_accuracy"], ["lr"]],
        "Training",
        x="epoch",
    )
    plots.confusion(
        run.path(pictures["confusion"]), result.confusion_KK, card.labels, "Held-out fold"
    )
    return pictures
