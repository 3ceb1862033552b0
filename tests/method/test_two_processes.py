"""Two gloo processes under torchrun make one bank of twice the clips, and one student."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


def test_two_processes_make_one_bank_and_one_student(tmp_path: Path) -> None:
    def launch() -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             SCRIPT, tmp_path],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [torch.load(tmp_path / f"found-{r}-of-2.pt", weights_only=True) for r in range(2)]

    runpy.run_path(str(SCRIPT))["main"](tmp_path / "alone")
    alone = torch.load(tmp_path / "alone" / "found-0-of-1.pt", weights_only=True)
    one, other = launch()
    for source, clips in alone["clips"].items():
        both = one["clips"][source]
        assert torch.equal(both, other["clips"][source])
        assert torch.equal(both[: len(clips)], clips), "rank 0 makes the clips of a single process"
        assert len(both) == 2 * len(clips)
        loud = both[both.flatten(1).std(1) > 1e-3].flatten(1)  # silent clips are all alike
        assert len(loud.unique(dim=0)) == len(loud) > 1.5 * len(clips), "no clip comes twice"
    for name, weight in one["student"].items():
        assert torch.equal(weight, other["student"][name]), name
    assert one["agreement"] == other["agreement"] > 0.6
    # As after a kill in which rank 1 had written nothing.
    shutil.rmtree(tmp_path / "bank" / "rank-1")
    (tmp_path / "bank" / "bank.json").unlink()
    again, _ = launch()
    for source, clips in one["clips"].items():
        assert torch.equal(again["clips"][source], clips)
