"""Where the clips of the bank come from: one interface, five sources."""

from __future__ import annotations

from frami_edge.inversion.sources.base import NO_LABEL, Batch, Context, Source
from frami_edge.inversion.sources.inversion import Inversion
from frami_edge.inversion.sources.procedural import Procedural, SmoothNoise, WhiteNoise
from frami_edge.inversion.sources.translation import Translation

__all__ = ["NO_LABEL", "SOURCES", "Batch", "Context", "Source"]

SOURCES: dict[str, type[Inversion | Procedural | Translation]] = {
    source.name: source for source in (Inversion, Procedural, Translation, SmoothNoise, WhiteNoise)
}
"""Every source by its name in the config."""
