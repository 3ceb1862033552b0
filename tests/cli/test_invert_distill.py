"""`frami-edge invert` and `frami-edge distill` from end to end."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from typer.testing import Result

from frami_edge import sources as inversion_sources
from frami_edge.bank import Bank
from frami_edge.checkpoint import load_checkpoint
from frami_edge.distillation import Distiller
from frami_edge.runs import read_manifest

Call = Callable[..., Result]
Teachers = Callable[..., Path]
CPU = ("--device", "cpu", "--precision", "fp32")
LABELS = ("high", "low")
SOURCES = {"inversion": 32, "procedural": 40, "translator": 32}


def same_student(a: Path, b: Path) -> bool:
    one, other = (load_checkpoint(p / "student.safetensors", "student") for p in (a, b))
    return one.sha256 == other.sha256


def steps(run: Path) -> dict[str, list[int]]:
    """Steps in metrics.jsonl by phase."""
    found: dict[str, list[int]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["phase"], []).append(row["step"])
    return found


def test_invert_makes_a_bank_that_can_be_heard(invert: Call, tmp_path: Path) -> None:
    wavs = tmp_path / "wavs"
    result = invert("--listen", wavs, "--json")
    found = json.loads(result.stdout)
    assert found["clips"] == SOURCES
    assert set(found["health"]) == set(SOURCES)
    assert found["health"]["procedural"]["requested"] is None
    assert 0 <= found["health"]["inversion"]["requested"] <= 1
    for picture in found["plots"].values():
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert {"diversity", "mels-inversion", "curves-inversion"} <= set(found["plots"])
    assert sorted(found["wavs"]) == sorted(str(p) for p in wavs.iterdir())
    assert len(found["wavs"]) >= len(SOURCES)
    for wav in found["wavs"]:
        samples, rate = soundfile.read(wav)
        assert rate == 8000
        assert len(samples) == 256 + 23 * 80
        assert 0.85 < abs(samples).max() < 0.9  # -1 dBFS
    bank = Bank.open(Path(found["bank"]))
    assert bank.index.labels == LABELS
    assert read_manifest(found["run_dir"])["status"] == "finished"
    assert steps(tmp_path / "bank")["inversion"] == [1, 2, 3, 4, 5]


def test_people_are_told_the_health_and_the_next_command(invert: Call, tmp_path: Path) -> None:
    result = invert("--sources", "inversion")
    assert "Bank health" in result.stdout
    assert "inversion 5/5 (100%)" in result.stderr
    assert f"--bank {tmp_path}/bank/bank --sources inversion" in result.stderr
    assert set(Bank.open(tmp_path / "bank" / "bank").sources) == {"inversion"}


def test_distil_makes_a_student_that_says_what_it_is(
    student: dict[str, Any], teacher: Path
) -> None:
    loaded = load_checkpoint(Path(student["student"]), "student")
    theirs = load_checkpoint(teacher, "teacher")
    card = loaded.card
    assert loaded.sha256 == student["sha256"]
    assert (card.teacher_sha256, card.labels) == (theirs.sha256, LABELS)
    assert card.teacher_trained_on == theirs.card.trained_on
    assert card.trained_on is None
    assert card.licence == "CC-BY-SA-4.0"
    assert card.recipe["seed"] == 3
    assert 0 <= student["synthetic_agreement"] <= 1
    assert student["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert student["macs_per_second"] > 0
    assert set(student["seconds"]) >= {"invert", "distill"}
    run = Path(student["run_dir"])
    assert steps(run)["distill"] == [1, 2, 3, 4, 5, 6]
    assert not list((run / "bank").rglob("*state*"))
    assert not [p for p in run.rglob("*") if ".tmp." in p.name]
    assert read_manifest(run)["student"]["sha256"] == student["sha256"]


def test_a_finished_run_resumed_trains_no_more(
    distill: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(distill(tmp_path / "run", "--json").stdout)
    monkeypatch.setattr(Distiller, "_advance", lambda _: pytest.fail("nothing is left to do"))
    again = json.loads(distill(tmp_path / "run", "--resume", "--json").stdout)
    assert again["sha256"] == first["sha256"]


def test_a_bank_made_before_gives_the_same_student(
    distill: Call, student: dict[str, Any], tmp_path: Path
) -> None:
    bank = Path(student["run_dir"]) / "bank"
    result = distill(tmp_path / "run", "--bank", bank)
    assert same_student(tmp_path / "run", Path(student["run_dir"]))
    assert "next: frami-edge evaluate" in result.stderr
    assert "--data folder:tones" in result.stderr
    assert not (tmp_path / "run" / "bank").exists()


def test_sources_and_seed_change_the_student(
    distill: Call, student: dict[str, Any], tmp_path: Path
) -> None:
    bank = Path(student["run_dir"]) / "bank"
    for name, more in {
        "mixed": ("--sources", "inversion=2,procedural=1"),
        "seed": ("--seed", "4"),
    }.items():
        distill(tmp_path / name, "--bank", bank, "-q", *more)
        assert not same_student(tmp_path / name, Path(student["run_dir"])), name
    recipe = load_checkpoint(tmp_path / "mixed" / "student.safetensors").card.recipe
    assert recipe["bank"]["sources"] == {"inversion": 2.0, "procedural": 1.0}


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_distillation_is_resumed_to_the_same_student(
    distill: Call,
    student: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_after: int,
) -> None:
    bank = Path(student["run_dir"]) / "bank"
    run = tmp_path / "run"
    real = Distiller._advance

    def step(self: Distiller) -> torch.Tensor:
        if self.done == killed_after:
            raise KeyboardInterrupt
        return real(self)

    typed = ["distill", "x.yaml", "--set", "distill.gain=0.3", "--out", "a b"]
    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "_advance", step)
        patch.setattr(sys, "argv", ["/somewhere/frami-edge", *typed])
        stopped = distill(run, "--bank", bank, code=130)
    assert shlex.join(["frami-edge", *typed, "--resume"]) in stopped.stderr
    assert read_manifest(run)["status"] == "interrupted"
    assert not (run / "student.safetensors").exists()
    assert "unfinished run" in distill(run, "--bank", bank, code=1).stderr
    torch.manual_seed(99)  # the global stream must not matter
    distill(run, "--bank", bank, "--resume", "-q")
    assert same_student(run, Path(student["run_dir"]))
    assert steps(run)["distill"] == [1, 2, 3, 4, 5, 6]


def test_a_killed_inversion_is_resumed_to_the_same_student(
    distill: Call, student: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    source = inversion_sources.SOURCES["translator"]
    real = source.step

    def step(self: Any, i: int) -> Any:
        if i == 4:
            raise KeyboardInterrupt
        return real(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(source, "step", step)
        distill(run, "-q", code=130)
    distill(run, "--resume", "-q")
    assert same_student(run, Path(student["run_dir"]))
    for phase in ("inversion", "translator"):
        assert steps(run)[phase] == [1, 2, 3, 4, 5]


def test_only_the_same_run_is_resumed(
    new_teacher: Teachers,
    distill: Call,
    call: Call,
    config: Path,
    student: dict[str, Any],
    teacher: Path,
    tmp_path: Path,
) -> None:
    bank, run = Path(student["run_dir"]) / "bank", tmp_path / "run"
    assert "no run to resume" in distill(run, "--resume", code=1).stderr
    distill(run, "--bank", bank, "-q")
    assert "already holds a finished run" in distill(run, "--bank", bank, code=1).stderr
    other = ("--bank", bank, "--resume")
    assert "another config: seed: 3 -> 4" in distill(run, *other, "--seed", 4, code=1).stderr
    assert "another bank" in distill(run, "--resume", code=1).stderr
    second = new_teacher(tmp_path / "second.safetensors", seed=1)
    again = ("--out", run, "--resume", *CPU)
    error = call("distill", config, "--teacher", second, *again, code=1).stderr
    assert "another teacher" in error
    assert "not of invert" in call("invert", config, "--teacher", teacher, *again, code=1).stderr


def test_a_full_disk_is_one_sentence_and_leaves_no_torn_file(
    invert: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(a: Any, b: Any) -> None:
        if str(b).endswith(".safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(b))
        real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        error = invert(code=1).stderr
    assert "no space is left" in error
    assert "--resume" in error
    assert not list((tmp_path / "bank").rglob("*.tmp.*"))
    invert("--resume")
    assert Bank.open(tmp_path / "bank" / "bank").sources == SOURCES
