"""Weights from files that cannot run code: safetensors, or torch's restricted unpickler."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from frami_edge.errors import CheckpointError
from frami_edge.teachers.calling import in_words

_UNREAD = ("num_batches_tracked", "total_ops", "total_params")
"""Counters that trainers and profilers leave behind, which nothing here reads."""
_DEPTH = 3
"""Levels of mappings in which a state dictionary may be nested."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`, which holds code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor in a file, under its name; `ema.conv.weight` for one in a mapping `ema`.

    Raises:
        CheckpointError: Damaged, holding code, or without tensors.
    """
    if is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript archive, and its code is not executed.",
            fix="Save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE).",
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # Trainers keep their options beside the weights; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([Namespace]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {in_words(error)}", fix="Copy it again."
        ) from None
    except Exception as error:  # torch.load raises many types
        # Around the reason, torch's message advises to allow the code.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition(" Please use ")[0]
        reason = reason.strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged, and is not executed: {reason}",
            fix="Save the weights alone: safetensors.torch.save_file(model.state_dict(), FILE), or "
            "torch.save(model.state_dict(), FILE). For a Lightning checkpoint that you trust: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE).",
        ) from None
    tensors = dict(_tensors(found, "", _DEPTH)) if isinstance(found, Mapping) else {}
    if not tensors:
        raise CheckpointError(
            f"{path} holds {type(found).__name__} without tensors, not a state dictionary.",
            fix="Save model.state_dict().",
        )
    return tensors


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], path: Path, under: str | None = None
) -> None:
    """Load them into the model.

    All its names have to be under one prefix, whatever that is (`module.`, `state_dict.net.`);
    under it nothing may be left over. Tensors elsewhere (an optimiser's moments, a loss, the mel
    front end) are not part of the model.

    Args:
        model: The network.
        tensors: Tensors by name, from `read_weights`.
        path: Path of the file, for messages.
        under: The prefix; found where None.

    Raises:
        CheckpointError: Names or shapes do not fit, several sets of weights do, or a value is not
            finite.
    """
    wanted = model.state_dict()
    named = _under_prefix(tensors, set(wanted), path, under)
    shared = [(k, named[k], wanted[k]) for k in wanted if k in named]
    problems = {
        "missing": [k for k in wanted if k not in named and not k.endswith(_UNREAD)],
        "unknown": [k for k in named if k not in wanted and not k.endswith(_UNREAD)],
        "other shape": [
            f"{k} {tuple(a.shape)} for {tuple(b.shape)}" for k, a, b in shared if a.shape != b.shape
        ],
        "complex": [k for k, a, b in shared if a.is_complex() > b.is_complex()],
    }
    found = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"The weights in {path} do not fit the module: {'; '.join(found)}.",
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
            # Without plain values it is no weight.
            if value.layout is torch.strided and not value.is_meta and not value.is_quantized:
                yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and depth > 1:
            yield from _tensors(value, f"{prefix}{key}.", depth - 1)


def _under_prefix(
    tensors: Mapping[str, Tensor], wanted: set[str], path: Path, asked: str | None
) -> dict[str, Tensor]:
    """The tensors below the prefix under which the model's names are, without it."""
    needed = sorted(k for k in wanted if not k.endswith(_UNREAD))
    if asked is None:
        ends = {name: f".{name}" for name in needed}
        found = {k.removesuffix(n) for n in needed for k in tensors if f".{k}".endswith(ends[n])}
        prefixes = sorted(found | {""})
    else:
        prefixes = [f"{asked.rstrip('.')}." if asked else ""]
    whole = [p for p in prefixes if all(p + k in tensors for k in needed)]
    others = [
        p
        for p in whole[1:]
        if any(not torch.equal(tensors[whole[0] + k], tensors[p + k]) for k in needed)
    ]
    if others:
        listed = ", ".join(p.rstrip(".") or "the top" for p in [whole[0], *others])
        raise CheckpointError(
            f"{path} holds several sets of weights that fit the module: under {listed}.",
            fix="Describe the teacher in YAML, and choose there: `weights_under: "
            f"{others[-1].rstrip('.')}`.",
        )
    outer = needed[0].partition(".")[0] + "." if needed else ""
    if not whole and outer and all(k.startswith(outer) for k in wanted):
        # The module wraps the network that was saved.
        inner = _under_prefix(tensors, {k.removeprefix(outer) for k in wanted}, path, asked)
        return {outer + k: v for k, v in inner.items()}
    # Where none is whole, the nearest one, so that the message about it helps.
    best = max(whole or prefixes, key=lambda p: sum(p + k in tensors for k in needed))
    return {k.removeprefix(best): v for k, v in tensors.items() if k.startswith(best)}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
