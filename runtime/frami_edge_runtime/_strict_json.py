"""Strict, bounded JSON: no twin keys, no NaN, no unknown or missing key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from frami_edge_runtime.errors import ModelFileError

MAX_JSON_BYTES: Final = 1 << 20
EXPORT_AGAIN: Final = "Export the model again with frami-edge export."


def parse_object(text: str, where: str, *, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of at most ``most`` characters.

    Raises:
        ModelFileError: The text is too long, damaged or something else; ``where`` names it.
    """
    if len(text) > most:
        raise ModelFileError(
            f"{where} takes {len(text)} bytes; at most {most} are read.",
            fix=EXPORT_AGAIN,
        )
    try:
        values = json.loads(
            text,
            object_pairs_hook=_no_twins,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is not JSON: {error}.", fix=EXPORT_AGAIN) from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{where} is not a JSON object.", fix=EXPORT_AGAIN)
    return values


def same_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Check that an object has exactly the known keys.

    Raises:
        ModelFileError: Some are unknown or missing.
    """
    if unknown := sorted(set(values) - known):
        raise ModelFileError(
            f"{where} has unknown keys: {', '.join(unknown)[:200]}.",
            fix="Upgrade frami-edge-runtime, or export again.",
        )
    if missing := sorted(known - set(values)):
        raise ModelFileError(f"{where} lacks keys: {', '.join(missing)}.", fix=EXPORT_AGAIN)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # such as 1e999, which is no constant
        raise ValueError(f"{digits[:40]} is too large")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
