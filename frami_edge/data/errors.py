"""What can go wrong with real data, as sentences for the user."""

from __future__ import annotations

from frami_edge.errors import DataError
from frami_edge_runtime.errors import AudioError

__all__ = ["DataError", "IncompleteSetError", "UnusableClipError"]


class IncompleteSetError(DataError):
    """A data set with fewer or more clips than its authors published."""


class UnusableClipError(AudioError):
    """One audio file that cannot be used; `message` is the reason, for the manifest."""
