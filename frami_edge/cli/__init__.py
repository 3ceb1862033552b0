"""The command line `frami-edge`: parses, calls `frami_edge.api`, prints."""

import io
import os
import sys
from typing import Annotated

import typer

from frami_edge import __version__
from frami_edge.cli import distill, export, models, start
from frami_edge.cli._app import HELP_NAMES, CommandGroup, catch_sigterm

__all__ = ["app", "main"]

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP_NAMES,
)
# In the order of the help. No module imports torch at its top.
app.add_typer(start.app)
app.add_typer(start.data_app, name="data")
for command in (distill, export, models):
    app.add_typer(command.app)


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
    """Turn a trained sound classifier into a small int8 model for a device, without audio.

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
    if int(os.environ.get("RANK", "0")):  # torchrun: beside rank 0 only errors are printed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.argv.append("--quiet")
    catch_sigterm()
    app(prog_name="frami-edge")
