"""Ctrl-C, SIGTERM and SIGKILL: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import Result

from frami_edge import distillation, inversion
from frami_edge.runs import Stop, read_manifest
from frami_edge.training import TeacherTrainer

Call = Callable[..., Result]
CPU = ("--device", "cpu", "--precision", "fp32")
TEACHER = """
data: {name: "folder:SOUNDS", fold: test}
mel: {sample_rate: 8000, n_fft: 256, win_length: 200, hop_length: 80, n_mels: 16}
arch: {channels: [8, 12], blocks: 1}
train: {epochs: 2, batch_size: 2}
"""


def rows(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for side in ("train", "test"):
        for label in ("high", "low"):
            for i in range(3):
                path = tmp_path / "sounds" / side / label / f"{i}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, 0.1 * rng.standard_normal(2400), 8000)
    return tmp_path / "sounds"


def interrupting(real: Callable[..., object], number: int, counted: list[int]) -> object:
    """The function, which sends this process a signal in its fifth call."""

    def call(*arguments: object) -> object:
        counted[0] += 1
        if counted[0] == 5:  # in the midst of a step, of an epoch and of a shard
            os.kill(os.getpid(), number)
        return real(*arguments)

    return call


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_finishes_its_step_and_saves(
    number: int,
    code: int,
    call: Call,
    sounds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(TEACHER.replace("SOUNDS", str(sounds)))
    words = ("train-teacher", recipe, *CPU)
    call(*words, "--out", tmp_path / "whole", "-q")
    stopped, counted = tmp_path / "stopped", [0]
    with monkeypatch.context() as patch:
        patch.setattr(TeacherTrainer, "_step", interrupting(TeacherTrainer._step, number, counted))
        call(*words, "--out", stopped, code=code)
        assert counted[0] == 5, "the step is the last one"
        assert read_manifest(stopped)["status"] == "interrupted"
        call(*words, "--out", stopped, "--resume", "-q")
        assert counted[0] == 6, "no step is made twice"
    assert rows(stopped) == rows(tmp_path / "whole")
    result = "teacher.safetensors"
    assert (stopped / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()


@pytest.mark.parametrize(
    ("job", "where", "name", "result"),
    [
        ("invert", inversion.Inversion, "step", "bank/bank.json"),
        ("distill", distillation, "augmented", "student.safetensors"),
    ],
)
def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_result(
    job: str,
    where: Any,
    name: str,
    result: str,
    call: Call,
    config: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (job, config, "--teacher", teacher, *CPU)
    call(*words, "--out", tmp_path / "whole", "-q")
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupting(getattr(where, name), signal.SIGINT, [0]))
        patch.setattr(sys, "argv", ["/somewhere/frami-edge", job, "--out", "a b"])
        said = call(*words, "--out", stopped, code=130).stderr
    assert f"continue with: frami-edge {job} --out 'a b' --resume" in said
    assert read_manifest(stopped)["status"] == "interrupted"
    call(*words, "--out", stopped, "--resume", "-q")
    assert rows(stopped) == rows(tmp_path / "whole")
    assert (stopped / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()
    assert not [p for p in stopped.rglob("*") if ".tmp." in p.name]


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell that starts pytest in the background has it ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_signal_is_not_waited_for() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    steps = 0
    with pytest.raises(KeyboardInterrupt), Stop() as stop:  # noqa: PT012
        for _ in range(3):
            steps += 1
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked()
    assert steps == 2
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_after_the_last_question_still_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt), Stop() as stop:  # noqa: PT012
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGINT)
    with Stop() as stop:
        pass
    assert not stop.asked()


def test_two_processes_and_a_killed_one(
    process: Callable[..., subprocess.Popen[str]], config: Path, teacher: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("distill", config, "--teacher", teacher, "--out", run, *CPU)
    long = ("--set", "distill.steps=100000", "--set", "distill.learning_rate=1e-9")
    first = process(*words, *long)
    try:
        end = time.monotonic() + 240
        while not (run / "distill-state.pt").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        second = process(*words, *long, "--resume")
        said = second.communicate(timeout=240)[1]
        assert second.returncode == 1
        assert f"{run} is in use by another run." in said
        assert "fix: Wait for it, or give another --out." in said
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=240)[1]
        assert first.returncode == 143
        assert f"--out {run}" in said.split("continue with: frami-edge distill")[1]
        steps = [json.loads(row)["step"] for row in rows(run) if '"distill"' in row]
        assert steps == list(range(1, len(steps) + 1))
    finally:
        first.kill()
        first.communicate()
