"""Disks that are full, files that a crash has cut, and locks that nobody holds any more."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from frami_edge import runs as _lock
from frami_edge.cli._app import explain
from frami_edge.errors import RunError
from frami_edge.runs import FolderLock, RunFolder, load_state, save_state

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
        assert "could not be written: no space is left there" in error
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
    assert (
        says.message
        == f"{tmp_path / 'metrics.jsonl'} could not be written: no space is left there."
    )
    (tmp_path / "metrics.jsonl").unlink()
    with RunFolder.create(tmp_path, command="distill", config={"a": 1}, resume=True) as again:
        again.log(step=1)
        assert again.metrics() == [{"step": 1}]


def test_a_file_that_may_not_be_so_large() -> None:
    says = explain(OSError(errno.EFBIG, os.strerror(errno.EFBIG), "a"))
    assert says.message == "a could not be written: it would be larger than files may be here."
    assert "ulimit" in says.fix


def test_killed_before_the_config_was_written(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, command="distill", config={"a": 1}):
        pass
    (tmp_path / "config.yaml").unlink()
    with RunFolder.create(tmp_path, command="distill", config={"a": 1}, resume=True):
        assert (tmp_path / "config.yaml").read_text() == "a: 1\n"
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "student.safetensors").write_text("x")
    with pytest.raises(RunError, match="cannot be read") as caught:
        RunFolder.create(tmp_path, command="distill", config={"a": 1}, resume=True)
    assert "Delete" in caught.value.fix


def test_a_state_is_whole_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_state(path, {"done": 3})
    data = path.read_bytes()
    assert load_state(path) == {"done": 3}
    for number in range(0, len(data), 97):
        path.write_bytes(data[:number] + bytes([data[number] ^ 1]) + data[number + 1 :])
        assert load_state(path) is None
    path.write_bytes(b"")
    assert load_state(path) is None


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("holder", "silent_s", "free"),
    [
        ("", 0, True),
        ("what is this", 0, True),
        (f"{os.getppid()} HERE", 0, False),
        (f"{os.getppid()}", 0, False),
        ("4194304 HERE", 0, True),  # above every process id that Linux gives
        ("1 0123abcd", 0, False),
        ("1 0123abcd", 3600, True),
    ],
)
def test_without_locks_the_file_is_the_lock(
    holder: str, silent_s: int, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    file = tmp_path / _lock.NAME
    file.write_text(holder.replace("HERE", _lock._host()))
    os.utime(file, (time.time() - silent_s,) * 2)
    if not free:
        with pytest.raises(RunError, match="is in use") as caught:
            FolderLock(tmp_path)
        assert ("another host" in caught.value.message) == ("0123abcd" in holder)
        return
    lock = FolderLock(tmp_path)
    assert file.read_text().split() == [str(os.getpid()), _lock._host()]
    lock.release()
    assert file.read_text() == ""


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "BEAT_S", 0.01)
    lock = FolderLock(tmp_path)
    file = tmp_path / _lock.NAME
    os.utime(file, (0, 0))
    end = time.monotonic() + 30
    while file.stat().st_mtime == 0:
        assert time.monotonic() < end
        time.sleep(0.01)
    lock.release()


def test_metrics_rows_are_neither_doubled_nor_missing_after_a_second_end(
    distill: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    distill(run, "-q")
    distill(run, "--resume", "-q")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    places = [(row["phase"], row["step"]) for row in rows]
    assert places == [(name, i) for name in ("inversion", "distill") for i in range(1, 7)]
