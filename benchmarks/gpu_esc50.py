"""ESC-50 on a GPU in ten minutes: throughput, memory, and as much of the table as time allows.

    python benchmarks/gpu_esc50.py [--data-root DIR] [--out DIR] [--seconds 540] [--set K=V ...]

First the rate of the inversion beside that of the teacher's own forward and backward pass on the
same batch, which no inversion can exceed; then experiments/protocols/esc50-gpu-quick.yaml, fold by
fold, until the time is over. The same command continues later. The data root holds ESC-50 in its
official layout, ESC-50-master. No GPU has run this yet.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import frami_edge as fe
from frami_edge.config import JourneyConfig, TeacherConfig, load_config
from frami_edge.data.sets import data_root, load_set
from frami_edge.device import autocast, choose_compute
from frami_edge.errors import FramiEdgeError
from frami_edge.models import ResNetTeacher
from frami_edge.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = ROOT / "experiments" / "protocols" / "esc50-gpu-quick.yaml"
FOLDS = ("1", "2", "3", "4", "5")
REPORT_S = 20
"""Seconds kept for the tables."""


def rates(steps: int) -> dict[str, Any]:
    """Log-mels per second of the inversion and of the teacher, with an untrained teacher."""
    compute = choose_compute()
    preset = load_config(TeacherConfig, "esc50-teacher")
    config = load_config(JourneyConfig, "esc50-student", ["bank.sources={inversion: 1}"])
    mel, batch = preset.mel.spec(), config.bank.inversion.batch_size
    torch.manual_seed(0)
    network = ResNetTeacher(preset.arch, mel.n_mels, 50).eval().requires_grad_(False)
    labels = [f"class {k}" for k in range(50)]
    ticks = []

    def tick(update: Progress) -> None:
        if update.phase == "inversion":
            if compute.device.type == "cuda":
                torch.cuda.synchronize(compute.device)
            ticks.append(time.monotonic())

    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
    teacher = fe.load_teacher(network, mel=mel, labels=labels)
    fe.invert(teacher, config=config, steps=steps, progress=tick)
    kept = ticks[len(ticks) // 2 :]
    synthesis = batch * (len(kept) - 1) / (kept[-1] - kept[0])

    network.to(compute.device)
    shape = (batch, 1, mel.n_mels, config.bank.frames)
    x = torch.randn(shape, device=compute.device, requires_grad=True)
    targets = (torch.arange(batch) % 50).to(compute.device)
    took = []
    for _ in range(20):
        started = time.monotonic()
        with autocast(compute):
            F.cross_entropy(network(x).float(), targets).backward()
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        took.append(time.monotonic() - started)
    bound = batch / sorted(took)[len(took) // 2]
    found = {
        "device": compute.reason,
        "inversion_mels_per_s": round(synthesis, 1),
        "teacher_mels_per_s": round(bound, 1),
        "share": round(synthesis / bound, 3),
    }
    if compute.device.type == "cuda":
        found["peak_mib"] = round(torch.cuda.max_memory_allocated(compute.device) / 2**20)
    return found


def main() -> int:
    """Rates, then folds until the time is over, then the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/esc50-gpu-quick"))
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--steps", type=int, default=100, help="inversion steps that are timed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    until = time.monotonic() + args.seconds - REPORT_S
    try:
        load_set("esc50", data_root(args.data_root))
        print(json.dumps(rates(args.steps), indent=2), flush=True)
    except FramiEdgeError as error:
        sys.exit(f"error: {error}")
    script = ROOT / "experiments" / "compare.py"
    command = [sys.executable, str(script), str(PROTOCOL), "--out", str(args.out)]
    command += [part for text in args.set for part in ("--set", text)]
    command += ["--data-root", str(args.data_root)] if args.data_root else []
    for fold in FOLDS:  # whole folds: what is cut short is folds, not methods
        process = subprocess.Popen([*command, "--folds", fold, "--quiet"])
        try:
            process.wait(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()  # what is being made is resumed by the next call
            process.wait()
            break
    return subprocess.run([*command, "--tables"]).returncode


if __name__ == "__main__":
    sys.exit(main())
