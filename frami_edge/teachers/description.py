"""What has to be said about a teacher that is not ours, as YAML or as command-line options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from frami_edge.config import Strict, describe, dump_config, load_config, presets, read_mapping
from frami_edge.errors import CheckpointError, ConfigError, MelSpecError, TeacherError
from frami_edge.io import atomic_write_text, read_small
from frami_edge.models.checkpoint import TrainedOn
from frami_edge_runtime.melspec import MelSpec

MAX_LABEL_BYTES = 10_000_000
MAX_LABELS = 100_000
"""As in a checkpoint's card."""

Layout = Literal["auto", "B1MT", "BMT", "B1TM", "BTM", "B3MT", "B3TM"]


class TeacherDescription(Strict):
    """A teacher in Python code: how to build it, where its weights are, what it hears."""

    factory: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    """`module:callable` that gives the `nn.Module`; the module is imported, so it runs as code."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the callable."""
    weights: str
    """safetensors, or a torch file of tensors; relative to the description's folder."""
    weights_under: str | None = None
    """Where in the file, such as `ema` or `state_dict.teacher`, where several sets would fit."""
    mel: str | dict[str, Any]
    """Front end: keys of MelSpec, a YAML file of them, or a preset such as `mel/log-mel-16k-64`."""
    labels: str | tuple[str, ...]
    """Class names in the order of the logits, or a file with one name a line."""
    layout: Layout = "auto"
    """Axes of the input: B batch, 1 a channel (3: the same mel thrice), M mel bands, T frames."""
    frames: str | None = None
    """Module whose output is the last hidden state over time (`NAME@in` for its input)."""
    pooled: str | None = None
    """Module whose output (`NAME@in`: input) is the first hidden state without time."""
    trained_on: TrainedOn | None = None
    """Real clips that it heard, so that no student is scored on them."""
    licence: str = ""
    """Of the weights."""


def read_description(path: Path) -> TeacherDescription:
    """Read the YAML form; files that it names are found relative to it.

    Raises:
        ConfigError: With every mistake in it.
    """
    found = load_config(TeacherDescription, path)
    changes: dict[str, Any] = {"weights": str(path.parent / found.weights)}
    for name in ("mel", "labels"):
        value = getattr(found, name)
        if isinstance(value, str) and value not in presets():
            changes[name] = str(path.parent / value)
    return found.model_copy(update=changes)


def write_description(path: Path, description: TeacherDescription) -> None:
    """The YAML form, with the files that it names relative to it."""

    def relative(value: Any) -> Any:
        is_file = isinstance(value, str) and value not in presets()
        return Path(os.path.relpath(value, path.parent)).as_posix() if is_file else value

    names = ("weights", "mel", "labels")
    changes = {name: relative(getattr(description, name)) for name in names}
    atomic_write_text(path, dump_config(description.model_copy(update=changes)))


def description_of(**values: Any) -> TeacherDescription:
    """From the command line.

    Raises:
        ConfigError: With every mistake in it.
    """
    try:
        return TeacherDescription.model_validate(values)
    except ValidationError as error:
        lines = "".join(f"\n  {line}" for line in describe(error, TeacherDescription, values))
        raise ConfigError(
            f"The teacher's description has mistakes:{lines}",
            fix="Correct them; --teacher is MODULE:CALLABLE for a teacher in Python code.",
        ) from None


def mel_of(description: TeacherDescription) -> MelSpec:
    """The front end.

    Raises:
        ConfigError: The file is missing or no YAML mapping.
        MelSpecError: A key is unknown or out of range.
    """
    values: Any = description.mel
    where = "mel"
    if isinstance(values, str):
        where, values = read_mapping(values)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return MelSpec.from_dict(values)
    except MelSpecError as error:
        fix = error.fix or "Correct that key of the front end."
        raise MelSpecError(f"{where}: {error.message}", fix=fix) from None


def labels_of(description: TeacherDescription) -> tuple[str, ...]:
    """(K,) class names.

    Raises:
        TeacherError: The file is missing, empty or names a class twice.
    """
    labels = description.labels
    if isinstance(labels, str):
        path = Path(labels)
        try:
            text = read_small(path, MAX_LABEL_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TeacherError(
                f"Cannot read the labels {path}: {reason}.",
                fix="Give a text file, one name a line.",
            ) from None
        labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise TeacherError(
            f"The labels name {len(labels)} classes, {len(set(labels))} of them different.",
            fix="Give every class one name, at least two in all.",
        )
    if len(labels) > MAX_LABELS:
        raise TeacherError(
            f"The labels name {len(labels)} classes, more than {MAX_LABELS}.",
            fix="Check that it is the file of class names.",
        )
    return tuple(labels)


def weights_path(description: TeacherDescription) -> Path:
    """Of the weights.

    Raises:
        CheckpointError: There is no such file.
    """
    path = Path(description.weights)
    if not path.is_file():
        raise CheckpointError(f"There are no weights {path}.", fix="Check --weights.")
    return path
