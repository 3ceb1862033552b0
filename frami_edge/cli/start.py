"""`frami-edge quickstart`, `doctor` and `data`: what a newcomer runs first."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import Output, command, command_app, examples
from frami_edge.data.sets import ROOT_VARIABLE, SetStatus, data_root, get_set, survey
from frami_edge.errors import DataError, GateFailed
from frami_edge.progress import Progress

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
    if not output.json:
        typer.echo(as_text(checks))
    if blocking := [check for check in checks if check.blocks]:
        fixes = "; ".join(f"{check.name}: {check.fix}" for check in blocking[:3])
        raise GateFailed(verdict(checks, "training"), fix=fixes)
    output.note(verdict(checks, "training"))
    output.hint("frami-edge quickstart --out runs/quickstart")


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

        def report(update: Progress) -> None:
            if progress:
                done, total = (round((n or 0) / 1e6) for n in (update.done, update.total))
                progress(Progress(f"{update.phase} {name}, MB", done, total or None))

        found, fetched = get_set(name, Path(os.path.expanduser(place)), url=url, progress=report)
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
