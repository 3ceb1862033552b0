"""A run that was cut short anywhere resumes to the same result."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frami_edge import api
from frami_edge.errors import RunError
from frami_edge.progress import Progress
from frami_edge.runs import read_manifest

CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
RESULTS = ("student.safetensors", "metrics.jsonl", "bank/bank.json")


def same(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in RESULTS)


@pytest.fixture
def distill(teacher: Path, config: Path) -> Callable[..., None]:
    def run(out: Path, **more: Any) -> None:
        api.distill(teacher, config=config, out=out, **CPU, **more)

    return run


@pytest.fixture
def whole(distill: Callable[..., None], tmp_path: Path) -> Path:
    distill(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize(("phase", "step"), [("inversion", 5), ("distill", 1), ("distill", 5)])
def test_an_interrupted_run_resumes(
    distill: Callable[..., None], whole: Path, tmp_path: Path, phase: str, step: int
) -> None:
    def interrupt(update: Progress) -> None:
        if (update.phase, update.done) == (phase, step):
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distill(run, progress=interrupt)
    assert read_manifest(run)["status"] == "interrupted"
    (run / "bank" / ".0123abcd.tmp.shard").write_text("left by a killed process")
    distill(run, resume=True)
    assert same(run, whole)
    distill(run, resume=True)
    assert same(run, whole), "a finished run is only written again"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    places = [(row["phase"], row["step"]) for row in rows]
    assert places == [(name, i) for name in ("inversion", "distill") for i in range(1, 7)]
    assert not [p for p in run.rglob("*") if ".tmp." in p.name]


def test_a_full_disk_and_a_damaged_checkpoint(
    distill: Callable[..., None],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, real = tmp_path / "run", Path.write_bytes
    written = [0]

    def full(path: Path, data: bytes) -> int:
        is_state = path.name.endswith("distill-state.pt")
        written[0] += is_state
        if is_state and written[0] == 2:
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left.*distill-state\.pt"):
            distill(run)
    assert not [p for p in run.rglob("*") if ".tmp." in p.name]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    state = run / "distill-state.pt"
    state.write_bytes(state.read_bytes()[:-50])
    distill(run, resume=True)
    assert "is damaged: the distillation is done again" in caplog.text
    assert same(run, whole)
    (run / "manifest.json").write_text('{"schema": 1, "com')
    with pytest.raises(RunError, match="damaged"):
        distill(run, resume=True)


def test_signals_and_a_second_process(teacher: Path, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["distill", config, "--teacher", teacher, "--out", run, "--device", "cpu",
             "--set", "distill.steps=100000", "--set", "distill.learning_rate=1e-9"]  # fmt: skip

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "frami_edge", *map(str, words), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    try:
        end = time.monotonic() + 240
        while not (run / "distill-state.pt").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        second = start("--resume")
        message = second.communicate(timeout=240)[1]
        assert second.returncode == 1
        assert f"{run} is in use by another run" in message
        first.send_signal(signal.SIGTERM)
        message = first.communicate(timeout=240)[1]
        assert first.returncode == 143
        assert read_manifest(run)["status"] == "interrupted"
        assert f"--out {run}" in message.split("continue with: frami-edge distill")[1]
    finally:
        first.kill()
        first.communicate()
