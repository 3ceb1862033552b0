"""Kill long jobs with SIGKILL at many points, resume them, and compare with the undisturbed result.

    python benchmarks/kill_and_resume.py                       # every job, 20 kills each
    python benchmarks/kill_and_resume.py --jobs distill --kills 3 --json

A point is a moment at which a process may die: an optimiser's step, a row of metrics (also when
half of it is written), a file (about to be opened, half written, about to be renamed, just renamed,
about to be deleted). The undisturbed run counts them; seeded draws, spread over all of them, choose
where the others die. Some runs are killed by the clock instead, and some twice. A resumed run is
identical when every file that the undisturbed run left has the same bytes, rows of metrics
included; the manifest, which tells times, must say that it finished. After each kill every file
under its own name must be whole.

All jobs are tiny, on the CPU in fp32, from audio and a teacher that the script makes itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

# Processes are forked from this one, which must have no threads yet.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")  # exports note when they were made

import numpy as np
import soundfile
from killing.trials import UNTIMED, Job, Tally, Trial, try_job

PRELOADED = (
    "frami_edge.control_table",
    "frami_edge.exporting",
    "frami_edge.teachers.opening",
    "frami_edge.training.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "torch._dynamo",  # an optimiser imports it
)
"""What the forked processes need, imported once."""
STUDENT = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  frames: 24
  procedural_clips: 40
  control_clips: 40
  shard_clips: 16
  inversion: {steps: 7, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
  translator: {steps: 5, burn_in: 1, batch_size: 8}
distill: {steps: 12, batch_size: 8, crop_min: 16, crop_max: 24, checkpoint_steps: 4}
seed: 3
"""
TEACHER = """
data: {name: "folder:SOUNDS", fold: test}
mel: {sample_rate: 8000, n_fft: 256, win_length: 200, hop_length: 80, n_mels: 16}
arch: {channels: [8, 12], blocks: 1}
train: {epochs: 4, batch_size: 4}
"""
CPU = ("--device", "cpu", "--precision", "fp32")
REPORTS = ("export_report.json", "README.md", "export.png")
"""Of an export: they tell how fast the files are, and the card which of them is recommended."""


def tones(root: Path) -> None:
    """A folder of noisy tones, in train and test."""
    rng = np.random.default_rng(0)
    for side, n in (("train", 6), ("test", 4)):
        for k, label in enumerate(("high", "low")):
            for i in range(n):
                t = np.arange(2400 + 400 * i) / 8000
                wave = 0.3 * np.sin(2 * np.pi * (2000, 300)[k] * t)
                path = root / side / label / f"{i}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave + 0.02 * rng.standard_normal(len(t)), 8000)


def prepare(folder: Path, wanted: list[str]) -> dict[str, Job]:
    """Audio, configs, a teacher and students; the jobs on them."""
    tones(folder / "sounds")
    teacher, student = folder / "tones-teacher.yaml", folder / "tiny.yaml"
    teacher.write_text(TEACHER.replace("SOUNDS", str(folder / "sounds")))
    student.write_text(STUDENT)
    heard = str(folder / "teacher" / "teacher.safetensors")
    made = str(folder / "student" / "student.safetensors")
    bank = str(folder / "student" / "bank")
    train = Job("train-teacher", ["train-teacher", str(teacher), *CPU])
    invert = Job("invert", ["invert", str(student), "--teacher", heard, *CPU])
    distill = Job("distill", ["distill", str(student), "--teacher", heard, *CPU])
    controls = "white_noise,inversion,scratch"
    evaluate = Job(
        "evaluate --controls",
        ["evaluate", made, "--teacher", heard, "--data", f"folder:{folder / 'sounds'}",
         "--controls", controls, "--bank", bank, *CPU],
    )  # fmt: skip
    export = Job(
        "export --int8 --qat",
        [
            "export",
            str(folder / "settled" / "student.safetensors"),
            "--int8",
            "--qat",
            "60",
            "--bank",
            str(folder / "settled" / "bank"),
            "--samples",
            "32",
        ],
        resumes=False,
        loose=(*UNTIMED, *REPORTS),
    )
    # Calibration refuses a student whose BatchNorm is far from its bank, as after a few steps.
    longer = ["--set", "distill.steps=200", "--set", "distill.checkpoint_steps=200"]
    settled = Job("distill", [*distill.words, *longer])
    for job, name in ((train, "teacher"), (distill, "student"), (settled, "settled")):
        if name == "settled" and "export" not in wanted:
            continue
        trial = Trial(job, folder / name)
        if trial.run()[0]:
            raise SystemExit(f"{job.name} failed:\n{trial.said()}")
    return {job.name.split()[0]: job for job in (train, invert, distill, evaluate, export)}


def main() -> int:
    """Print the table; 1 where a trial was not identical."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = ("train-teacher", "invert", "distill", "evaluate", "export")
    parser.add_argument("--jobs", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--kills", type=int, default=20, help="of each job")
    parser.add_argument("--clock", type=int, default=-1, help="of these, by the clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the folders of what failed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    clock = args.kills // 4 if args.clock < 0 else args.clock
    folder = Path(tempfile.mkdtemp(prefix="frami-kill-"))
    os.environ["FRAMI_EDGE_CACHE"] = str(folder / "cache")
    os.environ.pop("FRAMI_EDGE_DATA", None)
    for module in PRELOADED:
        importlib.import_module(module)
    found: dict[str, Tally] = {}
    try:
        jobs = prepare(folder, args.jobs.split(","))
        for name in args.jobs.split(","):
            rng = random.Random(f"{args.seed}/{name}")
            (folder / name).mkdir()
            found[jobs[name].name] = try_job(jobs[name], folder / name, args.kills, clock, rng)
    finally:
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(json.dumps({name: vars(tally) for name, tally in found.items()}))
    else:
        print(f"{'job':<22}{'points':>8}{'killed':>8}{'identical':>11}  where")
        for name, t in found.items():
            where = ", ".join(f"{label} {n}" for label, n in t.where.most_common())
            print(f"{name:<22}{t.points:>8}{t.kills:>8}{t.identical:>11}  {where}")
            for problem in t.problems:
                print(f"  {problem}")
    return 0 if all(t.identical == args.kills and not t.problems for t in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
