"""ZSKT: P. Micaelli, A. Storkey, *Zero-shot Knowledge Transfer*, NeurIPS 2019, algorithm 1.

Defaults: weight 1 and five student steps a generator step, as in the framework of G. Fang et al.,
*CMI*, IJCAI 2021. The student is a sparring student, not the one that is scored.
"""

from __future__ import annotations

from frami_edge.baselines.generative import Generative, GenerativeConfig


class ZsktConfig(GenerativeConfig):
    """As published."""

    adversarial: float = 1.0


class Zskt(Generative):
    """ZSKT; see `Generative` for the formula."""

    name = "zskt"
    config_type = ZsktConfig
