"""DAFL: H. Chen et al., *Data-Free Learning of Student Networks*, ICCV 2019, eqs. 2 to 6.

Defaults: as in the CIFAR-10 script of G. Fang et al., *CMI*, IJCAI 2021, which alternates with a
student; DAFL's own loss does not look at the student, so none is trained here.
"""

from __future__ import annotations

from frami_edge.baselines.generative import Generative, GenerativeConfig


class DaflConfig(GenerativeConfig):
    """As published."""

    latent: int = 512
    one_hot: float = 1.0
    activation: float = 1e-3
    balance: float = 20.0


class Dafl(Generative):
    """DAFL; see `Generative` for the formula."""

    name = "dafl"
    config_type = DaflConfig
