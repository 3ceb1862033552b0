"""`frami-edge push`: an export or a run to a model hub; private unless said otherwise."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frami_edge.cli._app import Json, Quiet, command_app, examples
from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge.hub import Plan

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge push runs/export me/dog-or-rain --dry-run",
        "frami-edge push runs/export me/dog-or-rain",
        "frami-edge push runs/student me/dog-or-rain-student --with-bank --public",
    )
)
def push(
    folder: Annotated[
        Path, typer.Argument(help="Of `frami-edge export`, `distill`, `train-teacher`.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the hub.")],
    public: Annotated[
        bool,
        typer.Option("--public", help="Everybody may read it; a new repository is private else."),
    ] = False,
    with_bank: Annotated[
        bool, typer.Option("--with-bank", help="Also the run's synthetic bank; it may be large.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent; no network, no token.")
    ] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="Of the commit.")] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    r"""Send model files, card, report and pictures to a hub repository, in one commit.

    Needs `pip install 'frami-edge\[hub]'` and a token. Audio, engines and states of runs are never
    sent; a file that holds a path of this machine is refused, and paths in a run's manifest are cut
    to names in the copy that is sent.
    """
    from frami_edge.hub import make_plan
    from frami_edge.hub.upload import check_repo_id
    from frami_edge.hub.upload import push as send

    output = Output(json=json, quiet=quiet)
    check_repo_id(repo_id)
    plan = make_plan(folder, with_bank=with_bank)
    for warning in plan.warnings:
        output.warn(warning)
    pushed = None if dry_run else send(plan, repo_id, public=public, message=message)
    output.result(
        {
            "folder": str(folder),
            "repo_id": repo_id,
            "kind": plan.kind,
            "sent": pushed is not None,
            "private": not public if pushed is None else pushed.private,
            "created": None if pushed is None else pushed.created,
            "url": None if pushed is None else pushed.url,
            "bytes": plan.bytes,
            "files": [{"name": i.name, "bytes": i.bytes, "note": i.note} for i in plan.items],
            "left_out": [{"name": left.name, "why": left.why} for left in plan.left_out],
            "warnings": list(plan.warnings),
        }
    )
    _show(plan, repo_id, output, sent=pushed is not None)
    if pushed is not None:
        seen = "only you and those you invite" if pushed.private else "everybody"
        output.note(f"{pushed.url} can be read by {seen}.")
        return
    again = ["frami-edge", "push", str(folder), repo_id]
    again += ["--with-bank"] * with_bank + ["--public"] * public
    output.note("Nothing was sent.")
    output.hint(shlex.join(again))


def _show(plan: Plan, repo_id: str, output: Output, *, sent: bool) -> None:
    rows: list[tuple[object, ...]] = [(i.name, f"{i.bytes / 1000:.1f}", i.note) for i in plan.items]
    rows.append(("in all", f"{plan.bytes / 1000:.1f}", f"{len(plan.items)} files"))
    verb = "Sent" if sent else "Would be sent"
    output.table(f"{verb} to {repo_id}: {plan.kind}", ("file", "kB", ""), rows)
    if plan.left_out:
        output.table("Stays here", ("file", "why"), _by_folder(plan))


def _by_folder(plan: Plan) -> list[tuple[str, str]]:
    """What stays, with a line for all files of a folder that stay for one reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in plan.left_out:
        place, slash, _ = one.name.rpartition("/")
        groups.setdefault((place + slash, one.why), []).append(one.name)
    rows = []
    for (place, why), names in groups.items():
        if place and len(names) > 1:
            rows.append((f"{place} ({len(names)} files)", why))
        else:
            rows += [(name, why) for name in names]
    return rows
