"""`frami-edge quickstart`: from a teacher to a device in a few minutes, without any data."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output

app = command_app()

PRESET = "fsdd-student"


@command(
    app,
    "frami-edge quickstart --out runs/quickstart",
    "frami-edge quickstart --out runs/quickstart --data-root ~/sounds",
    "frami-edge quickstart --out runs/quickstart --seed 1 --json",
    shared=opt.COMPUTE,
)
def quickstart(
    output: Output,
    given: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root",
            help="Folder with free-spoken-digit-dataset, for scores on real clips.",
            show_default="$FRAMI_EDGE_DATA, or the user's cache",
        ),
    ] = None,
    no_fetch: Annotated[
        bool, typer.Option("--no-fetch", help="Do not download that data set (10 MB).")
    ] = False,
    overwrite: opt.Overwrite = False,
    overrides: opt.Overrides = None,
    seed: opt.NewSeed = None,
) -> None:
    """Invert, distil, score, export and stream the digit teacher that ships with frami-edge."""
    from frami_edge.config import JourneyConfig
    from frami_edge.quickstart import run_quickstart, summary
    from frami_edge.yaml_config import load_config

    config = load_config(JourneyConfig, PRESET, overrides or ())
    if seed is not None:
        config = config.model_copy(update={"seed": seed})
    with output.live() as progress:
        figures = run_quickstart(
            out,
            config,
            data_root=data_root,
            fetch=not no_fetch,
            overwrite=overwrite,
            progress=progress,
            **given,
        )
    output.result(figures)
    output.tables([summary(figures)])
    output.note(f"Pictures: {', '.join(figures['plots'].values())}")
    if figures["student"]["accuracy"] is None:
        output.hint("frami-edge data get fsdd --data-root sounds")
        again = ["frami-edge", "quickstart", "--data-root", "sounds", "--out", str(out)]
        output.hint(f"{shlex.join(again)} --overwrite")
    else:
        output.hint("frami-edge data get esc50 --data-root sounds")
        output.hint("frami-edge train-teacher esc10-teacher --data-root sounds --out runs/teacher")
