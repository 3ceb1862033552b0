"""Pictures of a run: people look before they read."""

from __future__ import annotations

from frami_edge.plots.export_report import draw_export_report
from frami_edge.plots.figures import accuracy_bars, confusion, curves, diversity
from frami_edge.plots.mels import mel_grid

__all__ = ["accuracy_bars", "confusion", "curves", "diversity", "draw_export_report", "mel_grid"]
