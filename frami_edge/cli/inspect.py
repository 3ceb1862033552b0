"""`frami-edge inspect`: what a file or folder is, and what is inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output
from frami_edge.tables import show

app = command_app()

_MOST_ITEMS, _LONG_LINE = 12, 90


@command(
    app,
    "frami-edge inspect runs/export/student.int8.cpu.onnx",
    "frami-edge inspect student.int8.engine",
    "frami-edge inspect runs/student/bank",
    "frami-edge inspect runs/export --json",
    "frami-edge inspect my_teacher.yaml",
    "frami-edge inspect my_package.nets:KeywordNet --weights kws.pt --mel mel/log-mel-16k-64 "
    "--labels labels.txt",
    shared=opt.CODE,
)
def inspect(
    output: Output,
    given: dict[str, Any],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MODULE:CALLABLE",
            help="An ONNX file, TensorRT engine or checkpoint; the folder of a bank, an export or "
            "a run; or a teacher in Python code.",
        ),
    ],
) -> None:
    """Describe a file or folder: shapes, weights, front end, classes, origin and problems.

    Files are only read, never executed. A teacher in Python code is built and run.
    """
    from frami_edge.config import load_config
    from frami_edge.inspecting import describe, describe_teacher
    from frami_edge.teachers import TeacherDescription

    code = {name: value for name, value in opt.code_arguments(given).items() if value is not None}
    if code or (":" in file and not Path(file).exists()):
        values = {n: str(value) if isinstance(value, Path) else value for n, value in code.items()}
        found = describe_teacher(load_config(TeacherDescription, {"factory": file, **values}))
    else:
        found = describe(Path(file))
    output.result({"file": file, **found.to_dict()})
    title = found.title
    for name, facts in found.sections.items():
        rows = [(key.replace("_", " "), text(value)) for key, value in facts.items()]
        output.table(title, (name.replace("_", " "), ""), rows)
        title = ""
    for finding in found.findings:
        output.warn(finding)


def text(value: Any, *, nested: bool = False) -> str:
    """A value for a table cell; long values are shortened, JSON has all of them."""
    if isinstance(value, Mapping):
        shown = [f"{key}: {text(item, nested=True)}" for key, item in value.items()]
        if nested and len(shown) > _MOST_ITEMS:
            return f"{len(shown)} entries"
        line = "; ".join(shown) or "none"
        return line if nested or len(line) < _LONG_LINE else "\n".join(shown)
    if isinstance(value, list | tuple):
        more = f" and {len(value) - _MOST_ITEMS} more" if len(value) > _MOST_ITEMS else ""
        return (", ".join(text(item) for item in value[:_MOST_ITEMS]) or "none") + more
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    return show(value)
