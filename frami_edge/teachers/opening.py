"""The front door for teachers: our own checkpoints, and everybody else's modules."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from frami_edge.assets import teacher_assets
from frami_edge.checkpoint import Card, Teacher, TrainedOn, load_checkpoint
from frami_edge.config import Strict, describe, dump_config, load_config, presets, read_mapping
from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.io import atomic_write_text, read_small, sha256_file, sha256_tensors
from frami_edge.teachers.foreign import ForeignTeacher
from frami_edge.teachers.tracing import in_words
from frami_edge_runtime.errors import FramiEdgeError, MelSpecError
from frami_edge_runtime.melspec import MelSpec

log = logging.getLogger("frami_edge")

# --- Weights from files that cannot run code: safetensors, or torch's restricted unpickler

_UNREAD = ("num_batches_tracked", "total_ops", "total_params")
"""Counters that trainers and profilers leave behind, which nothing here reads."""
_DEPTH = 3
"""Levels of mappings in which a state dictionary may lie."""
_SHOWN = 5


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor in a file, under its name; `ema.conv.weight` for one in a mapping `ema`.

    Raises:
        CheckpointError: Damaged, holding code, or without tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # Trainers keep their options beside the weights; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([Namespace]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {_first(error)}", fix="Copy it again."
        ) from None
    except Exception as error:  # torch.load raises what its unpickler meets
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged, and is not executed: {_first(error)}",
            fix="Save the weights alone: safetensors.torch.save_file(model.state_dict(), FILE), or "
            "torch.save(model.state_dict(), FILE). Of a Lightning checkpoint that you trust: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE).",
        ) from None
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path} holds {type(found).__name__}, not a state dictionary.",
            fix="Save model.state_dict().",
        )
    tensors = dict(_tensors(found, "", _DEPTH))
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.", fix="Save model.state_dict().")
    return tensors


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], path: Path, under: str | None = None
) -> None:
    """Put them into the model.

    All its names have to lie under one prefix, whatever that is (`module.`, `state_dict.net.`);
    under it nothing may be left over. What lies elsewhere (an optimiser's moments, a loss, the mel
    front end) is no part of the model.

    Args:
        model: The network.
        tensors: Of `read_weights`.
        path: For messages.
        under: The prefix; found where None.

    Raises:
        CheckpointError: Names or shapes do not fit, several sets of weights do, or a value is not
            finite.
    """
    wanted = model.state_dict()
    named = _under(tensors, set(wanted), path, under)
    missing = [k for k in wanted if k not in named and not k.endswith(_UNREAD)]
    extra = [k for k in named if k not in wanted and not k.endswith(_UNREAD)]
    shapes = [
        f"{k} {tuple(named[k].shape)} for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in named and named[k].shape != wanted[k].shape
    ]
    # torch would drop the imaginary part, and say so in a warning.
    kinds = [k for k in wanted if k in named and named[k].is_complex() > wanted[k].is_complex()]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (
            ("missing:", missing),
            ("unknown:", extra),
            ("other shape:", shapes),
            ("complex:", kinds),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"The weights in {path} do not fit the module: {'; '.join(problems)}.",
            fix="Build the module with the arguments that it was trained with (--teacher-arg).",
        )
    bad = [k for k, v in named.items() if not torch.isfinite(v).all()]
    if bad:
        raise CheckpointError(
            f"{path} holds weights that are not finite: {_some(bad)}.", fix="Use another file."
        )
    model.load_state_dict({k: v for k, v in named.items() if k in wanted}, strict=False)


def _tensors(found: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    for key, value in found.items():
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_meta or value.is_quantized:
                continue  # without plain values it is no weight
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and depth > 1:
            yield from _tensors(value, f"{prefix}{key}.", depth - 1)


def _under(
    tensors: Mapping[str, Tensor], wanted: set[str], path: Path, asked: str | None
) -> dict[str, Tensor]:
    """The tensors below the prefix under which the model's names lie, without it."""
    needed = sorted(k for k in wanted if not k.endswith(_UNREAD))
    found = {key.removesuffix(k) for k in needed for key in tensors if _ends(key, k)} | {""}
    prefixes = sorted(found) if asked is None else [f"{asked.rstrip('.')}." if asked else ""]
    whole = [p for p in prefixes if all(p + k in tensors for k in needed)]
    others = [p for p in whole[1:] if any(_differ(tensors, whole[0], p, k) for k in needed)]
    if others:
        listed = ", ".join(p.rstrip(".") or "the top" for p in [whole[0], *others])
        raise CheckpointError(
            f"{path} holds several sets of weights that fit the module: under {listed}.",
            fix="Describe the teacher in YAML, and say there which: `weights_under: "
            f"{others[-1].rstrip('.')}`.",
        )
    around = needed[0].partition(".")[0] + "." if needed else ""
    if not whole and around and all(k.startswith(around) for k in wanted):
        # The module wraps the network that was saved.
        inside = _under(tensors, {k.removeprefix(around) for k in wanted}, path, asked)
        return {around + k: v for k, v in inside.items()}
    # Where none is whole, the nearest one, so that what is said about it helps.
    best = max(whole or prefixes, key=lambda p: sum(p + k in tensors for k in needed))
    return {k.removeprefix(best): v for k, v in tensors.items() if k.startswith(best)}


