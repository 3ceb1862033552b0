"""Other methods' synthesis as sources of clips: same teacher, student and distillation as ours."""

from __future__ import annotations

from frami_edge.baselines.base import BaselineConfig, Learned
from frami_edge.baselines.cmi import Cmi
from frami_edge.baselines.dafl import Dafl
from frami_edge.baselines.deep_inversion import DeepInversion
from frami_edge.baselines.dfq import Dfq
from frami_edge.baselines.fast import FastDatafree
from frami_edge.baselines.zskt import Zskt

__all__ = ["BASELINES", "BaselineConfig", "Learned"]

BASELINES: dict[str, type[Learned]] = {
    source.name: source for source in (DeepInversion, Dafl, Zskt, Dfq, Cmi, FastDatafree)
}
"""Every learned baseline by its name; the noises and procedural audio are controls."""
