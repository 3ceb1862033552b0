"""What the commands that take ``--from RUN`` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from frami_edge.cli._output import Output
from frami_edge.cli._teacher import is_code, teacher_file, teacher_source

if TYPE_CHECKING:
    from frami_edge.repeating import Original
    from frami_edge.teachers.description import TeacherDescription


def needed(value: str | None, name: str) -> str:
    """A value that only ``--from`` makes superfluous.

    Raises:
        typer.BadParameter: It is missing; wrong usage.
    """
    if value is None:
        raise typer.BadParameter(
            f"is missing; only --from RUN goes without {name}.", param_hint=name
        )
    return value


def repeated_teacher(
    original: Original, given: str | None, *code: Any
) -> Path | TeacherDescription:
    """The teacher of a run that is repeated, wherever it lies now.

    Args:
        original: The run.
        given: ``--teacher`` of the repetition.
        code: The other options that describe a teacher in Python code.

    Raises:
        RunError: It is not there, or another one.
    """
    from frami_edge.teachers.description import read_description

    described = original.folder / "teacher.yaml"
    source: Path | TeacherDescription
    if given is not None or any(code):
        source = (
            teacher_source(given or "", *code) if given and is_code(given) else Path(given or "")
        )
    elif described.is_file():
        source = read_description(described)
    else:
        found = original.input("teacher", None)
        assert found is not None
        return found
    original.input("teacher", teacher_file(source))
    return source


def repeated_bank(original: Original, given: Path | None) -> Path | None:
    """The folder of the bank that the run was given; None where it made its own."""
    index = original.input("bank", given / "bank.json" if given else None)
    return index.parent if index else None


def say_verdict(verdict: dict[str, Any], what: str, output: Output) -> None:
    """The sentence of a repetition.

    Raises:
        GateFailed: The result is another; exit code 3.
    """
    from frami_edge.repeating import check_identical

    check_identical(verdict, what)
    same = "bit for bit" if verdict["same_file"] else "in all its weights"
    output.note(f"The {what} is that of {verdict['of']}, {same}.")
    if not verdict["same_file"]:
        for text in verdict["differences"]:
            output.note(f"  {text}")
