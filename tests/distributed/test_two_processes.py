"""Two gloo processes on a CPU give what one gives."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FEW_STEPS = {"rtol": 2e-3, "atol": 2e-4}
"""Rounding differs by the order of sums; a few steps of Adam make it larger."""


def close(a: Any, b: Any, **tolerance: float) -> None:
    bounds = tolerance or FEW_STEPS
    torch.testing.assert_close(a, b, rtol=bounds["rtol"], atol=bounds["atol"])


def test_they_are_two_and_hear_rank_0(two: dict[str, Any]) -> None:
    assert two["world"] == 2
    assert two["told"] == "by 0"


def test_batch_norm_sees_the_clips_of_both(two: dict[str, Any], cases: ModuleType) -> None:
    alone = cases.batch_norm()
    assert alone.keys() == two["batch_norm"].keys()
    # A mean of 30 with a standard deviation of 1: a difference of sums would lose digits.
    close(two["batch_norm"], alone, rtol=1e-4, atol=1e-5)
    low = cases.batch_norm(torch.bfloat16)
    close(two["batch_norm_bf16"], low, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("distilled", {}),
        ("own_head", {"batch_size": 8, "reuse_head": False}),
        ("logits", {"batch_size": 8, "before_pooling": 0, "after_pooling": 0}),
    ],
)
def test_the_student_is_the_same(
    two: dict[str, Any], cases: ModuleType, name: str, changes: dict[str, Any]
) -> None:
    alone = cases.distilled(**changes)
    close(two[name]["rows"][0], alone["rows"][0], rtol=1e-5, atol=1e-6)
    close(two[name]["rows"], alone["rows"])
    close(two[name]["student"], alone["student"])


def test_a_run_goes_on_with_another_number_of_processes(
    two: dict[str, Any], cases: ModuleType
) -> None:
    whole = cases.distilled()["student"]
    assert two["half"]["done"] == cases.HALF
    close(cases.resumed(two["half"]), whole)
    close(two["resumed"], whole)


def test_the_bank_is_the_same(two: dict[str, Any], cases: ModuleType, tmp_path: Path) -> None:
    alone = cases.bank(tmp_path / "bank")
    for name in ("procedural", "white_noise"):
        found, expected = two["bank"]["clips"][name], alone["clips"][name]
        assert torch.equal(found["mels_N1MT"], expected["mels_N1MT"])
        close(found["logits_NK"], expected["logits_NK"], rtol=1e-5, atol=1e-5)
    for (source, done, row), (s, d, expected) in zip(
        two["bank"]["rows"], alone["rows"], strict=True
    ):
        assert (source, done) == (s, d)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if done == 1 else FEW_STEPS
        close(row, expected, **tolerance)
    for name in ("inversion", "translator"):
        # Stored as float16.
        close(two["bank"]["clips"][name], alone["clips"][name], rtol=5e-3, atol=5e-3)
    assert two["bank"]["health"].keys() == alone["health"].keys()


def test_the_baselines_are_the_same(two: dict[str, Any], cases: ModuleType, tmp_path: Path) -> None:
    alone = cases.baselines(tmp_path / "bank")
    assert len(alone) == 6
    for name, clips in alone.items():
        close(two["baselines"][name], clips, rtol=5e-3, atol=5e-3)


def test_a_bank_goes_on_with_another_number_of_processes(
    two: dict[str, Any], cases: ModuleType, folder: Path, tmp_path: Path
) -> None:
    whole = cases.bank(tmp_path / "whole")
    shards = json.loads((folder / "begun-by-two" / "bank.json").read_text())["shards"]
    assert shards == [] or two["begun"] == {}
    by_one = cases.bank(folder / "begun-by-two")
    for found in (two["goes_on"], by_one):
        assert found["rows"][0][:2] == ("inversion", 4), "it must not begin anew"
        for name, clips in whole["clips"].items():
            close(found["clips"][name], clips, rtol=5e-3, atol=5e-3)
