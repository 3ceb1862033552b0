"""A bank and a student under torchrun: `torchrun --nproc-per-node 2 two_processes.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from frami_edge.bank import BankSampler
from frami_edge.checkpoint import Card, Teacher
from frami_edge.config import JourneyConfig, TeacherArch
from frami_edge.device import Compute, world
from frami_edge.distillation import distill, held_out_agreement
from frami_edge.inversion import invert
from frami_edge.models import ResNetTeacher
from frami_edge_runtime.melspec import MelSpec

CONFIG = {
    "bank": {
        "frames": 24, "sources": {"inversion": 1, "procedural": 1}, "procedural_clips": 40,
        "inversion": {"steps": 6, "burn_in": 2, "batch_size": 8, "latent": 8, "width": 8},
    },
    "student": {"channels": [8, 8, 8], "time_kernels": [3, 3, 3], "out_channels": 16},
    "distill": {"steps": 60, "batch_size": 16, "crop_min": 16, "crop_max": 24},
}  # fmt: skip


def main(folder: Path) -> None:
    torch.manual_seed(0)
    spec = MelSpec(8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0)
    model = ResNetTeacher(TeacherArch(channels=(8, 16), blocks=1), spec.n_mels, 3)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, 16, 24))
    card = Card(kind="teacher", arch={}, mel=spec.to_dict(), labels=("a", "b", "c"))
    teacher = Teacher(model.eval().requires_grad_(False), card, spec, "0" * 64)
    cpu = Compute(torch.device("cpu"), torch.float32, False, "a test")
    config = JourneyConfig.model_validate(CONFIG)
    bank = invert(teacher, config.bank, folder / "bank", cpu, config.seed)
    student = distill(teacher, BankSampler(bank, config.bank.shares), config, cpu)
    found = {
        "clips": {name: bank.read(name).mels_N1MT for name in bank.sources},
        "student": student.state_dict(),
        "agreement": held_out_agreement(teacher, student, config, cpu),
    }
    folder.mkdir(exist_ok=True)
    torch.save(found, folder / f"found-{world()[0]}-of-{world()[1]}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
