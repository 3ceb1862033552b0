"""The run folder as the processes see it that do not write."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, cast

import typer

from frami_edge.cli._output import Output
from frami_edge.distributed import broadcast, lost_processes, world
from frami_edge.errors import ConfigError
from frami_edge.runs import RunFolder

if TYPE_CHECKING:
    from frami_edge.checkpoint import Teacher
    from frami_edge.config import JourneyConfig
    from frami_edge.device import Compute
    from frami_edge.teachers.opening import TeacherDescription


# --- What `invert`, `distill` and `quickstart` share: options, and how a config is read

Sources = Annotated[
    str | None,
    typer.Option(
        "--sources",
        help="Mix of the bank by weight, such as 'inversion' alone or "
        "'inversion=2,procedural=1'. Replaces bank.sources.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, to the same result.")
]


def parse_sources(text: str) -> dict[str, float]:
    """`a=2,b` to {a: 2.0, b: 1.0}.

    Raises:
        ConfigError: Not of this form.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            weight = float(value) if value else 1.0
        except ValueError:
            weight = math.nan
        if not name.isidentifier() or not math.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"--sources {text!r}: {part.strip()!r} is not NAME or NAME=WEIGHT.",
                fix="Write it like --sources inversion=2,procedural=1.",
            )
        shares[name] = weight
    return shares


def journey_config(
    name: str, overrides: list[str] | None, sources: str | None, seed: int | None
) -> JourneyConfig:
    """The configuration of a run, with everything that the command line changes in it."""
    from frami_edge.config import JourneyConfig, load_config

    changes = list(overrides or [])
    if sources is not None:
        mix = ", ".join(f"{k}: {v}" for k, v in parse_sources(sources).items())
        changes.append(f"bank.sources={{{mix}}}")
    if seed is not None:
        changes.append(f"seed={seed}")
    return load_config(JourneyConfig, name, changes)


def journey_device(requested: str, precision: Literal["auto", "bf16", "fp32"]) -> Compute:
    """Device and precision of inversion and distillation, of this process."""
    from frami_edge.device import choose_compute
    from frami_edge.distributed import rank_device

    return choose_compute(rank_device(requested), precision)


def resume_command() -> str:
    """What continues this run: the command as it was typed, with --resume."""
    from frami_edge.runs import command_line

    typed = command_line()
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if here != "1":
        typed = ["torchrun", "--nproc-per-node", here, "-m", "frami_edge", *typed[1:]]
    return shlex.join(typed if "--resume" in typed else [*typed, "--resume"])


# --- How a command takes a teacher: our checkpoint, a YAML description, or a module with its fil

PANEL = "A teacher in Python code"

