"""What a file is and what is inside: models, engines, checkpoints, banks and exports, no GPU."""

from __future__ import annotations

from frami_edge.describing.description import Description, Fact, Section
from frami_edge.describing.kinds import describe

__all__ = ["Description", "Fact", "Section", "describe"]
