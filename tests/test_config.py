"""Configs are refused before they take memory or time."""

from __future__ import annotations

import pytest

from frami_edge.config import JourneyConfig, load_config
from frami_edge.errors import ConfigError


@pytest.mark.parametrize(
    "change",
    ["bank.procedural_clips=100000000000", "distill.batch_size=1000000000", "bank.frames=1000000"],
)
def test_a_size_that_no_memory_holds_is_refused_at_once(change: str) -> None:
    with pytest.raises(ConfigError, match="should be less than or equal to"):
        load_config(JourneyConfig, "fsdd-student", [change])
