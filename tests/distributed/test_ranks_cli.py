"""`frami-edge distill` in two processes: who speaks, who writes, and a process that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from frami_edge.cli import _options as _ranks
from frami_edge.cli import app
from frami_edge.distributed import LostProcessError, rank_device
from frami_edge.errors import ConfigError
from frami_edge.runs import read_manifest

Pair = Callable[..., "list[subprocess.Popen[str]]"]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    said = [p.communicate(timeout=120) for p in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


def wait_for_steps(run: Path, phase: str) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        file = run / "metrics.jsonl"
        if file.exists() and file.read_text().count(f'"phase": "{phase}"') > 4:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} never came to {phase}")


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_goes_on(
    command: Callable[..., list[object]], pair: Pair, tmp_path: Path
) -> None:
    steps = ("--set", "distill.steps=60", "--set", "distill.learning_rate=1e-4")
    processes = pair(*command("killed", *steps, "--set", "distill.checkpoint_steps=5"))
    run = tmp_path / "killed"
    wait_for_steps(run, "distill")
    processes[1].send_signal(signal.SIGKILL)
    (code, out, err), _ = finish(processes)
    assert code == 1, err
    assert out == ""
    assert "Another process of this run has ended" in err
    assert "torchrun --nproc-per-node 2 -m frami_edge distill" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert read_manifest(run)["status"] == "failed"
    assert not [f for f in run.rglob("*") if ".tmp." in f.name], "nothing may be half-written"
    assert not (run / "student.safetensors").exists()

    more = (*steps, "--set", "distill.checkpoint_steps=5")
    (code, out, err), (other, quiet, silent) = finish(pair(*command("killed", *more, "--resume")))
    assert (code, other) == (0, 0), err + silent
    assert (quiet, silent) == ("", ""), "rank 0 alone speaks"
    assert set(json.loads(out)) >= {"student", "sha256", "synthetic_agreement"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    done = [row["step"] for row in rows if row["phase"] == "distill"]
    assert done == list(range(1, 61))

    assert CliRunner().invoke(app, [str(w) for w in command("alone", *more)[2:]]).exit_code == 0
    alone, both = (
        load_file(tmp_path / name / "student.safetensors") for name in ("alone", "killed")
    )
    torch.testing.assert_close(both, alone, rtol=2e-3, atol=5e-4)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConfigError("No such thing.", fix="Do it."),
            "process 1 of the run: error: No such thing.",
        ),
        (LostProcessError("Gone.", fix="Again."), ""),
        (KeyboardInterrupt(), ""),
    ],
)
def test_another_rank_speaks_only_of_its_own_failure(
    error: BaseException,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    @_ranks.on_every_rank
    def command(**options: str) -> None:
        print("a result")
        print("a note", file=sys.stderr)
        raise error

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(_ranks, "_joined", lambda run, options: run(**options))
    monkeypatch.setattr(_ranks, "SILENCE_S", 0.0)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    with pytest.raises(SystemExit) as left:
        command(device="cpu")
    out, err = capfd.readouterr()
    assert left.value.code == 1
    assert out == ""
    assert "a note" not in err
    assert said in err if said else err == ""


@pytest.mark.parametrize(
    ("requested", "local", "gpus", "expected"),
    [
        ("auto", 1, 2, "cuda:1"),
        ("cuda", 0, 2, "cuda:0"),
        ("cpu", 1, 2, "cpu"),
        ("auto", 1, 0, "cpu"),
    ],
)
def test_each_rank_takes_its_own_gpu(
    requested: str, local: int, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", str(local))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert rank_device(requested) == expected
    if gpus:
        with pytest.raises(ConfigError, match="one GPU to every process"):
            rank_device("cuda:0")
        monkeypatch.setenv("LOCAL_RANK", "2")
        with pytest.raises(ConfigError, match="more processes"):
            rank_device("auto")
