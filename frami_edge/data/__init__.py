"""Real audio: known data sets with their official folds, features, and bucketed batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frami_edge.data.catalogue import SetInfo, data_root, known_sets, set_info
from frami_edge.data.clips import Clip, SoundSet, check_disjoint, resolve_fold
from frami_edge.data.errors import DataError, IncompleteSetError, UnusableClipError
from frami_edge.data.reading import Rejected, read_audio
from frami_edge.data.sets import load_set

if TYPE_CHECKING:
    from frami_edge.data.batching import collate, length_buckets
    from frami_edge.data.features import Features, measure_normalisation
    from frami_edge.data.store import FeatureStore

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
    "Features": "features",
    "collate": "batching",
    "length_buckets": "batching",
    "measure_normalisation": "features",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `frami-edge data` needs none of it.
    if name in _WITH_TORCH:
        from importlib import import_module

        return getattr(import_module(f"frami_edge.data.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
