"""`frami-edge listen`: the runtime's `frami-edge-listen`, with the same options and output."""

from __future__ import annotations

import typer

from frami_edge.cli._app import command_app

app = command_app()


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],  # --help, too, is answered by the runtime's program
    }
)
def listen(context: typer.Context) -> None:
    """Listen to a microphone, a file or a pipe: level, top classes and events."""
    from frami_edge_runtime.listen import main

    raise typer.Exit(main(context.args, prog="frami-edge listen"))
