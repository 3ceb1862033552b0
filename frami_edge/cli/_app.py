"""What the commands share: how they are found, how they fail, and common options."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_command

from frami_edge.cli._errors import report

_COMPLETION = ("install_completion", "show_completion")
HELP_NAMES = {"help_option_names": ["-h", "--help"]}

Json = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on stdout, and no tables.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notes, hints and progress; warnings stay.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides everything left to chance.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a config value by its dotted key; repeatable."
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="RUN",
        help="Repeat this run: its config, seed, inputs and arithmetic. Exit code 3 and what "
        "differs where the result is another.",
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="On a GPU: kernels that give the same bits every time; slower."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    typer.Option("--precision", help="auto takes bf16 wherever the hardware has it."),
]


def command_app(**settings: Any) -> typer.Typer:
    """The `app` of a command's module.

    With one `@app.command(epilog=examples(...))` it is a command; with several, or a callback, it
    is a group of them.

    Args:
        settings: Of `typer.Typer`.
    """
    settings.setdefault("no_args_is_help", False)
    return typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings=HELP_NAMES,
        **settings,
    )


def examples(*commands: str) -> str:
    """An epilog that shows how a command is used, one line each."""
    lines = "\n\n".join(f"  $ {escape(command)}" for command in commands)
    return f"[bold]Examples[/bold]\n\n{lines}"


class CommandGroup(TyperGroup):
    """Imports a command's module when the command is used, and explains whatever it raises.

    The help of the group needs all of them, so no module may import torch at its top.
    """

    modules: ClassVar[Sequence[str]] = ()

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of `modules`."""
        return [_command_name(module) for module in self.modules]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported; None where there is none of that name."""
        for module in self.modules:
            if _command_name(module) == cmd_name and cmd_name not in self.commands:
                command = get_command(import_module(module).app)
                command.name = cmd_name
                # Completion belongs to the program, not to each of its commands.
                command.params = [p for p in command.params if p.name not in _COMPLETION]
                self.commands[cmd_name] = command
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As ever; an unknown name loads all commands, because Typer suggests a near one."""
        if args[0] not in self.list_commands(ctx):
            for name in self.list_commands(ctx):
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run, and turn every failure into its sentence and exit code; usage errors are Typer's."""
        try:
            return super().invoke(ctx)
        except (typer.TyperException, typer.Exit, typer.Abort, EOFError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(report(error)) from error


def _command_name(module: str) -> str:
    return module.rpartition(".")[2].replace("_", "-")
