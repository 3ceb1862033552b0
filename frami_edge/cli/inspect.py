"""`frami-edge inspect`: what a file is, and what is inside; no GPU needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import Json, Quiet, command_app, examples
from frami_edge.cli._output import Output

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge inspect runs/export/student.int8.cpu.onnx",
        "frami-edge inspect student.int8.engine",
        "frami-edge inspect runs/student/bank",
        "frami-edge inspect runs/export --json",
    )
)
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="An ONNX file, TensorRT engine or checkpoint; or the folder of a bank or export."
        ),
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a file is: shapes, weights, front end, classes, origin, and what is wrong with it.

    Nothing in it is executed. An engine's version is read from its header.
    """
    from frami_edge.describing import describe

    output = Output(json=json, quiet=quiet)
    found = describe(file)
    output.result({"file": str(file), **found.to_dict()})
    for section in found.sections:
        rows = [(fact.label, fact.shown()) for fact in section.facts if fact.text != ""]
        title = found.title if section is found.sections[0] else ""
        output.table(title, (section.name, ""), rows)
    for finding in found.findings:
        output.warn(finding)
