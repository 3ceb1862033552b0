"""ESC-50 on a GPU in ten minutes: throughput, memory, and as much of the table as time allows.

    python benchmarks/gpu_esc50.py [--data-root DIR] [--out DIR] [--seconds 540] [--set K=V ...]

First the rate of the inversion against that of the teacher's own forward and backward pass on the
same batch, which no inversion can beat; then the protocol protocols/esc50-gpu-quick, all methods
fold by fold, until the time is over; run it again with the same --out to go on. The last lines are
a short table. The data root holds ESC-50 in its official layout, ESC-50-master.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from frami_edge.data.sets import data_root, load_set
from frami_edge.device import Compute, autocast, choose_compute
from frami_edge.models import ResNetTeacher
from frami_edge.protocol.cost import without_warm_up
from frami_edge.protocol.memory import peak_memory
from frami_edge.protocol.plan import Plan, load_protocol
from frami_edge.sources import SOURCES
from frami_edge.sources.base import Context
from frami_edge_runtime.errors import FramiEdgeError

PROTOCOL = "protocols/esc50-gpu-quick"
CLASSES = 50
STEPS = 40
REPORT_S = 20
"""Kept for the report."""


def rate(step: Callable[[int], object], clips: int, compute: Compute, steps: int) -> float:
    """Clips a second; the median over blocks of ten steps, the device waited for after each."""
    took = []
    for block in range(-1, max(1, steps // 10)):
        begun = time.monotonic()
        for i in range(10):
            step((block + 1) * 10 + i)
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        took.append(time.monotonic() - begun)
    return 10 * clips / median(took[1:])


def throughput(compute: Compute, overrides: list[str], steps: int) -> dict[str, Any]:
    """Mels a second of inversion and teacher, on an untrained teacher of the preset's size."""
    plan = Plan(load_protocol(PROTOCOL, overrides))
    config = plan.teacher_config(plan.protocol.folds[0])
    bank = without_warm_up(plan.journey(plan.students[0]).bank)
    torch.manual_seed(0)
    teacher = ResNetTeacher(config.arch, config.mel.n_mels, CLASSES).to(compute.device).eval()
    teacher.requires_grad_(False)
    if compute.channels_last:
        teacher.to(memory_format=torch.channels_last)
    b = bank.inversion.batch_size
    x = torch.randn(b, 1, config.mel.n_mels, bank.frames, device=compute.device)
    labels = (torch.arange(b) % CLASSES).to(compute.device)

    def teacher_step(_: int) -> None:
        x.requires_grad_().grad = None
        with autocast(compute):
            loss = F.cross_entropy(teacher(x).float(), labels)
        loss.backward()

    source = SOURCES["inversion"](Context(teacher, config.mel.spec(), CLASSES, bank, compute, 0))
    with peak_memory(compute.device) as peak:
        synthesis = rate(source.step, b, compute, steps)
    bound = rate(teacher_step, b, compute, steps)
    return {
        "mels_per_s": round(synthesis, 1),
        "teacher_mels_per_s": round(bound, 1),
        "share": round(synthesis / bound, 3),
        "peak_mib": peak.device_mib or peak.host_mib,
        "batch": b,
        "frames": bank.frames,
    }


def run_protocol(args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """As far as it comes; what it leaves is whole.

    Fold by fold, so that what is cut short is folds and not baselines. One process: whether two
    share a GPU well has not been measured.
    """
    until = time.monotonic() + seconds
    command = [sys.executable, "-m", "frami_edge", "protocol", PROTOCOL, "--out", str(args.out)]
    for text in args.set:
        command += ["--set", text]
    if args.data_root:
        command += ["--data-root", str(args.data_root)]
    for fold in load_protocol(PROTOCOL, args.set).folds:
        process = subprocess.Popen([*command, "--folds", fold], stdout=subprocess.DEVNULL)
        try:
            if process.wait(timeout=max(1.0, until - time.monotonic())):
                print(f"fold {fold}: not all of it is there; see above", file=sys.stderr)
        except subprocess.TimeoutExpired:
            process.terminate()  # it stops after the step, and keeps what is done
            process.wait()
            break
    told = subprocess.run([*command, "--tables", "--json"], stdout=subprocess.PIPE, text=True)
    if not told.stdout:
        sys.exit("No table: the messages above say why. Run it again with the same --out.")
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/esc50-gpu-quick"))
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the throughput")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    begun = time.monotonic()
    try:
        load_set("esc50", data_root(args.data_root))
    except FramiEdgeError as error:
        sys.exit(f"error: {error}")
    compute = choose_compute()
    rates = throughput(compute, args.set, args.steps)
    print(f"{compute.reason}\nthroughput: {json.dumps(rates)}", file=sys.stderr, flush=True)
    found = run_protocol(args, args.seconds - (time.monotonic() - begun) - REPORT_S)
    print(f"\n{found['title']}: {found['students']} of {found['of']} students, ", end="")
    print(f"{time.monotonic() - begun:.0f} s on {compute.reason.split(';')[0]}")
    print(
        f"synthesis {rates['mels_per_s']} mels/s, {100 * rates['share']:.0f} % of the teacher's "
        f"own {rates['teacher_mels_per_s']}; peak {rates['peak_mib']} MiB\n"
    )
    print(
        "| method | runs | accuracy | of the teacher | agreement | KL | synthesis | distillation |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for m in found["methods"]:
        made = "" if m["synthesis_s"] is None else f"{m['synthesis_s']:.0f} s"
        print(
            f"| {m['name']} | {m['runs']} of {m['planned']} | {100 * m['accuracy']:.1f} % | "
            f"{100 * m['accuracy'] / m['teacher']:.1f} % | {100 * m['agreement']:.1f} % | "
            f"{m['kl']:.3f} | {made} | {m['distill_s']:.0f} s |"
        )


if __name__ == "__main__":
    main()