def _ends(key: str, name: str) -> bool:
    return key == name or key.endswith(f".{name}")


def _differ(tensors: Mapping[str, Tensor], one: str, other: str, name: str) -> bool:
    return not torch.equal(tensors[one + name], tensors[other + name])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


# --- What has to be said about a teacher that is not ours, as YAML or as command-line options

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
    """The front end of a description; raises as `read_mel`."""
    return read_mel(description.mel)


def read_mel(values: Any) -> MelSpec:
    """A front end from its keys, a YAML file or a preset.

    Raises:
        ConfigError: The file is missing or no YAML mapping.
        MelSpecError: A key is unknown or out of range.
    """
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
    """Class names of a description; raises as `read_labels`."""
    return read_labels(description.labels)


def read_labels(labels: str | tuple[str, ...]) -> tuple[str, ...]:
    """(K,) class names, from a file where text is given.

    Raises:
        TeacherError: The file is missing, empty or names a class twice.
    """
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


# --- The front door for teachers: our own checkpoints, and everybody else's modules

DESCRIPTIONS = (".yaml", ".yml")


def load_teacher(
    source: nn.Module | Teacher | str | os.PathLike[str],
    *,
    mel: MelSpec | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    frames: str | None = None,
    pooled: str | None = None,
    layout: Layout | None = None,
) -> Teacher:
    """Open a trained classifier so that it can be inverted and distilled.

    Args:
        source: One of four things. A path: a checkpoint of `frami-edge train-teacher`, or a YAML
            description of a teacher. The name of a teacher that ships with the package
            (`digits-teacher`). `"module:callable"` that builds an `nn.Module`; it needs `weights`,
            `mel` and `labels`. An `nn.Module` in memory with its trained weights; it needs `mel`
            and `labels`, and stays unchanged: the teacher is a copy.
        mel: Front end: a MelSpec, its keys, a YAML file of them, or a preset.
        labels: Class names in the order of the logits, or a file with one name per line.
        weights: safetensors, or a torch file of tensors.
        arguments: Keyword arguments of the callable.
        frames: Module whose output is the last hidden state over time (`NAME@in` for its input).
        pooled: Module whose output (`NAME@in`: input) is the first hidden state without time.
        layout: Axes of the input, such as `B1MT`; found where None.

    Returns:
        The teacher in evaluation mode, without gradients.

    Raises:
        CheckpointError: Weights are missing, damaged, or do not fit.
        ConfigError: The arguments do not go together, or the description has mistakes.
        TeacherError: It cannot be built, or its hidden states are ambiguous.
    """
    given: dict[str, Any] = {
        "mel": mel,
        "labels": labels,
        "weights": weights,
        "arguments": arguments,
        "frames": frames,
        "pooled": pooled,
        "layout": layout,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(source, nn.Module):
        unfit = [n for n in ("weights", "arguments") if n in given]
        missing = [n for n in ("mel", "labels") if n not in given]
        if unfit or missing:
            what = f"{', '.join(missing)} missing" if missing else f"{', '.join(unfit)} given"
            raise ConfigError(
                f"A module in memory was passed with {what}.",
                fix="Pass mel and labels with it, and load its weights before.",
            )
        assert mel is not None
        assert labels is not None
        module = _copy(source)
        sha256 = sha256_tensors(module.state_dict())
        kind = type(source)
        arch = {"module": f"{kind.__module__}.{kind.__qualname__}"}
        spec, names = read_mel(_mel_values(mel)), read_labels(_label_values(labels))
        return _foreign(module, spec, names, sha256, arch, layout or "auto", frames, pooled)
    text = source if isinstance(source, str) else ""
    if not isinstance(source, Teacher) and ":" in text and not Path(text).exists():
        missing = [n for n in ("weights", "mel", "labels") if n not in given]
        if missing:
            raise ConfigError(
                f"The teacher {text} is Python code, and {', '.join(missing)} is not given.",
                fix="Give weights, mel and labels with it (--weights, --mel, --labels).",
            )
        assert mel is not None
        assert labels is not None
        values = given | {"factory": text, "weights": os.fspath(given["weights"])}
        values |= {"mel": _mel_values(mel), "labels": _label_values(labels)}
        return open_teacher(description_of(**values))
    if given:
        raise ConfigError(
            f"{', '.join(given)} describe a teacher in Python code, and the teacher {source} "
            "carries these facts itself.",
            fix="Leave them out, or name the teacher as MODULE:CALLABLE.",
        )
    if isinstance(source, Teacher):
        return source
    if text in teacher_assets():
        return load_checkpoint(teacher_assets()[text], "teacher")
    return open_teacher(Path(source))


def open_teacher(source: Path | TeacherDescription) -> Teacher:
    """A teacher from a checkpoint, a YAML description, or a description; see `load_teacher`."""
    if isinstance(source, Path):
        if source.suffix.lower() not in DESCRIPTIONS:
            return load_checkpoint(source, "teacher")
        source = read_description(source)
    spec, labels, weights = mel_of(source), labels_of(source), weights_path(source)
    tensors = read_weights(weights)
    module = build_module(source.factory, source.arguments)
    load_weights(module, tensors, weights, source.weights_under)
    arch = {"factory": source.factory, "arguments": source.arguments}
    teacher = _foreign(
        module, spec, labels, sha256_file(weights), arch, source.layout, source.frames,
        source.pooled, source.trained_on, source.licence,
    )  # fmt: skip
    teacher.description = source
    return teacher


def _foreign(
    module: nn.Module,
    spec: MelSpec,
    labels: tuple[str, ...],
    sha256: str,
    arch: dict[str, Any],
    layout: str,
    frames: str | None,
    pooled: str | None,
    trained_on: TrainedOn | None = None,
    licence: str = "",
) -> Teacher:
    model = ForeignTeacher(
        module, spec.n_mels, len(labels), layout=layout, frames=frames, pooled=pooled
    )
    card = Card(
        kind="teacher",
        arch=arch,
        mel=spec.to_dict(),
        labels=labels,
        trained_on=trained_on,
        licence=licence,
    )
    model.eval().requires_grad_(False)
    return Teacher(model, card, spec, sha256)


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception:  # the module is somebody else's code
        log.warning(
            "The module cannot be copied, so it is used as it is: frozen, in evaluation mode, in "
            "float32."
        )
        return module


def _mel_values(mel: MelSpec | Mapping[str, Any] | str | os.PathLike[str]) -> Any:
    if isinstance(mel, MelSpec):
        return mel.to_dict()
    return dict(mel) if isinstance(mel, Mapping) else os.fspath(mel)


def _label_values(labels: Sequence[str] | str | os.PathLike[str]) -> Any:
    return os.fspath(labels) if isinstance(labels, (str, os.PathLike)) else tuple(labels)


def build_module(factory: str, arguments: dict[str, Any]) -> nn.Module:
    """Import ``module:callable`` and call it.

    Raises:
        TeacherError: It cannot be imported, fails, or gives no `nn.Module`.
    """
    module_name, _, attribute = factory.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does: people's models lie in their project
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no result of ours
            found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise TeacherError(
            f"Cannot import {factory}: {error}.",
            fix="Give MODULE:CALLABLE, and run where `import MODULE` works, or set PYTHONPATH.",
        ) from None
    except (Exception, SystemExit) as error:  # a script that runs when it is imported
        raise TeacherError(
            f"Importing {module_name} fails: {in_words(error)}",
            fix="Give a module that can be imported: a script needs `if __name__ == '__main__':`.",
        ) from None
    with redirect_stdout(sys.stderr):
        made = _called(found, factory, arguments)
    if not isinstance(made, nn.Module):
        raise TeacherError(
            f"{factory} gives {type(made).__name__}, not an nn.Module.",
            fix="Name the class of the network, or a function that returns it.",
        )
    return made


def _called(factory: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except FramiEdgeError:
        raise
    except (Exception, SystemExit) as error:  # the factory is somebody else's code
        listed = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        raise TeacherError(
            f"{name}({listed}) fails: {in_words(error)}",
            fix="Give the arguments that the network was built with: --teacher-arg NAME=VALUE.",
        ) from None
