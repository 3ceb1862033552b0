"""Disks that are full, files that a crash has cut, and locks that nobody holds any more."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from frami_edge.cli._app import explain
from frami_edge.runs import RunFolder, load_state

Call = Callable[..., Result]
RESULTS = ("student.safetensors", "metrics.jsonl", "bank/bank.json")


def same(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in RESULTS)


def leftovers(run: Path) -> list[Path]:
    return [p for p in run.rglob("*") if ".tmp." in p.name]


def test_a_full_disk_and_files_that_were_cut(
    distill: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    distill(whole, "-q")
    real = Path.write_bytes

    def full(ending: str, number: int) -> None:
        """The disk is full in the midst of the so-manieth file with this ending."""
        seen = [0]

        def write(path: Path, data: bytes) -> int:
            seen[0] += path.name.endswith(ending)
            if path.name.endswith(ending) and seen[0] >= number:
                real(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return real(path, data)

        monkeypatch.setattr(Path, "write_bytes", write)

    more: list[str] = []
    for ending, number in ((".safetensors", 2), ("distill-state.pt", 2), ("README.md", 1)):
        full(ending, number)
        error = distill(run, "-q", *more, code=1).stderr
        assert "no space is left on the disk" in error
        assert "fix: Free some space" in error
        assert "--resume" in error
        assert not leftovers(run)
        more = ["--resume"]
    state = run / "distill-state.pt"
    saved = load_state(state)
    assert saved is not None
    assert saved["done"] == 6
    monkeypatch.setattr(Path, "write_bytes", real)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    (run / "bank" / ".0123abcd.tmp.shard").write_text("left by a killed process")
    state.write_bytes(state.read_bytes()[:-50])
    said = distill(run, "--resume").stderr
    assert f"The checkpoint {state} is damaged: the distillation is done again" in said
    assert same(run, whole)
    assert not leftovers(run)
    cut = run / "manifest.json"
    cut.write_text(cut.read_text()[:40])
    error = distill(run, "--resume", code=1).stderr
    assert f"{cut} is damaged" in error
    assert f"fix: Delete {run} and start again" in error
    assert same(run, whole)


def test_a_row_that_finds_no_space_names_its_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    run = RunFolder.create(tmp_path, command="distill", config={"a": 1})
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, run:
        run.log(step=1)
    says = explain(caught.value)
    assert says.message == f"{tmp_path / 'metrics.jsonl'} no space is left on the disk."
    (tmp_path / "metrics.jsonl").unlink()
    with RunFolder.create(tmp_path, command="distill", config={"a": 1}, resume=True) as again:
        again.log(step=1)
        assert again.metrics() == [{"step": 1}]


def test_a_file_that_may_not_be_so_large() -> None:
    says = explain(OSError(errno.EFBIG, os.strerror(errno.EFBIG), "a"))
    assert says.message == "a: larger than files may be here."
    assert "ulimit" in says.fix


def test_metrics_rows_are_neither_doubled_nor_missing_after_a_second_end(
    distill: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    distill(run, "-q")
    distill(run, "--resume", "-q")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    places = [(row["phase"], row["step"]) for row in rows]
    assert places == [(name, i) for name in ("inversion", "distill") for i in range(1, 7)]
