"""Seconds to 98 % on spoken digits: our journey, and CMI's loop on the same teacher.

    python benchmarks/time_to_accuracy.py [--data-root DIR] [--seeds 0,1,2] [--threads 2]

Both start from the teacher that ships with the package and know no audio; the clock stops while
the 300 official test clips are scored. Ours makes its bank, then distils. CMI's loop is the
published one in our harness: a new generator for each batch, 200 steps on it against the student
itself, the best clips kept, then distillation on all batches so far; the same student, losses,
batch size, augmentation, warm-up and peak learning rate, which stays constant. Procedural audio,
which ours has, is no part of CMI.
The crossing is the first score of 98 % or more; the end is the last step's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bars import Bar
from torch import Tensor

from frami_edge.assets import DIGITS_TEACHER
from frami_edge.bank import BankFeed
from frami_edge.checkpoint import Teacher, load_checkpoint
from frami_edge.config import JourneyConfig, load_config
from frami_edge.data.sets import data_root, load_set
from frami_edge.data.store import Features, FeatureStore
from frami_edge.device import Compute, choose_compute
from frami_edge.distillation import Distiller, TensorFeed, new_student
from frami_edge.evaluation import predict, score
from frami_edge.inversion import context_of, make_bank, ready
from frami_edge.sources import SOURCES
from frami_edge.sources.baselines import Baseline

GOAL = 0.98
BAR_S = 60.0
SCORE_EVERY = 50
FAST = (
    "bank.sources={inversion: 1, procedural: 1}",
    "bank.procedural_clips=1500",
    "bank.inversion.steps=60",
    "bank.inversion.burn_in=25",
    "distill.steps=1100",
)
"""Of the preset fsdd-student: what a minute allows."""
CMI = (
    "bank.sources={cmi: 1}",
    "bank.inversion.steps=100000",
    "bank.baselines.cmi.iterations=200",
    "bank.baselines.cmi.student_steps=0",  # the student that is scored is the adversary
    *FAST[-1:],
)
ENDLESS = 10**6
KD_STEPS = 200
"""Distillation steps after each batch of CMI's; the published 400 leave it fewer batches."""


class Clock:
    """Seconds that count: scoring stops it.

    Args:
        score: Accuracy of the student as it is.
    """

    def __init__(self, score: Callable[[], float]) -> None:
        self._score, self._begun = score, time.monotonic()
        self.points: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """So far."""
        return time.monotonic() - self._begun

    def look(self) -> float:
        """Score now."""
        now = time.monotonic()
        self.points.append((self.seconds, self._score()))
        self._begun += time.monotonic() - now
        return self.points[-1][1]

    @property
    def crossing(self) -> float:
        """Seconds until the goal; infinite where it was not reached."""
        return next((s for s, accuracy in self.points if accuracy >= GOAL), math.inf)


def ours(teacher: Teacher, tests: Features, compute: Compute, seed: int) -> Clock:
    config = load_config(JourneyConfig, "fsdd-student", [*FAST, f"seed={seed}"])
    student = new_student(config.student, teacher, config.distill, seed)
    clock = Clock(lambda: accuracy(student, tests))
    with tempfile.TemporaryDirectory() as folder:
        context = context_of(teacher, config.bank, compute, seed)
        bank = make_bank(Path(folder) / "bank", context, teacher.card.labels, teacher.sha256)
        feed = BankFeed(bank, config.bank.shares)
        distiller = Distiller(teacher.model, student, config.distill, compute, seed, feed)
        while distiller.done < config.distill.steps:
            distiller.step()
            if distiller.done % SCORE_EVERY == 0:
                clock.look()
                student.train()
    return clock


def cmi(teacher: Teacher, tests: Features, compute: Compute, seed: int, limit_s: float) -> Clock:
    """Until the goal, or until the limit."""
    config = load_config(JourneyConfig, "fsdd-student", [*CMI, f"seed={seed}"])
    # Our rate and as many steps of warm-up, then constant: nobody knows when the goal is reached.
    warmup = config.distill.warmup * config.distill.steps / ENDLESS
    recipe = config.distill.model_copy(update={"steps": ENDLESS, "warmup": warmup})
    student = new_student(config.student, teacher, recipe, seed)
    clock = Clock(lambda: accuracy(student, tests))
    source = SOURCES["cmi"](context_of(teacher, config.bank, compute, seed))
    assert isinstance(source, Baseline)
    assert source.sparring is not None
    source.sparring.student = student
    batches: list[Tensor] = []
    distiller: Distiller | None = None
    for i in range(source.steps):
        batch = source.step(i)
        if not batch.keep:
            continue
        batches.append(batch.mels_B1MT.cpu())
        feed = TensorFeed(torch.cat(batches))
        if distiller is None:
            distiller = Distiller(teacher.model, student, recipe, compute, seed, feed)
        distiller.feed = feed
        student.train()
        for _ in range(KD_STEPS):
            distiller.step()
            if distiller.done % SCORE_EVERY == 0:
                reached = clock.look() >= GOAL
                student.train()
                if reached or clock.seconds > limit_s:
                    return clock
    return clock


def accuracy(student: torch.nn.Module, tests: Features) -> float:
    return score(predict(student, tests.mels), tests.labels).accuracy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=10.0, help="times ours, for CMI's loop")
    parser.add_argument("--ours-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compute = choose_compute()
    print(f"{compute.reason}; {args.threads} threads", file=sys.stderr)
    teacher = ready(load_checkpoint(DIGITS_TEACHER, "teacher"), compute)
    data = load_set("fsdd", data_root(args.data_root))
    tests = FeatureStore(teacher.spec).load(data.split("test")[1])
    print(
        "| seed | ours to 98 % | ours, whole | at the end | CMI's loop to 98 % | its best | ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    times, ratios = [], []
    for seed in map(int, args.seeds.split(",")):
        mine = ours(teacher, tests, compute, seed)
        end_s, end = mine.points[-1]
        times.append(mine.crossing)
        crossed = f"{mine.crossing:.1f} s" if math.isfinite(mine.crossing) else "not reached"
        cells = [str(seed), crossed, f"{end_s:.1f} s", f"{100 * end:.2f} %"]
        if not args.ours_only:
            theirs = cmi(teacher, tests, compute, seed, args.limit * end_s)
            best = max(a for _, a in theirs.points)
            reached = math.isfinite(theirs.crossing)
            spent = theirs.crossing if reached else theirs.points[-1][0]
            sign = "" if reached else "> "
            ratios.append(spent / mine.crossing)
            cells += [f"{sign}{spent:.0f} s", f"{100 * best:.2f} %", f"{sign}{ratios[-1]:.1f}x"]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(Bar("median seconds to 98 %", statistics.median(times), BAR_S, " s", at_most=True))
    if ratios:
        print(f"median ratio, CMI's loop to ours: {statistics.median(ratios):.1f}x")


if __name__ == "__main__":
    main()
