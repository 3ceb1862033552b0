"""Folds x seeds x methods: one file says what is compared, one command runs it and tells."""

from __future__ import annotations

from frami_edge.protocol.config import Method, Protocol
from frami_edge.protocol.plan import Plan, Task
from frami_edge.protocol.results import Results

__all__ = ["Method", "Plan", "Protocol", "Results", "Task"]
