"""Where the clips of the bank come from: one interface for our sources, controls and baselines."""

from __future__ import annotations

from frami_edge.config import BASELINES
from frami_edge.sources.base import NO_LABEL, Batch, Context, Source
from frami_edge.sources.baselines import Baseline, Cmi, Dafl, DeepInversion, Dfq, Fast, Zskt
from frami_edge.sources.inversion import Inversion
from frami_edge.sources.procedural import Procedural, SmoothNoise, WhiteNoise
from frami_edge.sources.translator import Translation

__all__ = ["LEARNED", "NO_LABEL", "SOURCES", "Batch", "Context", "Source"]

SOURCES: dict[str, type[Inversion | Procedural | Translation | Baseline]] = {
    source.name: source
    for source in (
        *(Inversion, Procedural, Translation, SmoothNoise, WhiteNoise),
        *(DeepInversion, Dafl, Zskt, Dfq, Cmi, Fast),
    )
}
"""Every source by its name in the config."""
LEARNED = ("inversion", "translator", *BASELINES)
"""Those that learn from the teacher and have losses."""
