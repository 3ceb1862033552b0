"""DFQ: Y. Choi et al., *Data-Free Network Quantization With Adversarial KD*, CVPR-W 2020.

Defaults: weights 1, 1, 1 and 20 and ten student steps a generator step, as in the framework of
G. Fang et al., *CMI*, IJCAI 2021. The student is a sparring student, not the one that is scored.
"""

from __future__ import annotations

from frami_edge.baselines.generative import Generative, GenerativeConfig


class DfqConfig(GenerativeConfig):
    """As published."""

    one_hot: float = 1.0
    balance: float = 20.0
    adversarial: float = 1.0
    batch_norm: float = 1.0
    student_steps: int = 10


class Dfq(Generative):
    """DFQ; see `Generative` for the formula."""

    name = "dfq"
    config_type = DfqConfig
