"""Other methods' synthesis as sources of clips: same teacher, student and distillation as ours."""

from __future__ import annotations

from frami_edge.inversion.sources.baselines.alternating import Dafl, Dfq, Zskt
from frami_edge.inversion.sources.baselines.base import Baseline
from frami_edge.inversion.sources.baselines.cmi import Cmi
from frami_edge.inversion.sources.baselines.deep_inversion import DeepInversion
from frami_edge.inversion.sources.baselines.fast import Fast

__all__ = ["Baseline", "Cmi", "Dafl", "DeepInversion", "Dfq", "Fast", "Zskt"]
