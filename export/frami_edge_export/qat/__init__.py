"""Quantisation-aware fine-tuning on the bank, for students that int8 would hurt."""

from __future__ import annotations

from frami_edge_export.qat.finetune import QatResult, Target, qat_finetune
from frami_edge_export.qat.options import QatOptions
from frami_edge_export.qat.requantise import GivenRanges
from frami_edge_export.qat.torch_graph import TorchTrunk

__all__ = ["GivenRanges", "QatOptions", "QatResult", "Target", "TorchTrunk", "qat_finetune"]
