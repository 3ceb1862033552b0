"""What every command shares: how it is declared, what it prints, how it fails, its exit code."""

import contextlib
import errno
import functools
import inspect
import logging
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, ClassVar, NamedTuple, TextIO

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text
from typer.core import TyperGroup

from frami_edge.cli._options import OUTPUT
from frami_edge.errors import Terminated
from frami_edge.io import json_text, plain
from frami_edge.progress import Progress, ProgressCallback
from frami_edge.tables import WIDTH, Table, show
from frami_edge.yaml_config import describe
from frami_edge_runtime.errors import FramiEdgeError

SCHEMA = 1
"""Version of every JSON object on stdout."""
LINE_SHARE = 0.1
"""Share of the work after which a log gets a line."""
LINE_SECONDS = 60.0
"""Seconds after which a log gets a line in any case."""
BAR_REFRESH_HZ = 4.0
"""Redraws per second; more would take time from training on two cores."""
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
            with contextlib.redirect_stdout(sys.stderr):  # what somebody's network prints is talk
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


# --- The one sink of every command: results on stdout, everything else on stderr


class Output:
    """Prints what a command found, and its notes, warnings and progress.

    What domain code logs under `frami_edge` is shown as notes and warnings. `json`: one JSON object
    instead of tables. `quiet`: no notes, hints and progress.
    """

    printed: ClassVar[bool] = False
    """Whether the JSON object of the running command is printed."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        Output.printed = False
        self._out, self._err = sys.stdout, Console(stderr=True, highlight=False)
        logger = logging.getLogger("frami_edge")
        logger.handlers = [_Handler(self)]
        logger.setLevel(logging.INFO)

    def result(self, obj: BaseModel | Mapping[str, object]) -> None:
        """Print the command's result with `--json`; do nothing otherwise.

        Raises:
            RuntimeError: There was a result already, and one JSON object is promised.
        """
        if self.json:
            print_json(plain(obj), self._out)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str | None = None,
    ) -> None:
        """Print a table on stdout, see `frami_edge.tables.Table`; do nothing with `--json`."""
        self.tables([Table(title, columns, rows, caption or "")])

    def tables(self, tables: Iterable[Table]) -> None:
        """Print tables on stdout; do nothing with `--json`."""
        if not self.json:
            width = None if self._out.isatty() else WIDTH
            console = Console(file=self._out, highlight=False, width=width)
            for table in tables:
                table.draw(console)

    def text(self, text: str) -> None:
        """Print plain text on stdout; do nothing with `--json`."""
        if not self.json:
            typer.echo(text, file=self._out)

    def note(self, text: str) -> None:
        """Print information on stderr."""
        if not self.quiet:
            self._say(Text(text))

    def warn(self, text: str) -> None:
        """Print a warning on stderr, also with `--quiet`."""
        self._say(Text.assemble(("warning: ", "bold yellow"), text))

    def hint(self, next_command: str) -> None:
        """Print the command to run next on stderr, on one line so that it can be copied."""
        if not self.quiet:
            self._say(Text.assemble(("next: ", "dim"), (next_command, "bold")))

    @contextlib.contextmanager
    def live(self) -> Iterator[ProgressCallback | None]:
        """A callback that shows progress on stderr: a bar on a terminal, lines on a pipe."""
        terminal = self._err.is_terminal
        if self.quiet or (self.json and not terminal):
            yield None
            return
        shown = Bars(self._err) if terminal else Lines(self._say)
        try:
            yield shown
        finally:
            shown.close()

    def _say(self, text: Text | str) -> None:
        # A wrapped path or command cannot be copied.
        self._err.print(Text(text) if isinstance(text, str) else text, soft_wrap=True)


def megabytes(show: ProgressCallback | None, name: str) -> ProgressCallback | None:
    """The callback for a download of `name`, whose progress counts bytes."""
    if show is None:
        return None

    def report(update: Progress) -> None:
        done, total = (round((n or 0) / 1e6) for n in (update.done, update.total))
        show(Progress(f"{update.phase} {name}, MB", done, total or None))

    return report


def print_json(obj: Mapping[str, Any], file: TextIO | None = None) -> None:
    """Print the one JSON object of a command on stdout, or to what stdout was.

    Raises:
        RuntimeError: There was one already.
    """
    if Output.printed:
        raise RuntimeError("a command has one result")
    Output.printed = True
    file = file or sys.stdout
    file.write(json_text({"schema": SCHEMA, **obj}) + "\n")
    file.flush()


class _Handler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        urgent = record.levelno >= logging.WARNING
        (self.output.warn if urgent else self.output.note)(record.getMessage())


class _Phases:
    """Tells where a phase begins: by its name, or because it counts from the start again."""

    def __init__(self) -> None:
        self._last: dict[str, Progress] = {}

    def _begins(self, progress: Progress) -> bool:
        last = self._last.get(progress.phase)
        self._last[progress.phase] = progress
        return last is None or progress.done < last.done


class Bars(_Phases):
    """A live bar per phase, with count, elapsed time, time left and metrics."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        """Show one update."""
        begins, bars = self._begins(progress), self._bars
        if bars is None or (begins and all(t.finished or t.total is None for t in bars.tasks)):
            self.close()
            bars = self._bars = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[metrics]}", style="cyan", markup=False),
                console=self._console,
                refresh_per_second=BAR_REFRESH_HZ,
                redirect_stdout=False,  # results keep going to stdout
                expand=True,
            )
            bars.start()
            begins = True
        if begins:  # beside phases that are still running
            self._tasks[progress.phase] = bars.add_task(progress.phase, total=None, metrics="")
        bars.update(
            self._tasks[progress.phase],
            completed=progress.done,
            total=progress.total,
            metrics=_figures(progress.metrics),
        )

    def close(self) -> None:
        """Draw the bars a last time and give the cursor back."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class Lines(_Phases):
    """A plain line at every tenth of a phase, and at least once a minute."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._say, self._clock = say, clock
        self._starts: dict[str, tuple[float, int]] = {}
        self._lines: dict[str, tuple[float, int]] = {}

    def __call__(self, progress: Progress) -> None:
        """Print a line where one is due."""
        now, phase, total = self._clock(), progress.phase, progress.total
        if self._begins(progress):
            self._starts[phase] = now, progress.done - 1
            self._lines[phase] = now, _tenth(progress.done - 1, total)
        tenth, (line, last) = _tenth(progress.done, total), self._lines[phase]
        if tenth == last and now - line < LINE_SECONDS:
            return
        self._lines[phase] = now, tenth
        start, first = self._starts[phase]
        elapsed = now - start
        parts = [f"{phase} {progress.done}"]
        if total:
            parts[0] += f"/{total} ({progress.done / total:.0%})"
        parts.append(f"{_minutes(elapsed)} elapsed")
        if total and progress.done < total:
            left = elapsed / (progress.done - first) * (total - progress.done)
            parts.append(f"{_minutes(left)} left")
        if figures := _figures(progress.metrics):
            parts.append(figures)
        self._say(", ".join(parts))

    def close(self) -> None:
        """Nothing is left to do: every line is printed."""


def _tenth(done: int, total: int | None) -> int:
    return int(done / total / LINE_SHARE + 1e-9) if total else 0


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in metrics.items())


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
