"""What `frami-edge invert` and `frami-edge distill` refuse, and that nothing half-written stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from frami_edge.checkpoint import load_checkpoint, save_checkpoint

Call = Callable[..., Result]
Teachers = Callable[..., Path]
CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ("dreams", "unknown source dreams"),
        ("inversion=0", "one must be positive"),
        ("inversion=-1", "is not NAME or NAME=WEIGHT"),
        ("inversion=much", "is not NAME or NAME=WEIGHT"),
        ("inversion=nan", "is not NAME or NAME=WEIGHT"),
        ("", "is not NAME or NAME=WEIGHT"),
        ("inversion,,procedural", "is not NAME or NAME=WEIGHT"),
        ("a: 1}, b: {c", "is not NAME or NAME=WEIGHT"),
    ],
)
def test_impossible_sources(invert: Call, tmp_path: Path, mix: str, words: str) -> None:
    error = invert("--sources", mix, code=1).stderr
    assert words in error
    assert "fix: " in error
    assert not (tmp_path / "bank").exists()


def test_what_is_no_teacher_is_refused(
    invert: Call, student: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    whole = teacher.read_bytes()
    torn, pickled, empty = (tmp_path / f"{n}.safetensors" for n in ("torn", "pickled", "empty"))
    torn.write_bytes(whole[: len(whole) // 2])
    torch.save({"a": torch.zeros(2)}, pickled)
    empty.write_bytes(b"")
    diverged = load_checkpoint(teacher)
    diverged.model.requires_grad_(False)
    next(diverged.model.parameters()).fill_(float("nan"))
    nan = tmp_path / "nan.safetensors"
    save_checkpoint(nan, diverged.model, diverged.card)
    for file, words in (
        (tmp_path / "nowhere.safetensors", "no checkpoint"),
        (tmp_path, "is a folder, not a checkpoint"),
        (torn, "not a whole safetensors file"),
        (pickled, "not a whole safetensors file"),
        (empty, "not a whole safetensors file"),
        (nan, "not finite"),
        (student["student"], "student"),
    ):
        error = invert(code=1, **{"--teacher": file}).stderr
        assert words in error
        assert "fix: " in error
        assert not (tmp_path / "bank").exists()


def test_a_bank_of_another_teacher_or_none_is_refused(
    new_teacher: Teachers,
    distill: Call,
    call: Call,
    config: Path,
    student: dict[str, Any],
    tmp_path: Path,
) -> None:
    other = new_teacher(tmp_path / "other.safetensors", seed=1)
    bank, out = Path(student["run_dir"]) / "bank", tmp_path / "run"
    again = ("distill", config, "--teacher", other, "--bank", bank, "--out", out, *CPU)
    assert "made with another teacher" in call(*again, code=1).stderr
    assert (
        "no clips of smooth_noise"
        in distill(out, "--bank", bank, "--sources", "smooth_noise", code=1).stderr
    )
    shorter = ("--set", "bank.frames=26", "--set", "distill.crop_max=26")
    assert "have 24 mel frames" in distill(out, "--bank", bank, *shorter, code=1).stderr
    for nowhere in (tmp_path / "nowhere", tmp_path, other):
        assert "fix: " in distill(out, "--bank", nowhere, code=1).stderr
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "bank.json").write_text("{")
    assert "fix: " in distill(out, "--bank", damaged, code=1).stderr
    assert not out.exists()


def test_config_mistakes_are_all_told_at_once(invert: Call, config: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        config.read_text().replace("burn_in: 1, batch_size: 8}", "burnin: 1, batch_size: many}")
    )
    error = invert(code=1, config=wrong).stderr
    assert "bank.translator.burnin: there is no such key; did you mean 'burn_in'?" in error
    assert "bank.translator.batch_size" in error
    for changed in ("distill.crop_max=25", "distill.crop_min=25", "seed=-1", "bank.frames=a"):
        assert changed.split("=")[0].split(".")[-1] in invert("--set", changed, code=1).stderr
    assert "no config called" in invert(code=1, config="esc10-studnet").stderr
    assert "did you mean 'esc10-student'" in invert(code=1, config="esc10-studnet").stderr
    assert not (tmp_path / "bank").exists()


def test_burn_in_that_leaves_no_clip(invert: Call, tmp_path: Path) -> None:
    error = invert("--set", "bank.inversion.burn_in=5", code=1).stderr
    assert "burn" in error
    assert "bank.inversion" in error


def test_what_diverges_is_never_written(
    distill: Call, invert: Call, student: dict[str, Any], tmp_path: Path
) -> None:
    bank, run = Path(student["run_dir"]) / "bank", tmp_path / "run"
    wild = ("--set", "distill.learning_rate=1e30")
    error = distill(run, "--bank", bank, *wild, code=1).stderr
    assert "The distillation diverged" in error
    assert "smaller distill.learning_rate" in error
    assert not (run / "student.safetensors").exists()
    error = invert("--set", "bank.inversion.learning_rate=1e30", code=1).stderr
    assert "The source inversion diverged" in error
    assert not list((tmp_path / "bank").rglob("*.safetensors"))


def test_wrong_usage_ends_with_2(invert: Call, call: Call, config: Path) -> None:
    invert("--seed", "-1", code=2)
    invert("--precision", "fp8", code=2)
    call("invert", config, code=2)
    call("distill", config, "--bank", "x", code=2)


def test_a_device_that_is_not_there(invert: Call, tmp_path: Path) -> None:
    for device in ("cuda:99", "tpu"):
        assert "fix: Use" in invert("--device", device, code=1).stderr
    assert not (tmp_path / "bank").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place nobody may write to")
def test_an_out_that_nobody_may_write(invert: Call) -> None:
    error = invert(code=1, **{"--out": "/proc/bank"}).stderr
    assert "error: /proc/bank" in error
    assert "fix: " in error


def test_an_out_that_is_a_file_or_full_of_other_things(invert: Call, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in invert(code=1, **{"--out": file}).stderr
    assert "fix: " in invert(code=1, **{"--out": file / "below"}).stderr
    assert "holds no run" in invert(code=1, **{"--out": tmp_path}).stderr
    assert "is a file" in invert("--listen", file, code=1).stderr
    assert not (tmp_path / "bank").exists()
    assert file.read_text() == "mine"
