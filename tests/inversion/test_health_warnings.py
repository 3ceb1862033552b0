"""What a bank's figures are warned of."""

from __future__ import annotations

from typing import Any

import pytest

from frami_edge.bank import warnings


def health(**changes: Any) -> dict[str, Any]:
    return {"requested": 0.5, "batch_norm_error": 0.03, "class_share": [0.1] * 10} | changes


def test_a_sound_bank_is_not_warned_of() -> None:
    assert warnings({"inversion": health(), "procedural": health(requested=None)}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requested": 0.15}, "in only 15 % of the clips (20 % is the least)"),
        ({"requested": 0.7, "class_share": [0.5, 0.5]}, "(80 % is the least)"),
        ({"batch_norm_error": 0.5}, "0.50 away"),
        ({"class_share": [0.7, *[0.03] * 9]}, "one class in 70 % of the clips"),
    ],
)
def test_a_known_failure_is(change: dict[str, Any], words: str) -> None:
    (said,) = warnings({"inversion": health(**change)})
    assert words in said


def test_the_fix_names_keys_of_the_config() -> None:
    (said,) = warnings({"cmi": health(requested=0.1)})
    assert "bank.inversion.steps or bank.baselines.cmi.class_loss" in said
