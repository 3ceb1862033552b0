"""`torchrun -m frami_edge distill`, by torchrun itself; the other tests start their own ranks."""

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

from frami_edge.cli import app

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STEPS = ("--set", "distill.learning_rate=1e-4", "--set", "distill.checkpoint_steps=5")

pytestmark = pytest.mark.slow


def torchrun(words: list[object]) -> subprocess.Popen[str]:
    """Started, with one thread a process."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, *map(str, words)], stdout=pipe, stderr=pipe, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ranks_of(pid: int) -> list[int]:
    """The processes that torchrun has started, by rank."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(int(child) for child in found)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in /proc (Linux)")
def test_a_rank_is_killed_and_the_run_goes_on(
    command: Callable[..., list[object]], tmp_path: Path
) -> None:
    steps = (*STEPS, "--set", "distill.steps=60")
    process = torchrun(command("both", *steps))
    metrics = tmp_path / "both" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"phase": "distill"') > 4):
        assert time.monotonic() < end, "never came to distillation"
        time.sleep(0.05)
    os.kill(ranks_of(process.pid)[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out == ""
    assert "--resume" in err
    assert not (tmp_path / "both" / "student.safetensors").exists()

    process = torchrun(command("both", *steps, "--resume"))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "student" in json.loads(out), "one object, of one rank"

    assert CliRunner().invoke(app, [str(w) for w in command("alone", *steps)[2:]]).exit_code == 0
    alone, both = (load_file(tmp_path / n / "student.safetensors") for n in ("alone", "both"))
    torch.testing.assert_close(both, alone, rtol=2e-3, atol=5e-4)
