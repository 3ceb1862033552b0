"""`frami-edge train-teacher`: real audio in, a classifier with statistics pooling out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import (
    Deterministic,
    Device,
    Json,
    Overrides,
    Precision,
    Quiet,
    command_app,
    examples,
)
from frami_edge.cli._options import Resume, resume_command
from frami_edge.cli._output import Output

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge train-teacher fsdd-teacher",
        "frami-edge train-teacher esc10-teacher --set data.fold=1 --out runs/esc10-fold1",
        "frami-edge train-teacher my.yaml --data-root ~/sounds --out runs/my --resume",
    )
)
def train_teacher(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a preset.")],
    overrides: Overrides = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder that holds the sets; else $FRAMI_EDGE_DATA."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder.", show_default="runs/CONFIG")
    ] = None,
    resume: Resume = False,
    deterministic: Deterministic = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a teacher on real audio, one fold held out, and score it on that fold once."""
    from frami_edge import training
    from frami_edge.config import TeacherConfig, load_config, presets
    from frami_edge.device import choose_compute, set_seed
    from frami_edge.evaluation import class_rows
    from frami_edge.runs import RunFolder, record_compute
    from frami_edge.training import choose_clips

    output = Output(json=json, quiet=quiet)
    settings = load_config(TeacherConfig, config, overrides or ())
    compute = choose_compute(device, precision)
    if deterministic and compute.device.type == "cuda":
        set_seed(settings.seed, deterministic=True)
    choose_clips(settings, data_root)  # a missing set must leave no run behind
    name = Path(config).stem
    folder = out or Path("runs") / name
    output.note(f"Device: {compute.reason}")
    with RunFolder.create(
        folder,
        command="train-teacher",
        config=settings,
        resume=resume,
        seeds={"seed": settings.seed},
        device=compute.reason,
    ) as run:
        record_compute(run, compute, deterministic=deterministic)
        run.resume_hint = resume_command()
        trained = training.train_teacher(run, settings, data_root, compute, output)
    card, result = trained.card, trained.score
    heard = card.trained_on
    assert heard is not None
    rows = class_rows(card.labels, result, None)
    output.result(
        {
            "teacher": str(trained.path),
            "sha256": trained.sha256,
            "data": heard.data,
            "test_fold": heard.test_fold,
            "train_clips": heard.clips,
            "test_clips": result.clips,
            "accuracy": result.accuracy,
            "recall": dict(zip(card.labels, result.per_class(), strict=True)),
            "parameters": trained.parameters,
            "train_seconds": trained.seconds,
            "seed": settings.seed,
            "run_dir": str(folder),
        }
    )
    output.table(
        f"Fold {heard.test_fold} of {heard.data} by class",
        ("class", "clips", "recall"),
        [row[:3] for row in rows],
    )
    output.table(
        "Teacher (last epoch)",
        ("accuracy", "test clips", "trained on", "parameters", "seconds of training"),
        [
            (
                f"{100 * result.accuracy:.2f} %",
                result.clips,
                heard.clips,
                f"{trained.parameters:,}",
                f"{trained.seconds:.1f}",
            )
        ],
    )
    output.note(f"Model card and pictures: {folder / 'README.md'}")
    student = name.removesuffix("-teacher") + "-student"
    recipe = student if student in presets() else "student.yaml"
    place = shlex.quote(str(trained.path))
    output.hint(f"frami-edge distill {recipe} --teacher {place} --out runs/{student}")
