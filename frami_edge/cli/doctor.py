"""`frami-edge doctor`: what this machine has, what it lacks, and the exact fix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from frami_edge.cli._app import Json, Quiet, command_app, examples
from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge_runtime.doctor import Check

app = command_app()

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "absent": "dim"}


@app.command(
    epilog=examples(
        "frami-edge doctor",
        "frami-edge doctor --data-root ~/sounds --json",
        "frami-edge doctor runs/export",
        "frami-edge doctor student.int8.engine",
    )
)
def doctor(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ENGINE|FOLDER]...",
            help="Engines, or folders that hold some: do they fit this machine?",
            show_default=False,
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder that holds the sets; else $FRAMI_EDGE_DATA."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at packages, GPU, TensorRT, board, microphone, data sets, disk: a tick or the exact fix.

    Nothing is changed. What may crash or hang is looked at in child processes, a few seconds in
    all. Exit code 3 where something that training needs is broken, or an engine that
    was named does not fit; on a device without torch use
    `python -m frami_edge_runtime.doctor`.
    """
    from frami_edge import __version__
    from frami_edge.doctor import trainer_probes
    from frami_edge.errors import GateFailed
    from frami_edge_runtime.doctor import Machine, examine, verdict

    output = Output(json=json, quiet=quiet)
    output.note("Looking; the longest part is `import torch`, a few seconds.")
    checks = examine(trainer_probes(data_root, tuple(places or ())), Machine())
    what = "training and these engines" if places else "training"
    blocking = [check for check in checks if check.blocks]
    lines = [check.to_dict() for check in checks]
    output.result({"version": __version__, "ready": not blocking, "checks": lines})
    if not json:
        _show(checks)
    if blocking:
        ways = "; ".join(f"{check.name}: {check.fix}" for check in blocking[:3])
        raise GateFailed(verdict(checks, what), fix=ways)
    output.note(verdict(checks, what))
    output.hint("frami-edge quickstart")


def _show(checks: list[Check]) -> None:
    """On stdout, unwrapped: a fix is there to be copied."""
    from frami_edge_runtime.doctor import groups, marks

    console = Console(highlight=False, soft_wrap=True)
    mark = marks(sys.stdout.encoding)
    width = max(len(check.name) for check in checks)
    for name, members in groups(checks):
        console.print(Text(name, "bold"))
        for check in members:
            head = f"  {mark[check.status]} {check.name:<{width}}  "
            console.print(Text.assemble((head, STYLES[check.status]), check.found))
            if check.fix:
                how = "how" if check.status in ("ok", "absent") else "fix"
                console.print(Text.assemble((f"    {how}: ", "dim"), check.fix))
