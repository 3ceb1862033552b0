"""`frami-edge protocol`: a whole table, folds x seeds x methods, from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import Device, Json, Overrides, Precision, Quiet, command_app, examples
from frami_edge.cli._output import Output

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge protocol protocols/esc10-cpu --dry-run",
        "frami-edge protocol protocols/esc10-cpu --out runs/esc10 --workers 2",
        "frami-edge protocol mine.yaml --out runs/mine --methods mixed,cmi --folds 1",
    )
)
def protocol(
    config: Annotated[
        str, typer.Argument(help="YAML file, or the name of a preset such as protocols/esc10-cpu.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of all its runs; what is there already is not made again.",
            show_default="runs/NAME",
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="NAMES", help="Only these methods.")
    ] = None,
    folds: Annotated[
        str | None, typer.Option("--folds", metavar="FOLDS", help="Only these folds.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made, and what it costs here.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Make nothing: tables and pictures of what is there.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that share the work and the cores.")
    ] = 1,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", help="Also put the tables into this Markdown file, in their place."
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder that holds the sets; else $FRAMI_EDGE_DATA."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on equal terms: same teacher, student, distillation and steps.

    Teachers and banks are made once and shared. Run it again after any interruption; run it on a
    second terminal, or on a machine with the same disk, to share the work.
    """
    from frami_edge.device import choose_compute
    from frami_edge.errors import ConfigError
    from frami_edge.protocol.narrow import narrowed
    from frami_edge.protocol.plan import Plan, load_protocol
    from frami_edge.protocol.session import Session

    output = Output(json=json, quiet=quiet)
    if dry_run and tables:
        raise ConfigError(
            "--dry-run shows what is to be made, --tables what is there.", fix="Give one of them."
        )
    whole = load_protocol(config, overrides or ())
    wanted = narrowed(whole, methods, folds)
    compute = choose_compute(device, precision)
    if not tables:
        output.note(f"Device: {compute.reason}")
    name = Path(config).stem
    folder = out or Path("runs") / name
    plans = Plan(wanted), Plan(whole)
    session = Session(*plans, folder, name, data_root, compute, output, workers)
    if dry_run:
        session.show_plan()
        return
    if not tables:
        session.run()
    session.report(write)
