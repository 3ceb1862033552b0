"""A published baseline as the source of a bank, through the normal commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from frami_edge.bank import Bank
from frami_edge.checkpoint import load_checkpoint
from frami_edge.config import BASELINES

Call = Callable[..., Result]
CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.mark.parametrize("name", BASELINES)
def test_invert_with_a_baseline(
    name: str, call: Call, config: Path, teacher: Path, tmp_path: Path
) -> None:
    result = call(
        "invert", config, "--teacher", teacher, "--out", tmp_path / "bank", *CPU, "--json",
        "--set", f"bank.sources={{{name}: 1}}", "--set", "bank.inversion.steps=6",
    )  # fmt: skip
    found = json.loads(result.stdout)
    batch_wise = name in ("deep_inversion", "cmi", "fast")
    assert found["clips"] == {name: 8 if batch_wise else 5 * 8}
    health = found["health"][name]
    assert health["batch_norm_error"] is not None
    assert (health["requested"] is None) == (not batch_wise)
    assert {"diversity", f"mels-{name}", f"curves-{name}"} <= set(found["plots"])


def test_distil_and_evaluate_with_controls(
    call: Call, config: Path, teacher: Path, sounds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    call(
        "distill", config, "--teacher", teacher, "--out", out, *CPU,
        "--set", "bank.sources={cmi: 1, procedural: 1}",
        "--set", "bank.baselines.cmi.iterations=2", "--set", "bank.inversion.steps=6",
    )  # fmt: skip
    assert Bank.open(out / "bank").sources == {"cmi": 24, "procedural": 40}
    recipe = load_checkpoint(out / "student.safetensors", "student").card.recipe
    assert recipe["bank"]["baselines"]["cmi"]["iterations"] == 2
    assert list(recipe["bank"]["baselines"]) == ["cmi"]
    result = call(
        "evaluate", out / "student.safetensors", "--teacher", teacher, "--data",
        f"folder:{sounds}", "--controls", "cmi", "--bank", out / "bank", *CPU, "--json",
    )  # fmt: skip
    assert set(json.loads(result.stdout)["controls"]) == {"smooth_noise", "cmi"}


def test_what_is_wrong_is_said(call: Call, config: Path, teacher: Path, tmp_path: Path) -> None:
    def invert(*sets: str) -> str:
        changes = [part for text in sets for part in ("--set", text)]
        return call(
            "invert", config, "--teacher", teacher, "--out", tmp_path / "x", *CPU, *changes, code=1
        ).stderr  # fmt: skip

    assert "did you mean 'iterations'" in invert("bank.baselines.cmi.iteration=2")
    assert "unknown source cmy" in invert("bank.sources={cmy: 1}")
    said = invert("bank.sources={dfq: 1}", "bank.inversion.burn_in=5")
    assert "Raise bank.inversion.steps above bank.inversion.burn_in" in " ".join(said.split())
