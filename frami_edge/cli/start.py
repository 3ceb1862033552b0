"""`frami-edge quickstart`, `doctor`, `teachers` and `data`: what a newcomer runs first."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import Output, command, command_app, examples, megabytes
from frami_edge.data.sets import ROOT_VARIABLE, SetStatus, data_root, get_set, survey
from frami_edge.errors import ConfigError, DataError, GateFailed
from frami_edge.public_teachers import (
    DESCRIPTION,
    PublicTeacher,
    get_teacher,
    public_teacher,
    public_teachers,
)

app = command_app()
data_app = command_app()

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
    from frami_edge_runtime.doctor import as_json, as_text, verdict

    checks = examine(places or (), data_root)
    output.result(as_json(checks, __version__))
    output.text(as_text(checks))
    if blocking := [check for check in checks if check.blocks]:
        fixes = "; ".join(f"{check.name}: {check.fix}" for check in blocking[:3])
        raise GateFailed(verdict(checks, "training"), fix=fixes)
    output.note(verdict(checks, "training"))
    output.hint("frami-edge quickstart --out runs/quickstart")


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
        _list_teachers(output)
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


def _list_teachers(output: Output) -> None:
    known = public_teachers()
    output.result({"teachers": [asdict(teacher) for teacher in known]})
    output.table(
        "Public teachers",
        ("name", "classes", "parameters", "MB", "licence", "checked by", "from"),
        [_teacher_row(teacher) for teacher in known],
        caption="`frami-edge teachers NAME --out FOLDER` downloads one. `digits-teacher` comes "
        "with the package.",
    )
    output.hint("frami-edge teachers efficientat-mn04 --out tagger")


def _teacher_row(teacher: PublicTeacher) -> tuple[object, ...]:
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


@data_app.callback(
    invoke_without_command=True,
    epilog=examples(
        "frami-edge data", "frami-edge data --data-root ~/sounds --json", "frami-edge data get fsdd"
    ),
)
def show(
    context: typer.Context,
    root: opt.DataRoot = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """List the known data sets: whether each is present and complete, and where it comes from."""
    if context.invoked_subcommand is not None:
        # So that both `data --data-root X get fsdd` and `data get fsdd --data-root X` work.
        context.obj = (root, json, quiet)
        return
    output = Output(json=json, quiet=quiet)
    # Listing works without a data root; a wrong one is an error.
    given = root is not None or bool(os.environ.get(ROOT_VARIABLE))
    folder = data_root(root) if given else None
    states = survey(folder)
    output.result(
        {"data_root": str(folder) if folder else None, "sets": [s.to_dict() for s in states]}
    )
    output.table(
        f"Data sets under {folder}" if folder else "Known data sets",
        ("name", "state", "clips", "licence", "source"),
        [_row(state) for state in states],
        caption="`frami-edge data get NAME` downloads a set. folder:PATH is a folder per class.",
    )
    if folder is None:
        output.note(f"No data root: pass --data-root PATH or set {ROOT_VARIABLE}.")
    for state in states:
        if state.folder is not None and not state.complete:
            output.warn(state.problem)
    missing = next((s for s in states if s.folder is None and s.info.url), None)
    if missing is not None:
        output.hint(missing.info.get)


@data_app.command(
    epilog=examples(
        "frami-edge data get fsdd --data-root ~/sounds",
        "frami-edge data get esc50 --url https://mirror.example/ESC-50.zip",
    )
)
def get(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A data set that `frami-edge data` lists.")],
    root: opt.DataRoot = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Another address of the same archive.")
    ] = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Download a data set, check that it is complete, and put it under the data root.

    A set that is present and complete is left alone.
    """
    outer_root, outer_json, outer_quiet = context.obj or (None, False, False)
    output = Output(json=json or outer_json, quiet=quiet or outer_quiet)
    place = root or outer_root or os.environ.get(ROOT_VARIABLE)
    if not place:
        raise DataError(
            "There is no data root to download into.",
            fix=f"Pass --data-root PATH or set {ROOT_VARIABLE}.",
        )
    with output.live() as progress:
        found, fetched = get_set(
            name,
            Path(os.path.expanduser(place)),
            url=url,
            progress=megabytes(progress, name),
        )
    output.result(
        {
            "name": found.name,
            "fetched": fetched,
            "folder": str(found.root),
            "clips": len(found.clips),
            "classes": len(found.labels),
            "folds": list(found.folds),
            "licence": found.licence,
            "source": found.source,
        }
    )
    output.table(
        f"{found.name}: complete, {'downloaded now' if fetched else 'already present'}",
        ("clips", "classes", "folds", "licence", "folder"),
        [(len(found.clips), len(found.labels), len(found.folds), found.licence, str(found.root))],
    )
    if os.environ.get(ROOT_VARIABLE) != str(found.root.parent):
        output.hint(f"export {ROOT_VARIABLE}={found.root.parent}")


def _row(state: SetStatus) -> tuple[object, ...]:
    present = "complete" if state.complete else "incomplete"
    return (
        state.info.name,
        present if state.folder is not None else "not found",
        state.info.clips,
        state.info.licence,
        state.info.source.removeprefix("https://"),
    )
