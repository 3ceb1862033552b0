"""The front door for teachers: our own checkpoints, and everybody else's modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import nn

from frami_edge.errors import FramiEdgeError, TeacherError
from frami_edge.io import sha256_file
from frami_edge.models.checkpoint import Card, Loaded, load_checkpoint
from frami_edge.teachers.description import (
    TeacherDescription,
    labels_of,
    mel_of,
    read_description,
    weights_path,
)
from frami_edge.teachers.foreign import ForeignTeacher
from frami_edge.teachers.tracing import in_words
from frami_edge.teachers.weights import load_weights, read_weights

DESCRIPTIONS = (".yaml", ".yml")


def open_teacher(source: Path | TeacherDescription) -> Loaded:
    """A teacher, ready to be inverted.

    Args:
        source: Checkpoint of `frami-edge train-teacher`, a YAML `TeacherDescription`, or one.

    Raises:
        CheckpointError: Weights are missing, damaged, or do not fit.
        ConfigError: The description has mistakes.
        TeacherError: It cannot be built, or its hidden states are not unambiguous.
    """
    if isinstance(source, Path):
        if source.suffix.lower() not in DESCRIPTIONS:
            return load_checkpoint(source, "teacher")
        source = read_description(source)
    spec, labels, weights = mel_of(source), labels_of(source), weights_path(source)
    tensors = read_weights(weights)
    module = build_module(source.factory, source.arguments)
    load_weights(module, tensors, weights, source.weights_under)
    model = ForeignTeacher(
        module, spec.n_mels, len(labels),
        layout=source.layout, frames=source.frames, pooled=source.pooled,
    )  # fmt: skip
    card = Card(
        kind="teacher",
        arch={"factory": source.factory, "arguments": source.arguments},
        mel=spec.to_dict(),
        labels=labels,
        trained_on=source.trained_on,
        licence=source.licence,
    )
    model.eval().requires_grad_(False)
    return Loaded(model, card, spec, sha256_file(weights))


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
