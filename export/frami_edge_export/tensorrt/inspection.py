"""How many layers of an engine really run in int8: the engine inspector's JSON, counted.

TensorRT 10 describes a tensor by one key, ``Format/Datatype``; 11 splits it and renames more
(``Bindings`` -> ``I/O Tensors``). Both are read by what their keys contain, so that a further
renaming gives ``other`` and not a wrong number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from frami_edge_export.tensorrt.available import no_driver
from frami_edge_export.tensorrt.errors import BuildError
from frami_edge_export.tensorrt.messages import make_logger

_TYPES: Final = (
    ("int8", re.compile(r"int8|kint8", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|float16|half", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float32|float\b|kfloat\b", re.IGNORECASE)),
)


@dataclass(frozen=True)
class LayerCounts:
    """Layers of a built engine, each counted once, by the type of what it reads."""

    total: int = 0
    int8: int = 0
    fp16: int = 0
    fp32: int = 0
    reformat: int = 0
    """Copies that only change type or layout: what int8 costs where it does not fuse."""
    other: int = 0
    """Integers and shapes, or not told: an engine without detailed verbosity tells only names."""
    convolutions: int = 0
    """How many are convolutions."""
    int8_convolutions: int = 0
    """How many of these read int8: the figure that counts."""

    def as_dict(self) -> dict[str, int]:
        """As `EngineCard.layers` has it."""
        return asdict(self)


def count_layers(text: str) -> LayerCounts:
    """Count the layers in an engine inspector's JSON.

    Args:
        text: ``EngineInspector.get_engine_information(LayerInformationFormat.JSON)``. Anything
            that is no such JSON counts nothing: a card without counts is no reason to fail.
    """
    try:
        described = json.loads(text)
    except ValueError:
        return LayerCounts()
    layers = described.get("Layers", []) if isinstance(described, Mapping) else []
    counts = dict.fromkeys(LayerCounts.__dataclass_fields__, 0)
    for layer in layers if isinstance(layers, list) else []:
        counts["total"] += 1
        kind = layer_precision(layer)
        counts[kind] += 1
        if kind != "reformat" and _is_convolution(layer):
            counts["convolutions"] += 1
            counts["int8_convolutions"] += kind == "int8"
    return LayerCounts(**counts)


def layer_precision(layer: Any) -> str:
    """``int8``, ``fp16``, ``fp32``, ``reformat`` or ``other`` for one entry of ``Layers``."""
    if not isinstance(layer, Mapping):
        return "reformat" if "reformat" in str(layer).lower() else "other"
    if "reformat" in str(layer.get("LayerType", layer.get("Type", ""))).lower():
        return "reformat"
    tensors = layer.get("Inputs") or layer.get("Outputs") or []
    for tensor in tensors if isinstance(tensors, list) else []:
        said = _type_text(tensor)
        for name, pattern in _TYPES:
            if pattern.search(said):
                return name
    return "other"


def inspect_plan(trt: Any, plan: bytes) -> LayerCounts:
    """Count the layers of a serialised engine.

    Args:
        trt: The ``tensorrt`` module.
        plan: As it was built here.

    Raises:
        BuildError: TensorRT cannot load what it has just built.
    """
    logger = make_logger(trt)
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:
        raise no_driver(error) from None
    runtime.engine_host_code_allowed = True  # version-compatible plans hold code; this one is ours
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(
            f"TensorRT {trt.__version__} cannot load the engine that it has just built: "
            f"{logger.said()}",
            fix="Free GPU memory and build again.",
        )
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return LayerCounts()
    return count_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _type_text(tensor: Any) -> str:
    if not isinstance(tensor, Mapping):
        return str(tensor)
    typed = [v for k, v in tensor.items() if re.search("datatype|data type|^type$", k.lower())]
    return " ".join(map(str, typed or [tensor.get("Format", "")]))


def _is_convolution(layer: Any) -> bool:
    if not isinstance(layer, Mapping):
        return False
    keys = ("LayerType", "ParameterType", "Type")
    return any("conv" in str(layer.get(key, "")).lower() for key in keys)
