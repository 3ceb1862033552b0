"""How feature-rich are inverted mels? 256 fixed clips, no augmentation, FSDD.

    python benchmarks/feature_richness.py BANK [--data-root DIR] [--steps 600] [--seeds 0,1,2]

The digit teacher answers to 256 clips that never change: real ones (from its own training
split), inverted ones (a bank of the quickstart, evenly over the run), smooth noise and white
noise. The same student learns from each set with the same steps, and is scored on the 300
official test clips. With so few clips and nothing that widens them, what is in them decides.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from frami_edge.assets import DIGITS_TEACHER
from frami_edge.config import load_config
from frami_edge.controls import distilled_on
from frami_edge.data import FeatureStore, data_root, load_set
from frami_edge.device import choose_device, generator
from frami_edge.distillation.config import JourneyConfig
from frami_edge.distillation.feeds import ClipFeed, TensorFeed
from frami_edge.evaluation import predict, score
from frami_edge.inversion.bank import Bank
from frami_edge.inversion.controls import smooth_noise_mels, white_noise_mels
from frami_edge.inversion.run import ready
from frami_edge.models.checkpoint import load_checkpoint

CLIPS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    choice = choose_device()
    teacher = ready(load_checkpoint(DIGITS_TEACHER, "teacher"), choice)
    data = load_set("fsdd", data_root(args.data_root))
    train, test = data.split("test")
    store = FeatureStore(teacher.spec)
    tests, real = store.load(test), store.load(train)
    bank = Bank.open(args.bank)
    rows: dict[str, list[float]] = {}
    for seed in map(int, args.seeds.split(",")):
        fixed = ["distill.gain=0", "distill.mixup=0", f"distill.steps={args.steps}", f"seed={seed}"]
        config = load_config(JourneyConfig, "fsdd-student", [*fixed, "distill.crop_min=48"])
        frames, spec = config.bank.frames, teacher.spec
        draw = generator(seed, "fixed-set")
        inverted = bank.read("inversion").mels_N1MT
        sets = {
            "real": ClipFeed(real.mels, frames).batch(CLIPS, draw),
            "inverted": inverted[torch.randperm(len(inverted), generator=draw)[:CLIPS]],
            "smooth noise": smooth_noise_mels(spec, CLIPS, frames, draw.initial_seed()),
            "white noise": white_noise_mels(spec, CLIPS, frames, draw.initial_seed()),
        }
        for name, mels in sets.items():
            student = distilled_on(TensorFeed(mels), teacher, config, choice)
            accuracy = score(predict(student, tests.mels), tests.labels).accuracy
            rows.setdefault(name, []).append(100 * accuracy)
            print(f"seed {seed}  {name:13s} {100 * accuracy:.1f} %", flush=True)
    print(
        f"\n| {CLIPS} fixed clips, {args.steps} steps, no augmentation | accuracy, by seed | mean |"
    )
    print("| --- | --- | --- |")
    for name, values in rows.items():
        shown = ", ".join(f"{v:.1f}" for v in values)
        print(f"| {name} | {shown} | {statistics.mean(values):.1f} % |")


if __name__ == "__main__":
    main()
