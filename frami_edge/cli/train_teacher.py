"""`frami-edge train-teacher`: from real audio to a classifier with statistics pooling."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output
from frami_edge.tables import percent

app = command_app()


@command(
    app,
    "frami-edge train-teacher fsdd-teacher",
    "frami-edge train-teacher esc10-teacher --set data.fold=1 --out runs/esc10-fold1",
    "frami-edge train-teacher my.yaml --data-root ~/sounds --out runs/my --resume",
    shared=opt.RUN,
)
def train_teacher(
    output: Output,
    given: dict[str, Any],
    config: opt.Config,
    overrides: opt.Overrides = None,
    data_root: opt.DataRoot = None,
    allow_partial: opt.AllowPartial = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder.", show_default="runs/CONFIG")
    ] = None,
) -> None:
    """Train a teacher on real audio with one fold held out, and score it on that fold once."""
    from frami_edge import api
    from frami_edge.config import TeacherConfig
    from frami_edge.data.sets import part_name
    from frami_edge.runs import read_manifest
    from frami_edge.yaml_config import load_config, presets

    settings = load_config(TeacherConfig, config, overrides or ())
    if allow_partial:
        update = {"name": part_name(settings.data.name)}
        settings = settings.model_copy(update={"data": settings.data.model_copy(update=update)})
    name = Path(config).stem
    folder = out or Path("runs") / name
    with output.live() as progress:
        teacher = api.train_teacher(
            settings, data_root=data_root, out=folder, progress=progress, **given
        )
    manifest, known = read_manifest(folder), teacher.card.trained_on
    assert known is not None
    file, metrics = folder / "teacher.safetensors", teacher.card.metrics
    seconds = manifest["seconds"]["train"]
    output.result(
        {
            "teacher": str(file),
            "sha256": teacher.sha256,
            "data": known.data,
            "test_fold": known.test_fold,
            "train_clips": known.clips,
            "test_clips": metrics["test_clips"],
            "training_clips": manifest["data"]["test"]["training_clips"],
            "notes": manifest["data"]["notes"],
            "accuracy": metrics["accuracy"],
            "recall": manifest["recall"],
            "parameters": manifest["parameters"],
            "train_seconds": seconds,
            "seed": settings.seed,
            "run_dir": str(folder),
        }
    )
    output.table(
        f"Fold {known.test_fold} of {known.data} by class",
        ("class", "recall"),
        [(label, percent(share, 1)) for label, share in manifest["recall"].items()],
    )
    output.table(
        "Teacher (last epoch)",
        ("accuracy", "test clips", "training clips", "parameters", "seconds of training"),
        [
            (
                percent(metrics["accuracy"]),
                metrics["test_clips"],
                known.clips,
                f"{manifest['parameters']:,}",
                f"{seconds:.1f}",
            )
        ],
        caption=" ".join(manifest["data"]["notes"]),
    )
    output.note(f"Model card and pictures: {folder / 'README.md'}")
    student = name.removesuffix("-teacher") + "-student"
    words = ["frami-edge", "distill", *([student] if student in presets() else [])]
    output.hint(shlex.join([*words, "--teacher", str(file), "--out", f"runs/{student}"]))
