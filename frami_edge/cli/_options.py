"""Options that several commands share, and how they become arguments of `frami_edge.api`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from frami_edge.config import JourneyConfig
from frami_edge.errors import ConfigError
from frami_edge.io import read_small
from frami_edge.yaml_config import load_config, parse, parse_override

if TYPE_CHECKING:
    from frami_edge.checkpoint import Teacher

Json = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on stdout instead of tables.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no notes, hints and progress; warnings stay.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seeds everything random.")]
NewSeed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Seeds everything random.", show_default="the config's"),
]
Config = Annotated[str, typer.Argument(help="YAML file, or the name of a preset.")]
Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONFIG]",
        help="YAML file, or the name of a preset.",
        show_default="sizes that fit the teacher",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a config value by its dotted key. Repeatable."
    ),
]
Sources = Annotated[
    str | None,
    typer.Option(
        "--sources",
        metavar="NAME[=WEIGHT],...",
        help="Sources of the bank and their weights, such as inversion=2,procedural=1.",
        show_default="bank.sources of the config",
    ),
]
Recordings = Annotated[
    Path | None,
    typer.Option(
        "--recordings",
        metavar="FOLDER",
        help="Also learn from your own unlabelled audio in this folder: the source recordings.",
        show_default="no real audio",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out where it was interrupted.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete an earlier run in --out first.")
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="On a GPU: use kernels that give the same bits every time; slower."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    typer.Option("--precision", help="auto takes bf16 where the hardware supports it."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", help="Folder that holds the data sets.", show_default="$FRAMI_EDGE_DATA"
    ),
]
AllowPartial = Annotated[
    bool,
    typer.Option(
        "--allow-partial",
        help="Use the clips that are there where a known set is incomplete. Results name it "
        "NAME-part.",
    ),
]
Fold = Annotated[
    str | None,
    typer.Option(
        "--fold",
        help="Test fold, or all for a set that the teacher was not trained on.",
        show_default="the one that the teacher held out",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend", help="Backend of streaming files: auto, cpu, cuda, tensorrt-ep or tensorrt."
    ),
]


def read_recipe(
    config: str | None, overrides: Sequence[str] | None
) -> tuple[JourneyConfig | None, dict[str, Any]]:
    """The config with its overrides; without one, None and the overrides by dotted key.

    Raises:
        ConfigError: There are mistakes.
    """
    if config is not None:
        return load_config(JourneyConfig, config, overrides or ()), {}
    try:
        return None, dict(map(parse_override, overrides or ()))
    except ValueError as error:
        raise ConfigError(f"{error}.", fix="Write it like --set distill.steps=800.") from None


# --- A teacher: a checkpoint, a YAML description, or Python code or an ONNX file with its facts

PANEL = "A teacher in Python code or ONNX"

TeacherOption = Annotated[
    str,
    typer.Option(
        "--teacher",
        metavar="FILE|MODULE:CALLABLE|hf:NAME",
        help="Checkpoint of train-teacher, YAML description of a teacher, ONNX file, Python "
        "callable that builds one, or hf: with a folder or repository of Hugging Face.",
    ),
]


def options(**named: tuple[Any, Any]) -> list[inspect.Parameter]:
    """Options for `command(shared=...)`: name=(annotation, default)."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(name, kind, annotation=annotation, default=default)
        for name, (annotation, default) in named.items()
    ]


