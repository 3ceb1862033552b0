"""`frami-edge data`: which data sets are here, and how to get the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import Json, Quiet, command_app, examples
from frami_edge.cli._output import Output, Progress
from frami_edge.data.download import get_set
from frami_edge.data.sets import MEGABYTE, ROOT_VARIABLE, SetStatus, data_root, survey
from frami_edge.errors import DataError

app = command_app()

DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help=f"Folder that holds the sets; else ${ROOT_VARIABLE}."),
]


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "frami-edge data", "frami-edge data --data-root ~/sounds --json", "frami-edge data get fsdd"
    ),
)
def show(
    context: typer.Context, data_root: DataRoot = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Every known data set: is it here, is it whole, where does it come from."""
    if context.invoked_subcommand is not None:
        # So that both `data --data-root X get fsdd` and `data get fsdd --data-root X` work.
        context.obj = (data_root, json, quiet)
        return
    out = Output(json=json, quiet=quiet)
    root, why = _root(data_root)
    states = survey(root)
    out.result({"data_root": str(root) if root else None, "sets": [s.to_dict() for s in states]})
    out.table(
        f"Data sets under {root}" if root else "Known data sets",
        ("name", "state", "clips", "licence", "where from"),
        [_row(state) for state in states],
        caption="`frami-edge data get NAME` fetches one. Also: folder:PATH, a folder per class.",
    )
    if root is None:
        out.note(why)
    for state in states:
        if state.folder is not None and not state.complete:
            out.warn(state.problem)
    missing = next((s for s in states if s.folder is None and s.info.archive), None)
    if missing is not None:
        out.hint(missing.how)


@app.command(
    epilog=examples(
        "frami-edge data get fsdd --data-root ~/sounds",
        "frami-edge data get esc50 --url https://mirror.example/ESC-50.zip",
    )
)
def get(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A known set, as `frami-edge data` lists them.")],
    data_root: DataRoot = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Another address of the same archive.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a set, check that it is whole, and put it under the data root.

    An interrupted download goes on where it stopped if the server allows. A set that is there and
    complete is left alone.
    """
    outer_root, outer_json, outer_quiet = context.obj or (None, False, False)
    out = Output(json=json or outer_json, quiet=quiet or outer_quiet)
    with _Stages(out, name) as stages:
        arrival = get_set(name, _new_root(data_root or outer_root), url=url, report=stages.report)
    sound_set = arrival.sound_set
    out.result(
        {
            "name": sound_set.name,
            "fetched": arrival.fetched,
            "folder": str(sound_set.root),
            "clips": len(sound_set.clips),
            "classes": len(sound_set.labels),
            "folds": list(sound_set.folds),
            "licence": sound_set.licence,
            "source": sound_set.source,
        }
    )
    out.table(
        f"{sound_set.name} is {'here now' if arrival.fetched else 'here already'}, and complete",
        ("clips", "classes", "folds", "licence", "folder"),
        [
            (
                len(sound_set.clips),
                len(sound_set.labels),
                len(sound_set.folds),
                sound_set.licence,
                str(sound_set.root),
            )
        ],
    )
    if os.environ.get(ROOT_VARIABLE) != str(sound_set.root.parent):
        out.hint(f"export {ROOT_VARIABLE}={sound_set.root.parent}")


class _Stages:
    """One progress bar per stage, in megabytes."""

    def __init__(self, out: Output, name: str) -> None:
        self._out, self._name = out, name
        self._stage = ""
        self._bar: Progress | None = None

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def report(self, stage: str, done: int, total: int | None) -> None:
        if self._bar is None or stage != self._stage:
            self.__exit__()
            self._stage = stage
            megabytes = None if total is None else max(1, round(total / MEGABYTE))
            self._bar = self._out.progress(f"{stage} {self._name}, MB", megabytes, fields=())
            self._bar.__enter__()
        step = round(done / MEGABYTE) - self._bar.completed
        if step > 0:
            self._bar.update(step)


def _row(state: SetStatus) -> tuple[object, ...]:
    clips = f"{state.clips}/{state.info.clips}"
    here = "complete" if state.complete else "incomplete"
    source = state.info.source.removeprefix("https://")
    return (
        state.info.name,
        here if state.folder is not None else "not found",
        clips,
        state.info.licence,
        source,
    )


def _root(option: Path | None) -> tuple[Path | None, str]:
    """The data root for listing: none given is no error, a wrong one is."""
    if option is None and not os.environ.get(ROOT_VARIABLE):
        return None, f"No data root: pass --data-root PATH or set {ROOT_VARIABLE}."
    return data_root(option), ""


def _new_root(option: Path | None) -> Path:
    """The data root for a download, which need not exist yet."""
    value = option if option is not None else os.environ.get(ROOT_VARIABLE)
    if not value:
        raise DataError(
            "No data root is given, so there is no place for the download.",
            fix=f"Pass --data-root PATH or set {ROOT_VARIABLE}.",
        )
    return Path(value).expanduser()
