"""What the commands share: how they are found, how they fail, and common options."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from typer.core import TyperGroup
from typer.main import get_command

from frami_edge.config import describe
from frami_edge.errors import Terminated
from frami_edge_runtime.errors import FramiEdgeError

# --- From an exception to a sentence, its fix and an exit code

FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, what shells use."""
TERMINATED = 143
"""128 + SIGTERM."""


class Explanation(NamedTuple):
    """What the user reads, and what the shell gets."""

    message: str
    fix: str
    exit_code: int = FAILED


def report(error: BaseException) -> int:
    """Explain `error` on stderr; with FRAMI_DEBUG=1 the traceback comes first.

    Notes that were added to the exception (`add_note`) follow the message: a run folder says there
    how to resume.

    Returns:
        The exit code.
    """
    if isinstance(error, BrokenPipeError):
        # The reader of the pipe (`| head`) has gone; flushing at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    if os.environ.get("FRAMI_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)
    message, fix, code = explain(error)
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        console.print(Text(note), soft_wrap=True)
    if fix:
        console.print(Text.assemble(("fix: ", "bold green"), fix), soft_wrap=True)
    return code


def explain(error: BaseException) -> Explanation:
    """The table from exception to sentence."""
    if isinstance(error, FramiEdgeError):
        return Explanation(error.message, error.fix, error.exit_code)
    if isinstance(error, Terminated):
        return Explanation("The run was terminated.", "", TERMINATED)
    if isinstance(error, KeyboardInterrupt):
        return Explanation(str(error) or "Interrupted.", "", INTERRUPTED)
    if isinstance(error, ValidationError):
        lines = "".join(f"\n  {line}" for line in describe(error))
        return Explanation(f"{error.title} is not valid:{lines}", "Correct the keys named above.")
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error)
    if _is_out_of_memory(error):
        where = "GPU memory" if "cuda" in str(error).lower() else "memory"
        return Explanation(
            f"There is not enough {where}.",
            "Use a smaller batch size, or end other programs that hold memory.",
        )
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return Explanation(
        f"Internal error: {type(error).__name__}: {first}",
        "Run it again with FRAMI_DEBUG=1 to see where it happened, and report it.",
    )


def catch_sigterm() -> None:
    """Turn the first SIGTERM into `Terminated`; a second one ends the process at once."""
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != process:  # a forked data worker: end it as if nothing had been installed
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise Terminated

    signal.signal(signal.SIGTERM, handle)


def _of_the_system(error: OSError) -> Explanation:
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "A file"
    kind = error.errno
    if kind == errno.EFBIG and error.strerror == os.strerror(errno.EFBIG):
        what, fix = "it would be larger than files may be here", "Raise `ulimit -f`"
        return Explanation(
            f"{name} could not be written: {what}.", f"{fix}, or give another place."
        )
    if kind in (errno.ENOSPC, errno.EDQUOT):
        what, fix = "no space is left there", "Free some space, or give a folder on another disk"
        return Explanation(f"{name} could not be written: {what}.", f"{fix}.")
    if kind == errno.EROFS:
        what = "lies on a read-only file system"
        return Explanation(f"{name} {what}.", "Give a folder that can be written.")
    if kind in (errno.EACCES, errno.EPERM):
        what = "may not be read or written by this user"
        return Explanation(f"{name} {what}.", "Change its permissions, or give another place.")
    if kind == errno.ENOENT:
        return Explanation(f"{name} does not exist.", "Check the path.")
    if kind == errno.EISDIR:
        return Explanation(f"{name} is a folder, not a file.", "Give the path of a file.")
    if kind == errno.ENOTDIR:
        return Explanation(f"{name} is no folder, or lies below a file.", "Check the path.")
    return Explanation(f"{name}: {error.strerror}.", "Check the path and the disk.")


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch raises its own types, which are known by name and words to keep torch unimported."""
    named = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or named or "can't allocate memory" in str(error)


# --- What the commands share: how they are found, how they fail, and common options

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
