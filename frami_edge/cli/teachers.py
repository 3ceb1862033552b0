"""`frami-edge teachers`: lists public checkpoints, and downloads one."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output, megabytes
from frami_edge.errors import ConfigError
from frami_edge.public_teachers import (
    DESCRIPTION,
    PublicTeacher,
    get_teacher,
    public_teacher,
    public_teachers,
)

app = command_app()


@command(
    app,
    "frami-edge teachers",
    "frami-edge teachers efficientat-mn04 --out tagger",
    "frami-edge teachers ast-audioset",
)
def teachers(
    output: Output,
    name: Annotated[
        str | None, typer.Argument(help="A teacher of the list.", show_default="the list")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for weights, labels and teacher.yaml.")
    ] = None,
) -> None:
    """List public audio classifiers that can be teachers, or download one and describe it.

    Files are checked by size and digest. The network's own code is not downloaded: the commands
    that get it are printed.
    """
    if name is None:
        if out is not None:
            raise ConfigError("No teacher is named.", fix="`frami-edge teachers` lists them.")
        _list(output)
        return
    teacher, fresh = public_teacher(name), list[str]()
    if not teacher.files:
        out = None
        output.note("Nothing to download now: transformers fetches and checks the model itself.")
    elif out is None:
        raise ConfigError(
            f"There is no folder to download {teacher.name} into.", fix="Add --out FOLDER."
        )
    else:
        with output.live() as progress:
            fresh = get_teacher(teacher, out, megabytes(progress, teacher.name))
        kept = "" if DESCRIPTION in fresh else f"; {DESCRIPTION} was there, and is kept"
        output.note(f"Weights and labels are complete in {out}{kept}.")
    commands = teacher.next_commands(out)
    output.result(
        {
            "name": teacher.name,
            "teacher": str(out / DESCRIPTION) if out else teacher.teacher,
            "downloaded": fresh,
            "licence": teacher.licence,
            "page": teacher.page,
            "next": commands,
        }
    )
    output.note(f"Licence of the weights: {teacher.licence}, {teacher.page}")
    for line in commands:
        output.hint(line)


def _list(output: Output) -> None:
    known = public_teachers()
    output.result({"teachers": [asdict(teacher) for teacher in known]})
    output.table(
        "Public teachers",
        ("name", "classes", "parameters", "MB", "licence", "checked by", "from"),
        [_row(teacher) for teacher in known],
        caption="`frami-edge teachers NAME --out FOLDER` downloads one. `digits-teacher` comes "
        "with the package.",
    )
    output.hint("frami-edge teachers efficientat-mn04 --out tagger")


def _row(teacher: PublicTeacher) -> tuple[object, ...]:
    checked, place = "the hub", teacher.teacher
    if teacher.files:
        weights = teacher.files[0]
        algorithm = {"sha256": "SHA-256", "md5": "MD5"}[weights.digest.partition(":")[0]]
        checked, place = f"{algorithm}, {weights.digest_from}", teacher.page
    return (
        teacher.name,
        teacher.classes,
        f"{teacher.parameters / 1e6:.3g} M",
        teacher.size_mb,
        teacher.licence,
        checked,
        place.removeprefix("https://"),
    )
