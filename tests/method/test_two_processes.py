"""Two gloo processes under torchrun make one bank of twice the clips, and one student."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from kit import SPEC, few_clips

from frami_edge.bank import BankSampler
from frami_edge.checkpoint import Card, Teacher
from frami_edge.config import JourneyConfig, TeacherArch
from frami_edge.device import Compute, world
from frami_edge.distillation import distill
from frami_edge.filling import invert
from frami_edge.models import ResNetTeacher
from frami_edge.readiness import judge

CONFIG = {
    "bank": {
        "clip_s": 0.24, "sources": {"inversion": 1, "procedural": 1}, "procedural_clips": 40,
        "inversion": {"steps": 6, "burn_in": 2, "batch_size": 8, "latent": 8, "width": 8},
    },
    "student": {"channels": [8, 8, 8], "time_kernels": [3, 3, 3], "out_channels": 16},
    "distill": {"steps": 60, "batch_size": 16, "crop_min_s": 0.16, "crop_max_s": 0.24},
}  # fmt: skip


def clips(bank):
    return {name: bank.read(name).mels_N1MT for name in bank.sources}


def run(folder):
    """One process: a bank, a student, and the bank again after a kill; writes what it found."""
    few_clips()
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 16), blocks=1), SPEC.n_mels, 3)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, 16, 24))
    card = Card(kind="teacher", arch={}, mel=SPEC.to_dict(), labels=("a", "b", "c"))
    teacher = Teacher(model.eval().requires_grad_(False), card, SPEC, "0" * 64)
    cpu = Compute(torch.device("cpu"), torch.float32, "a test")
    config = JourneyConfig.model_validate(CONFIG)
    bank = invert(teacher, config.bank, folder / "bank", cpu, config.seed)
    found = {"clips": clips(bank)}
    rank, ranks = world()
    if ranks > 1:
        student = distill(teacher, BankSampler(bank, config.bank.shares), config, cpu)
        found["student"] = student.state_dict()
        found["agreement"] = judge(teacher, student, config, cpu, SPEC).agreement["procedural"]
        if rank == 1:  # as after a kill in which rank 1 had written nothing
            shutil.rmtree(folder / "bank" / "rank-1")
            (folder / "bank" / "bank.json").unlink()
        dist.barrier()
        found["again"] = clips(invert(teacher, config.bank, folder / "bank", cpu, config.seed))
    torch.save(found, folder / f"found-{rank}.pt")


@pytest.mark.slow
def test_two_processes_make_one_bank_and_one_student(tmp_path):
    (tmp_path / "alone").mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as below: sums of several threads round differently
    run(tmp_path / "alone")
    torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         __file__, tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = ("alone/found-0.pt", "found-0.pt", "found-1.pt")
    alone, one, other = (torch.load(tmp_path / file, weights_only=True) for file in files)
    for source, mine in alone["clips"].items():
        both = one["clips"][source]
        assert torch.equal(both, other["clips"][source])
        assert torch.equal(both, one["again"][source])
        assert torch.equal(both[: len(mine)], mine), "rank 0 makes the clips of a single process"
        assert len(both) == 2 * len(mine)
        loud = both[both.flatten(1).std(1) > 1e-3].flatten(1)  # silent clips are all alike
        assert len(loud.unique(dim=0)) == len(loud) > 1.5 * len(mine), "no clip comes twice"
    for name, weight in one["student"].items():
        assert torch.equal(weight, other["student"][name]), name
    assert one["agreement"] == other["agreement"] > 0.6


if __name__ == "__main__":
    run(Path(sys.argv[1]))
