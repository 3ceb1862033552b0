"""Weights from files that cannot run code: safetensors, or torch's restricted unpickler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from frami_edge.errors import CheckpointError

_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_SHOWN = 5


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a file, out of the wrappings that trainers put around it.

    Raises:
        CheckpointError: Damaged, holding code, or without tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {_first(error)}", fix="Copy it again."
        ) from None
    except Exception as error:  # torch.load raises what its unpickler meets
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged, and is not executed: {_first(error)}",
            fix="Save the weights alone: safetensors.torch.save_file(model.state_dict(), FILE), or "
            "torch.save(model.state_dict(), FILE).",
        ) from None
    for _ in range(3):
        inner = _nested(found)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path} holds {type(found).__name__}, not a state dictionary.",
            fix="Save model.state_dict().",
        )
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.", fix="Save model.state_dict().")
    return tensors


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put them into the model; every name must fit, after common prefixes are taken off.

    Raises:
        CheckpointError: Names or shapes do not fit, or a value is not finite.
    """
    wanted = model.state_dict()
    named = _best_names(tensors, set(wanted))
    # Older checkpoints lack this counter, which nothing here reads.
    missing = [k for k in wanted if k not in named and not k.endswith("num_batches_tracked")]
    extra = [k for k in named if k not in wanted]
    shapes = [
        f"{k} {tuple(named[k].shape)} for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in named and named[k].shape != wanted[k].shape
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (("missing:", missing), ("unknown:", extra), ("other shape:", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"The weights in {path} do not fit the module: {'; '.join(problems)}.",
            fix="Build the module with the arguments that it was trained with (--teacher-arg).",
        )
    bad = [k for k, v in named.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise CheckpointError(
            f"{path} holds weights that are not finite: {_some(bad)}.", fix="Use another file."
        )
    model.load_state_dict(dict(named), strict=False)


def _nested(found: Any) -> Any:
    if not isinstance(found, Mapping) or any(isinstance(v, Tensor) for v in found.values()):
        return None
    return next((found[k] for k in _NESTED if isinstance(found.get(k), Mapping)), None)


def _best_names(tensors: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    best = dict(tensors)
    for prefix in _PREFIXES:
        if not all(k.startswith(prefix) for k in best):
            continue
        shorter = {k.removeprefix(prefix): v for k, v in best.items()}
        if len(wanted & set(shorter)) > len(wanted & set(best)):
            best = shorter
    return best


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
