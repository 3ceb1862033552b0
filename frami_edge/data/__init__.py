"""Real audio: known data sets with their official folds, features, and bucketed batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frami_edge.data.sets import (
    Clip,
    Rejected,
    SetInfo,
    SoundSet,
    check_disjoint,
    data_root,
    known_sets,
    load_set,
    read_audio,
    resolve_fold,
    set_info,
)
from frami_edge.errors import DataError, IncompleteSetError, UnusableClipError

if TYPE_CHECKING:
    from frami_edge.data.store import (
        Features,
        FeatureStore,
        collate,
        length_buckets,
        measure_normalisation,
    )

__all__ = [
    "Clip",
    "DataError",
    "FeatureStore",
    "Features",
    "IncompleteSetError",
    "Rejected",
    "SetInfo",
    "SoundSet",
    "UnusableClipError",
    "check_disjoint",
    "collate",
    "data_root",
    "known_sets",
    "length_buckets",
    "load_set",
    "measure_normalisation",
    "read_audio",
    "resolve_fold",
    "set_info",
]

_WITH_TORCH = {
    "FeatureStore": "store",
    "Features": "store",
    "collate": "store",
    "length_buckets": "store",
    "measure_normalisation": "store",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `frami-edge data` needs none of it.
    if name in _WITH_TORCH:
        from importlib import import_module

        return getattr(import_module(f"frami_edge.data.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
