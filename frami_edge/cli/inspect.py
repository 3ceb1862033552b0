"""`frami-edge inspect`: what a file is, and what is inside; no GPU needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import Json, Quiet, command_app, examples
from frami_edge.cli._options import (
    Frames,
    Labels,
    Layout,
    Mel,
    Pooled,
    TeacherArgs,
    Weights,
    open_teacher,
)
from frami_edge.cli._output import Output

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge inspect runs/export/student.int8.cpu.onnx",
        "frami-edge inspect student.int8.engine",
        "frami-edge inspect runs/student/bank",
        "frami-edge inspect runs/export --json",
        "frami-edge inspect my_teacher.yaml",
        "frami-edge inspect my_package.nets:KeywordNet --weights kws.pt --mel mel/log-mel-16k-64 "
        "--labels labels.txt",
    )
)
def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MODULE:CALLABLE",
            help="An ONNX file, TensorRT engine or checkpoint; the folder of a bank or export; or "
            "a teacher in Python code.",
        ),
    ],
    weights: Weights = None,
    mel: Mel = None,
    labels: Labels = None,
    teacher_args: TeacherArgs = None,
    frames: Frames = None,
    pooled: Pooled = None,
    layout: Layout = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a file is: shapes, weights, front end, classes, origin, and what is wrong with it.

    Nothing in a file is executed; an engine's version is read from its header. A teacher in Python
    code is built and run.
    """
    from frami_edge.inspecting import describe

    output = Output(json=json, quiet=quiet)
    code = (weights, mel, labels, teacher_args, frames, pooled, layout)
    if (":" in file and not Path(file).exists()) or any(code):
        from frami_edge.inspecting import describe_teacher
        from frami_edge.teachers import TeacherDescription

        description = open_teacher(file, *code).description
        assert isinstance(description, TeacherDescription)
        found = describe_teacher(description)
    else:
        found = describe(Path(file))
    output.result({"file": file, **found.to_dict()})
    for section in found.sections:
        rows = [(fact.label, fact.shown()) for fact in section.facts if fact.text != ""]
        title = found.title if section is found.sections[0] else ""
        output.table(title, (section.name, ""), rows)
    for finding in found.findings:
        output.warn(finding)
