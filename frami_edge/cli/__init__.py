"""The command line `frami-edge`: one module a command, torch imported inside it."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from frami_edge import __version__
from frami_edge.cli._app import HELP_NAMES, CommandGroup, catch_sigterm

__all__ = ["app", "main"]


class _Commands(CommandGroup):
    # The order of the help. A module has an `app` made by `command_app`; its name is the command's.
    modules = (
        "frami_edge.cli.quickstart",
        "frami_edge.cli.train_teacher",
        "frami_edge.cli.invert",
        "frami_edge.cli.distill",
        "frami_edge.cli.evaluate",
        "frami_edge.cli.export",
        "frami_edge.cli.verify",
        "frami_edge.cli.bench",
        "frami_edge.cli.inspect",
        "frami_edge.cli.listen",
        "frami_edge.cli.data",
        "frami_edge.cli.doctor",
    )


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings=HELP_NAMES,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frami-edge {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 done, 1 a known error, 2 wrong usage, 3 a gate failed.")
def _frami_edge(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """A trained sound classifier goes in, no audio with it, and a small int8 model comes out.

    Results go to stdout, everything else to stderr. FRAMI_DEBUG=1 shows tracebacks.
    """


def main() -> None:
    """The console entry point."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (`>&-`) or a service manager
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name or label that the terminal's encoding lacks must not end a run.
            stream.reconfigure(errors="backslashreplace")
    catch_sigterm()
    app(prog_name="frami-edge")