def _fact(kind: Any, option: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """Annotation and default of an option that may be left out."""
    return Annotated[kind | None, typer.Option(option, metavar=metavar, help=help, **more)], None


def _code(*args: Any, default: str | None = None, **more: Any) -> Any:
    return _fact(*args, rich_help_panel=PANEL, show_default=default or True, **more)


FOUND = "found automatically"
OUTPUT = options(json=(Json, False), quiet=(Quiet, False))
COMPUTE = options(device=(Device, "auto"), precision=(Precision, "auto"))
RUN = [*options(resume=(Resume, False), deterministic=(Deterministic, False)), *COMPUTE]
CODE = options(
    weights=_code(Path, "--weights", "Weights: safetensors, or a torch file."),
    mel=_code(str, "--mel", "Mel front end: YAML file with the keys of MelSpec, or a preset."),
    sample_rate=_code(
        int,
        "--sample-rate",
        "Sample rate of a module that takes audio, instead of --mel.",
        "HZ",
        min=1000,
        max=768_000,
    ),
    labels=_code(Path, "--labels", "Class names, one per line, in the order of the logits."),
    arguments=_code(
        list[str], "--teacher-arg", "Argument of the callable. Repeatable.", "NAME=VALUE"
    ),
    frames=_code(
        str,
        "--frames",
        "Module whose output is the last hidden state over time; MODULE@in for its input.",
        "MODULE",
        default=FOUND,
    ),
    pooled=_code(
        str,
        "--pooled",
        "Module whose output is the first hidden state without time; MODULE@in for its input.",
        "MODULE",
        default=FOUND,
    ),
    layout=_code(
        str,
        "--layout",
        "Axes of the input: B1MT, BMT, B1TM, BTM, B3MT or B3TM (batch, channels, mel bands, time); "
        "BN or B1N (samples).",
        "AXES",
        default=FOUND,
    ),
    output_kind=_code(
        Literal["softmax", "sigmoid"],
        "--output",
        "How its logits become scores: softmax for one of K classes, sigmoid for K detectors.",
        default="guessed from its answers",
    ),
)
"""What describes a teacher in Python code: arguments of `frami_edge.load_teacher`."""
KEEP = options(
    keep=_fact(
        list[str],
        "--keep",
        "Classes that the student shall know, by label or index; NAME=... makes one of several. "
        "Repeatable. A softmax teacher's other classes become `other`.",
        "CLASS,...|NAME=CLASS,...",
        show_default="all",
    ),
    keep_file=_fact(Path, "--keep-file", "Text file with one value of --keep per line."),
)
TEACHER = [*CODE, *KEEP]
"""Any teacher, with the selection of its classes."""


def open_teacher(teacher: str, given: dict[str, Any]) -> Teacher:
    """The teacher that the options name, which are removed; raises as `load_teacher`."""
    from frami_edge.api import load_teacher

    keep, file = given.pop("keep", None), given.pop("keep_file", None)
    if file:
        lines = read_lines(file)
        keep = [*(keep or ()), *lines]
    return load_teacher(teacher, keep=keep or None, **code_arguments(given))


def keep_text(teacher: Teacher) -> str:
    """The selection of classes as options of the next command."""
    groups = (teacher.card.keep or {}).items()
    return "".join(f' --keep "{name}={",".join(members)}"' for name, members in groups)


def read_lines(file: Path) -> list[str]:
    """Lines of a text file; empty ones and comments after # are left out.

    Raises:
        ConfigError: It cannot be read, or has no line.
    """
    try:
        text = read_small(file, 10_000_000).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file} cannot be read: {reason}.", fix="Give a text file.") from None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ConfigError(f"{file} is empty.", fix="Write one class per line.")
    return lines


def code_words(given: Mapping[str, Any]) -> list[str]:
    """The options of `CODE` as they were given, for the next command."""
    words: list[str] = []
    for option in CODE:
        value, (fact,) = given[option.name], option.annotation.__metadata__
        flag = fact.default  # where Typer keeps the first word of an annotated option
        values = value if isinstance(value, list) else [] if value is None else [value]
        words += [word for one in values for word in (flag, str(one))]
    return words


def code_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The options of `CODE`, which are removed, as arguments of `load_teacher`.

    Raises:
        ConfigError: An argument of the callable is not NAME=VALUE.
    """
    code = {option.name: given.pop(option.name) for option in CODE}
    arguments: dict[str, Any] = {}
    for text in code.pop("arguments") or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--teacher-arg {text!r} is not NAME=VALUE.", fix="Write it like width=64."
            )
        try:
            arguments[name] = parse(value)
        except ValueError as error:
            raise ConfigError(f"--teacher-arg {text!r}: {error}.", fix="Quote it.") from None
    return {"arguments": arguments or None, "output": code.pop("output_kind"), **code}


def parse_sources(
    text: str | None, recordings: Path | None = None
) -> tuple[Mapping[str, float] | None, Path | None]:
    """`a=2,b` to {a: 2.0, b: 1.0}, and the folder of recordings: `recordings=FOLDER` is one too.

    Raises:
        ConfigError: The text is not of this form.
    """
    if text is None:
        return None, recordings
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            weight = float(value) if value else 1.0
        except ValueError:
            weight = math.nan
            if name == "recordings" and recordings is None:
                weight, recordings = 1.0, Path(value)
        if not name.isidentifier() or not math.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"--sources {text!r}: {part.strip()!r} is not NAME or NAME=WEIGHT.",
                fix="Write it like --sources inversion=2,procedural=1.",
            )
        weights[name] = weight
    return weights, recordings
