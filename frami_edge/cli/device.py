"""`frami-edge listen` and `doctor`: the programs of the runtime, from the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output

app = command_app()


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],  # --help, too, is answered by the runtime's program
    }
)
def listen(context: typer.Context) -> None:
    """Listen to a microphone, a file or a pipe: level, top classes and events."""
    from frami_edge_runtime.listen import main

    raise typer.Exit(main(context.args, prog="frami-edge listen"))


@command(
    app,
    "frami-edge doctor",
    "frami-edge doctor --data-root ~/sounds --json",
    "frami-edge doctor runs/export",
)
def doctor(
    output: Output,
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ENGINE|FOLDER]...",
            help="TensorRT engines, or folders of engines, to compare with this machine.",
            show_default=False,
        ),
    ] = None,
    data_root: opt.DataRoot = None,
) -> None:
    """Check packages, GPU, TensorRT, microphone, memory, disk and data sets; print each fix.

    Nothing is changed. Exit code 3 where something that training needs is broken, or a given engine
    does not fit. On a device without torch: `python -m frami_edge_runtime.doctor`.
    """
    from frami_edge import __version__
    from frami_edge.doctor import examine
    from frami_edge.errors import GateFailed
    from frami_edge_runtime.doctor import as_json, as_text, verdict

    checks = examine(places or (), data_root)
    output.result(as_json(checks, __version__))
    if not output.json:
        typer.echo(as_text(checks))
    if blocking := [check for check in checks if check.blocks]:
        fixes = "; ".join(f"{check.name}: {check.fix}" for check in blocking[:3])
        raise GateFailed(verdict(checks, "training"), fix=fixes)
    output.note(verdict(checks, "training"))
    output.hint("frami-edge quickstart --out runs/quickstart")
