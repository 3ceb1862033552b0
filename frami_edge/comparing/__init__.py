"""Two models side by side: the same facts, and the same answers on the same clips."""

from __future__ import annotations

from frami_edge.comparing.answers import Answers, compare_answers
from frami_edge.comparing.clips import Batch, bank_batch, length_batch, made_batch, real_batch
from frami_edge.comparing.facts import Finding, compare_facts
from frami_edge.comparing.sides import Side, open_side

__all__ = [
    "Answers",
    "Batch",
    "Finding",
    "Side",
    "bank_batch",
    "compare_answers",
    "compare_facts",
    "length_batch",
    "made_batch",
    "open_side",
    "real_batch",
]
