"""A safetensors file: a teacher or student of ours, or somebody's weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from frami_edge.describing.description import (
    Description,
    Fact,
    Section,
    listed,
    size_text,
    thousands,
)
from frami_edge.describing.words import geometry_facts, heard_facts
from frami_edge.errors import CheckpointError
from frami_edge.io import sha256_file
from frami_edge.models.checkpoint import Loaded, TrainedOn, load_checkpoint, parameters
from frami_edge.models.cost import macs_per_second
from frami_edge.models.student import ReusedHead, Student

_CARD_KEY = "frami.card"


def describe_checkpoint(path: Path) -> Description:
    """Network, front end, what it heard, and what it costs.

    Raises:
        CheckpointError: No whole safetensors file, or a damaged checkpoint of ours.
    """
    tensors, metadata = _header(path)
    if _CARD_KEY not in metadata:
        return _foreign(path, tensors, metadata)
    loaded = load_checkpoint(path)
    kind = loaded.card.kind
    sections = (
        _file(path, loaded.sha256, tensors),
        _network(loaded),
        _hears(loaded),
        _origin(loaded),
    )
    findings = () if loaded.card.heard else (
        "It does not say which real clips stand behind its weights, so nobody can check that it "
        "is scored on others.",
    )  # fmt: skip
    return Description(kind, f"{kind} of frami-edge", sections, findings)


def _header(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Type and shape of each tensor, and the file's own entries; no tensor is read."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
            return found, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}.", fix="Copy it again."
        ) from None


def _file(path: Path, digest: str, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Section:
    total = path.stat().st_size
    kinds = Counter(dtype for dtype, _ in tensors.values())
    text = ", ".join(f"{n} {dtype}" for dtype, n in kinds.most_common())
    return Section(
        "file",
        (
            Fact("path", str(path)),
            Fact("bytes", total, size_text(total)),
            Fact("sha256", digest),
            Fact("tensors", dict(kinds), f"{len(tensors)}: {text}"),
        ),
    )


def _network(loaded: Loaded) -> Section:
    model, spec = loaded.model, loaded.spec
    macs = macs_per_second(model, spec)
    shipped = parameters(model.collapse()) if isinstance(model, Student) else parameters(model)
    facts = [
        Fact("arch", loaded.card.arch, _pairs(loaded.card.arch)),
        Fact("parameters", parameters(model)),
        Fact("macs_per_s", macs, f"{macs / 1e6:.2f} M multiply-accumulates per second of audio"),
    ]
    if isinstance(model, Student):
        reused = isinstance(model.head, ReusedHead)
        head = "the teacher's own, behind a projector" if reused else "its own"
        if shipped != parameters(model):
            facts.append(
                Fact("exported_parameters", shipped,
                     f"{thousands(shipped)}, head and projector made one matrix")
            )  # fmt: skip
        facts += [
            Fact("head", "reused" if reused else "own", head),
            *geometry_facts(spec, model.receptive_field, model.stride, model.context[1]),
        ]
    else:
        stride = model.frame_stride
        facts.append(
            Fact("stride", stride, f"{stride} mel frames, {1000 * stride * spec.hop_s:g} ms")
        )
    return Section("network", tuple(facts))


def _hears(loaded: Loaded) -> Section:
    card = loaded.card
    what = "the_teacher_heard" if card.kind == "student" else "heard"
    facts = [*heard_facts(card.labels, loaded.spec)]
    if card.kind == "student":
        facts.append(Fact("heard", None, "no recording") if card.trained_on is None
                     else _heard("heard", card.trained_on))  # fmt: skip
        facts.append(_heard(what, card.teacher_trained_on))
    else:
        facts.append(_heard(what, card.trained_on))
    return Section("hears", tuple(facts))


def _heard(name: str, heard: TrainedOn | None) -> Fact:
    if heard is None:
        return Fact(name, None, "not said")
    text = f"{heard.clips} clips of {heard.data}, fold {heard.test_fold} held out"
    return Fact(name, heard.model_dump(mode="json"), text)


def _origin(loaded: Loaded) -> Section:
    card = loaded.card
    metrics = {k: v for k, v in card.metrics.items() if isinstance(v, (int, float, str))}
    facts = [Fact("teacher_sha256", card.teacher_sha256)] if card.kind == "student" else []
    return Section(
        "origin",
        (
            *facts,
            Fact("recipe", card.recipe, listed([str(key) for key in card.recipe]) or "not said"),
            Fact("metrics", card.metrics, _pairs(metrics) or "none"),
            Fact("licence", card.licence or None),
            Fact("version", card.version, f"frami-edge {card.version}"),
        ),
    )


def _foreign(
    path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> Description:
    count = sum(_size(shape) for _, shape in tensors.values())
    names = [f"{name} {list(shape)}" for name, (_, shape) in tensors.items()]
    weights = Section(
        "weights",
        (
            Fact("numbers", count),
            Fact("names", {n: list(shape) for n, (_, shape) in tensors.items()}, listed(names, 8)),
            Fact("metadata", metadata, listed(list(metadata)) or "none"),
        ),
    )
    finding = (
        "It has no card of frami-edge: network, labels and front end are unknown, so it can be "
        "neither scored nor distilled as it is."
    )
    return Description(
        "safetensors", "safetensors file, not of frami-edge",
        (_file(path, sha256_file(path), tensors), weights), (finding,),
    )  # fmt: skip


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _pairs(values: dict[str, Any]) -> str:
    return "; ".join(f"{key} {_cell(value)}" for key, value in values.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
