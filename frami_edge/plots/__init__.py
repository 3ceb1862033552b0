"""Pictures of a run: people look before they read."""

from __future__ import annotations

from frami_edge.plots.figures import accuracy_bars, confusion, curves, diversity
from frami_edge.plots.mels import mel_grid

__all__ = ["accuracy_bars", "confusion", "curves", "diversity", "mel_grid"]
