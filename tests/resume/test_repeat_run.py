"""``--from RUN``: the same student, or what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from frami_edge.checkpoint import load_checkpoint, save_checkpoint
from frami_edge.io import atomic_write_json
from frami_edge.runs import read_manifest

Call = Callable[..., Result]


def change_manifest(run: Path, **facts: object) -> None:
    atomic_write_json(run / "manifest.json", read_manifest(run) | facts)


def test_the_same_student_comes_again(call: Call, distill: Call, tmp_path: Path) -> None:
    distill(tmp_path / "a", "--set", "distill.gain=0.2", "--seed", "5", "-q")
    threads = torch.get_num_threads()
    change_manifest(
        tmp_path / "a", compute=read_manifest(tmp_path / "a")["compute"] | {"threads": threads}
    )
    torch.manual_seed(99)  # the global stream must not matter
    said = call("distill", "--from", tmp_path / "a", "--out", tmp_path / "b", "--json")
    found = json.loads(said.stdout)["repeats"]
    assert (found["identical"], found["same_file"], found["differences"]) == (True, True, [])
    assert read_manifest(tmp_path / "b")["repeats"]["identical"] is True
    assert read_manifest(tmp_path / "b")["compute"]["precision"] == "float32"
    for name in ("student.safetensors", "config.yaml", "metrics.jsonl", "bank/bank.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_student_is_told_from_where_on(call: Call, distill: Call, tmp_path: Path) -> None:
    run, again = tmp_path / "a", tmp_path / "b"
    distill(run, "-q")
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(rows[2])
    rows[2] = json.dumps(row | {"loss": 7.5}) + "\n"
    (run / "metrics.jsonl").write_text("".join(rows))
    old = read_manifest(run)
    change_manifest(run, versions=old["versions"] | {"torch": "1.0"})
    file = run / "student.safetensors"
    student = load_checkpoint(file, "student")
    card = student.card.model_copy(update={"version": "0.0.1"})
    save_checkpoint(file, student.model, card)
    said = call("distill", "--from", run, "--out", again)
    assert "in all its weights" in said.stderr
    assert "what the file says of them differs" in said.stderr
    next(student.model.parameters()).add_(1e-6)
    save_checkpoint(file, student.model, student.card)
    shutil.rmtree(again)
    error = call("distill", "--from", run, "--out", again, code=3).stderr
    assert f"The student is not that of {run}" in error
    assert 'versions.torch: "1.0" there' in error
    assert f"row 3 (inversion, step 3): loss 7.5 there, {row['loss']} here" in error
    assert read_manifest(again)["repeats"]["identical"] is False
    assert (again / "student.safetensors").exists()


def test_a_repetition_has_the_inputs_of_its_original(
    call: Call, distill: Call, new_teacher: Callable[..., Path], teacher: Path, tmp_path: Path
) -> None:
    run, again = tmp_path / "a", tmp_path / "b"
    distill(run, "-q")
    repeat = ("distill", "--from", run, "--out", again)
    moved = teacher.rename(tmp_path / "moved.safetensors")
    error = call(*repeat, code=1).stderr
    assert f"is not at {teacher}" in error
    assert "--teacher" in error
    other = new_teacher(tmp_path / "other.safetensors", seed=1)
    assert "its hash is another" in call(*repeat, "--teacher", other, code=1).stderr
    assert "had no --bank" in call(*repeat, "--bank", run / "bank", code=1).stderr
    assert not again.exists()
    call(*repeat, "--teacher", moved, "-q")
    with_bank = ("--teacher", moved, "--bank", run / "bank", "--out", tmp_path / "c", "-q")
    call("distill", run / "config.yaml", *with_bank, "--device", "cpu", "--precision", "fp32")
    call("distill", "--from", tmp_path / "c", "--out", tmp_path / "d", "-q")


def test_what_cannot_be_repeated(call: Call, distill: Call, config: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "a", ("--out", tmp_path / "b")
    assert "holds no run" in call("distill", "--from", run, *out, code=1).stderr
    distill(run, "-q")
    for change in (("--seed", "1"), ("--set", "seed=1"), ("--sources", "inversion")):
        said = call("distill", "--from", run, *out, *change, code=1).stderr
        assert f"{change[0]} would change it" in said
    assert "CONFIG would change it" in call("distill", config, "--from", run, *out, code=1).stderr
    assert "not of invert" in call("invert", "--from", run, *out, code=1).stderr
    change_manifest(run, status="interrupted")
    assert "never finished" in call("distill", "--from", run, *out, code=1).stderr
    for usage in (("distill", *out), ("distill", config, *out), ("train-teacher",)):
        assert "--from" in call(*usage, code=2).stderr
    assert not (tmp_path / "b").exists()


def test_a_bank_comes_again(call: Call, config: Path, teacher: Path, tmp_path: Path) -> None:
    cpu = ("--device", "cpu", "--precision", "fp32")
    call("invert", config, "--teacher", teacher, "--out", tmp_path / "a", *cpu, "-q")
    said = call("invert", "--from", tmp_path / "a", "--out", tmp_path / "b").stderr
    assert f"The bank is that of {tmp_path / 'a'}, bit for bit." in said
    assert f"distill {tmp_path / 'b' / 'config.yaml'}" in said


def test_going_on_with_other_arithmetic_is_told(distill: Call, tmp_path: Path) -> None:
    run = tmp_path / "a"
    distill(run, "-q")
    change_manifest(run, compute=read_manifest(run)["compute"] | {"threads": 77})
    assert "compute.threads: 77 there" in distill(run, "--resume").stderr


@pytest.fixture(autouse=True)
def _threads_stay() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