TeacherOption = Annotated[
    str,
    typer.Option(
        "--teacher",
        metavar="FILE|MODULE:CALLABLE",
        help="teacher.safetensors of train-teacher, a YAML description of a teacher, or the "
        "callable that builds one.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Its safetensors, or torch file of tensors.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Mel = Annotated[
    str | None,
    typer.Option("--mel", help="Its front end: YAML with the keys of MelSpec, or a preset.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="Its class names, one a line, in the order of the logits.",
                 rich_help_panel=PANEL),
]  # fmt: skip
TeacherArgs = Annotated[
    list[str] | None,
    typer.Option("--teacher-arg", metavar="NAME=VALUE", help="For the callable; repeatable.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Frames = Annotated[
    str | None,
    typer.Option("--frames", metavar="PATH", help="Module that gives the last hidden state over "
                 "time (PATH@in: takes it); found where unambiguous.", rich_help_panel=PANEL),
]  # fmt: skip
Pooled = Annotated[
    str | None,
    typer.Option("--pooled", metavar="PATH", help="Module that gives the first hidden state "
                 "without time (PATH@in: takes it); found where unambiguous.",
                 rich_help_panel=PANEL),
]  # fmt: skip
Layout = Annotated[
    str | None,
    typer.Option("--layout", metavar="AXES", help="Order of its input's axes, where several fit: "
                 "B1MT, BMT, B1TM, BTM, B3MT or B3TM (batch, channels, mel bands, time).",
                 rich_help_panel=PANEL),
]  # fmt: skip


def teacher_source(
    source: str,
    weights: Path | None = None,
    mel: str | None = None,
    labels: Path | None = None,
    arguments: list[str] | None = None,
    frames: str | None = None,
    pooled: str | None = None,
    layout: str | None = None,
) -> Path | TeacherDescription:
    """What the options name, for `teachers.opening.open_teacher`.

    Raises:
        ConfigError: The options do not go together, or the description has mistakes.
    """
    from frami_edge.teachers.opening import description_of

    given = {"--weights": weights, "--mel": mel, "--labels": labels}
    more = {"--teacher-arg": arguments, "--frames": frames, "--pooled": pooled,
            "--layout": layout}  # fmt: skip
    if not is_code(source):
        unused = [name for name, value in (given | more).items() if value]
        if unused:
            raise ConfigError(
                f"{', '.join(unused)} describe a teacher in Python code, and --teacher {source} is "
                "a file that says these things itself.",
                fix="Leave them out, or give --teacher MODULE:CALLABLE.",
            )
        return Path(source)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ConfigError(
            f"--teacher {source} is Python code, and {', '.join(missing)} is not given.",
            fix="Give --weights, --mel and --labels with it.",
        )
    return description_of(
        factory=source,
        arguments=_arguments(arguments or []),
        weights=str(weights),
        mel=mel,
        labels=str(labels),
        frames=frames,
        pooled=pooled,
        layout=layout or "auto",
    )


def say_doubts(teacher: Teacher, out: Output) -> None:
    """Warn of what was assumed about a teacher that is not ours."""
    from frami_edge.teachers.foreign import ForeignTeacher

    if isinstance(teacher.model, ForeignTeacher):
        for sentence in teacher.model.doubts:
            out.warn(sentence)


def teacher_file(source: Path | TeacherDescription) -> Path:
    """The file whose hash a run folder keeps."""
    return source if isinstance(source, Path) else Path(source.weights)


def describe_in(run: RunFolder, source: Path | TeacherDescription) -> str:
    """Write a teacher in Python code into a run as ``teacher.yaml``; how to name the teacher next.

    A checkpoint, or a description that is a file, is named as it is.
    """
    from frami_edge.teachers.opening import write_description

    if isinstance(source, Path):
        return str(source)
    path = run.path("teacher.yaml")
    write_description(path, source)
    return str(path)


def is_code(source: str) -> bool:
    """`module:callable`, and not a path."""
    return ":" in source and not Path(source).exists()


def _arguments(texts: list[str]) -> dict[str, Any]:
    from frami_edge import config as _yaml

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--teacher-arg {text!r} is not NAME=VALUE.", fix="Write it like width=64."
            )
        try:
            found[name] = _yaml.parse(value)
        except ValueError as error:
            raise ConfigError(f"--teacher-arg {text!r}: {error}.", fix="Quote it.") from None
    return found


# --- A command under torchrun: every process runs it, rank 0 alone speaks and writes

Command = TypeVar("Command", bound=Callable[..., None])

SILENCE_S = 3.0
"""How long a process that failed lets rank 0 say why; if rank 0 fails too, torchrun ends us."""


def on_every_rank(command: Command) -> Command:
    """Let a command with an option ``device`` run under torchrun; alone it is as it was."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return command(**options)
        if os.environ.get("RANK") == "0":
            return _joined(command, options)
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            try:
                return _joined(command, options)
            except KeyboardInterrupt:
                # Torchrun ends this process because of another, which has said why.
                pass
            except Exception as error:
                # A sentence that rank 0 has said, too, is not repeated: torchrun ends us first.
                with contextlib.suppress(KeyboardInterrupt):
                    if type(error).__name__ != "LostProcessError":
                        _say(error)
        # Without the clean-up of a group of which a part is gone.
        os._exit(1)

    return cast(Command, run)


def _joined(command: Callable[..., None], options: dict[str, Any]) -> None:
    from frami_edge.distributed import joined, lost_processes, rank_device

    with joined(rank_device(options["device"])), lost_processes():
        command(**options)


def _say(error: Exception) -> None:
    from frami_edge.cli._app import report

    time.sleep(SILENCE_S)
    with contextlib.redirect_stderr(sys.__stderr__):
        sys.stderr.write(f"process {os.environ.get('RANK')} of the run: ")
        sys.stderr.flush()
        report(error)
        sys.stderr.flush()


# --- The run folder as the processes see it that do not write


class FollowerRun(RunFolder):
    """A run that rank 0 holds: its paths can be read, everything else does nothing.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.resumed, self.resume_hint = folder, False, ""

    def path(self, name: str) -> Path:
        """A place inside the folder, which rank 0 makes."""
        return self.folder / name

    def log(self, *, step: int, **metrics: Any) -> None:
        """Nothing: rank 0 logs what is the same everywhere."""

    def metrics(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def rewind(self, step: int, **match: Any) -> None:
        """Nothing."""

    def record(self, **facts: Any) -> None:
        """Nothing."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Empty."""
        return {"seconds": {}}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """The block, untimed."""
        yield

    def __enter__(self) -> Self:
        """The run."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing: rank 0 writes the status."""


@contextmanager
def shared_run(path: str | os.PathLike[str], **settings: Any) -> Iterator[RunFolder]:
    """`RunFolder.create` on rank 0; the others follow once it has the folder.

    Raises:
        RunError: As `RunFolder.create`; or another process has gone, which the run then says.
    """
    run = RunFolder.create(path, **settings) if world().main else FollowerRun(Path(path))
    with run, lost_processes():
        broadcast(None)
        yield run
