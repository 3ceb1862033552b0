"""`frami-edge data`: lists the data sets, and downloads one."""

import os
from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command_app, examples
from frami_edge.cli._output import Output, megabytes
from frami_edge.data.download import get_set
from frami_edge.data.sets import ROOT_VARIABLE, SetStatus, data_root, survey
from frami_edge.errors import DataError

app = command_app()


@app.callback(
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


@app.command(
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
        root = Path(os.path.expanduser(place))
        arrival = get_set(name, root, url=url, progress=megabytes(progress, name))
    found = arrival.sound_set
    output.result(
        {
            "name": found.name,
            "fetched": arrival.fetched,
            "folder": str(found.root),
            "clips": len(found.clips),
            "classes": len(found.labels),
            "folds": list(found.folds),
            "licence": found.licence,
            "source": found.source,
        }
    )
    output.table(
        f"{found.name}: complete, {'downloaded now' if arrival.fetched else 'already present'}",
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
