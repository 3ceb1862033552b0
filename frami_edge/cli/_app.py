"""What every command shares: how it is declared, how it fails, and its exit code."""

import errno
import functools
import inspect
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from typer.core import TyperGroup

from frami_edge.cli._options import OUTPUT
from frami_edge.cli._output import Output, print_json
from frami_edge.errors import Terminated
from frami_edge.yaml_config import describe
from frami_edge_runtime.errors import FramiEdgeError

FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
TERMINATED = 143
"""128 + SIGTERM."""
WORK_IS_KEPT = "The unfinished run is in"
"""How the note of an unfinished run begins, see `frami_edge.runs.RunFolder`."""
HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class Explanation(NamedTuple):
    """What the user reads, and the exit code."""

    message: str
    fix: str = ""
    exit_code: int = FAILED


def command_app(**settings: Any) -> typer.Typer:
    """The `app` of a command's module, which `frami_edge.cli` adds to the program."""
    return typer.Typer(add_completion=False, rich_markup_mode="rich", **settings)


def examples(*commands: str) -> str:
    """An epilog that shows how a command is used, one line each."""
    lines = "\n\n".join(f"  $ {escape(command)}" for command in commands)
    return f"[bold]Examples[/bold]\n\n{lines}"


def command(
    app: typer.Typer, *usage: str, shared: Sequence[inspect.Parameter] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function to the program as a command with `--json` and `--quiet`; `usage`: examples.

    The function receives its own options, an `Output` as `output`, and the values of the shared
    options in one dictionary as `given`.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()

        @functools.wraps(function)
        def run(**values: Any) -> None:
            output = Output(json=values.pop("json"), quiet=values.pop("quiet"))
            given = {option.name: values.pop(option.name) for option in shared}
            function(output=output, **({"given": given} if shared else {}), **values)

        options = [p for p in own if p.name not in ("output", "given")]
        run.__signature__ = inspect.Signature([*options, *shared, *OUTPUT])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        app.command(epilog=examples(*usage))(run)
        return function

    return add


class CommandGroup(TyperGroup):
    """The program: turns every failure of a command into a sentence, a fix and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options of the program."""
        ctx.meta["json"] = "--json" in args
        Output.printed = False
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, EOFError):
            raise
        except typer.TyperException as error:  # wrong usage, which Typer prints itself
            if ctx.meta["json"]:
                print_json(_failure(Explanation(error.format_message(), "", error.exit_code)))
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(report(error, json=ctx.meta["json"])) from error


def report(error: BaseException, *, json: bool = False) -> int:
    """Explain an error on stderr, with `json` also on stdout; returns the exit code.

    With FRAMI_DEBUG=1 the traceback comes first. Notes of the exception (`add_note`) follow the
    message.
    """
    if isinstance(error, BrokenPipeError):
        # The reader of the pipe (`| head`) is gone; flushing at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    if os.environ.get("FRAMI_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)
    found = explain(error)
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), found.message), soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        console.print(Text(note), soft_wrap=True)
        if note.startswith(WORK_IS_KEPT):
            console.print(Text(f"continue with: {resume_command()}"), soft_wrap=True)
    if found.fix:
        console.print(Text.assemble(("fix: ", "bold green"), found.fix), soft_wrap=True)
    if json and not Output.printed:
        print_json(_failure(found, type(error).__name__))
    return found.exit_code


def _failure(found: Explanation, kind: str = "UsageError") -> dict[str, Any]:
    return {
        "error": {
            "kind": kind,
            "message": found.message,
            "fix": found.fix,
            "exit_code": found.exit_code,
        }
    }


def explain(error: BaseException) -> Explanation:
    """The table from exceptions to sentences."""
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
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "A file"
        problem, fix = _SYSTEM.get(error.errno, (f"{error.strerror}", "Check the path."))
        return Explanation(f"{name}: {problem}.", fix)
    # Torch raises types of its own; naming them here keeps torch unimported.
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or "can't allocate memory" in str(error):
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


_FULL = ("no space is left on the disk", "Free some space, or use a folder on another disk.")
_DENIED = ("permission denied", "Change its permissions, or give another place.")
_SYSTEM = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: ("larger than files may be here", "Raise `ulimit -f`, or give another place."),
    errno.EROFS: ("the file system is read-only", "Give a folder that can be written."),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOENT: ("no such file or folder", "Check the path."),
    errno.EISDIR: ("a folder, not a file", "Give the path of a file."),
    errno.ENOTDIR: ("not a folder, or below a file", "Check the path."),
}
"""What happened and the fix, by error number."""


def resume_command() -> str:
    """The command as it was typed, with --resume."""
    typed = ["frami-edge", *sys.argv[1:]]
    return shlex.join(typed if "--resume" in typed else [*typed, "--resume"])


def catch_sigterm() -> None:
    """Turn the first SIGTERM into `Terminated`; a second one ends the process at once."""
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != process:  # a forked data worker ends as if nothing had been installed
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise Terminated

    signal.signal(signal.SIGTERM, handle)
