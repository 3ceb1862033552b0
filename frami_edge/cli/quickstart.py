"""`frami-edge quickstart`: the whole journey in a few minutes, with no data at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import Device, Json, Overrides, Precision, Quiet, command_app, examples
from frami_edge.cli._options import journey_config, journey_device
from frami_edge.cli._output import Output
from frami_edge.data.sets import ROOT_VARIABLE, find_folder, set_info

app = command_app()

PRESET = "fsdd-student"


@app.command(
    epilog=examples(
        "frami-edge quickstart --out runs/quickstart",
        "frami-edge quickstart --out runs/quickstart --data-root ~/sounds",
        "frami-edge quickstart --out runs/quickstart --seed 1 --json",
    )
)
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root",
            help="Folder with free-spoken-digit-dataset, for scores on real clips; "
            f"else ${ROOT_VARIABLE}.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that lies in --out.")
    ] = False,
    overrides: Overrides = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Replaces the config's.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Invert, distil, score, export and stream the digit teacher that ships with frami-edge."""
    from frami_edge.assets import DIGITS_TEACHER
    from frami_edge.checkpoint import load_checkpoint
    from frami_edge.inversion import ready
    from frami_edge.quickstart import journey, real_clips, show
    from frami_edge.runs import RunFolder

    output = Output(json=json, quiet=quiet)
    settings = journey_config(PRESET, overrides, None, seed)
    compute = journey_device(device, precision)
    teacher = ready(load_checkpoint(DIGITS_TEACHER, "teacher"), compute)
    features = None
    given = data_root or (
        Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None
    )
    if data_root or (given and find_folder(set_info("fsdd"), given)):
        assert given is not None
        features = real_clips(teacher, given)[1]
    output.note(f"Device: {compute.reason}")
    with RunFolder.create(
        out,
        command="quickstart",
        config=settings,
        overwrite=overwrite,
        inputs={"teacher": DIGITS_TEACHER},
        seeds={"seed": settings.seed},
        device=compute.reason,
        way_on="replace it with --overwrite",
    ) as run:
        figures = journey(run, teacher, settings, compute, features, output)
        run.record(figures=figures)
        show(figures, output)
        output.result(figures)
    output.note(f"Pictures: {', '.join(figures['plots'].values())}")
    if features is None:
        output.hint(
            "frami-edge data get fsdd --data-root sounds   (then: quickstart --data-root sounds)"
        )
    output.hint("frami-edge train-teacher esc10-teacher --data-root sounds --out runs/teacher")
