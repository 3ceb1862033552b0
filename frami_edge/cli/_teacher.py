"""How a command takes a teacher: our checkpoint, a YAML description, or a module with its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frami_edge.errors import ConfigError

if TYPE_CHECKING:
    from frami_edge.cli._output import Output
    from frami_edge.models.checkpoint import Loaded
    from frami_edge.runs import RunFolder
    from frami_edge.teachers.description import TeacherDescription

PANEL = "A teacher in Python code"

OptionalTeacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="FILE|MODULE:CALLABLE",
        help="teacher.safetensors of train-teacher, a YAML description of a teacher, or the "
        "callable that builds one.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Its safetensors, or torch file of tensors.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Mel = Annotated[
    str | None,
    typer.Option("--mel", help="Its front end: YAML with the keys of MelSpec, or a preset.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="Its class names, one a line, in the order of the logits.",
                 rich_help_panel=PANEL),
]  # fmt: skip
TeacherArgs = Annotated[
    list[str] | None,
    typer.Option("--teacher-arg", metavar="NAME=VALUE", help="For the callable; repeatable.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Frames = Annotated[
    str | None,
    typer.Option("--frames", metavar="PATH", help="Module that gives the last hidden state over "
                 "time (PATH@in: takes it); found where unambiguous.", rich_help_panel=PANEL),
]  # fmt: skip
Pooled = Annotated[
    str | None,
    typer.Option("--pooled", metavar="PATH", help="Module that gives the first hidden state "
                 "without time (PATH@in: takes it); found where unambiguous.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Layout = Annotated[
    str | None,
    typer.Option("--layout", metavar="AXES", help="Order of its input's axes, where several fit: "
                 "B1MT, BMT, B1TM, BTM, B3MT or B3TM (batch, channels, mel bands, time).",
                 rich_help_panel=PANEL),
]  # fmt: skip


def teacher_source(
    source: str,
    weights: Path | None = None,
    mel: str | None = None,
    labels: Path | None = None,
    arguments: list[str] | None = None,
    frames: str | None = None,
    pooled: str | None = None,
    layout: str | None = None,
) -> Path | TeacherDescription:
    """What the options name, for `teachers.opening.open_teacher`.

    Raises:
        ConfigError: The options do not go together, or the description has mistakes.
    """
    from frami_edge.teachers.description import description_of

    given = {"--weights": weights, "--mel": mel, "--labels": labels}
    more = {"--teacher-arg": arguments, "--frames": frames, "--pooled": pooled,
            "--layout": layout}  # fmt: skip
    if not is_code(source):
        unused = [name for name, value in (given | more).items() if value]
        if unused:
            raise ConfigError(
                f"{', '.join(unused)} describe a teacher in Python code, and --teacher {source} is "
                "a file that says these things itself.",
                fix="Leave them out, or give --teacher MODULE:CALLABLE.",
            )
        return Path(source)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ConfigError(
            f"--teacher {source} is Python code, and {', '.join(missing)} is not given.",
            fix="Give --weights, --mel and --labels with it.",
        )
    return description_of(
        factory=source,
        arguments=_arguments(arguments or []),
        weights=str(weights),
        mel=mel,
        labels=str(labels),
        frames=frames,
        pooled=pooled,
        layout=layout or "auto",
    )


def say_doubts(teacher: Loaded, out: Output) -> None:
    """Warn of what was assumed about a teacher that is not ours."""
    from frami_edge.teachers.foreign import ForeignTeacher

    if isinstance(teacher.model, ForeignTeacher):
        for sentence in teacher.model.doubts:
            out.warn(sentence)


def teacher_file(source: Path | TeacherDescription) -> Path:
    """The file whose hash a run folder keeps."""
    return source if isinstance(source, Path) else Path(source.weights)


def describe_in(run: RunFolder, source: Path | TeacherDescription) -> str:
    """Write a teacher in Python code into a run as ``teacher.yaml``; how to name the teacher next.

    A checkpoint, or a description that is a file, is named as it is.
    """
    from frami_edge.teachers.description import write_description

    if isinstance(source, Path):
        return str(source)
    path = run.path("teacher.yaml")
    write_description(path, source)
    return str(path)


def is_code(source: str) -> bool:
    """`module:callable`, and not a path."""
    return ":" in source and not Path(source).exists()


def _arguments(texts: list[str]) -> dict[str, Any]:
    from frami_edge import _yaml

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--teacher-arg {text!r} is not NAME=VALUE.", fix="Write it like width=64."
            )
        try:
            found[name] = _yaml.parse(value)
        except ValueError as error:
            raise ConfigError(f"--teacher-arg {text!r}: {error}.", fix="Quote it.") from None
    return found
