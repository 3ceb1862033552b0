"""Seconds to 98 % on spoken digits: our journey, and CMI's loop on the same teacher.

    python benchmarks/time_to_accuracy.py [--data-root DIR] [--seeds 0,1,2] [--threads 2]

Both start from the teacher that ships with the package and use no audio; the clock stops while the
300 official test clips are scored. Ours makes a bank, then distils. CMI's loop is the published one
in our harness: a new generator for each batch, 200 steps on it against the student itself, the best
clips kept, then 200 distillation steps on all batches so far; the same student, losses, batch size,
augmentation, warm-up and peak learning rate, which stays constant. It uses no procedural audio.
The crossing is the first score of 98 % or more; the end is the last step's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bars import Bar
from torch import Tensor

from frami_edge import distillation, inversion
from frami_edge.api import load_teacher
from frami_edge.assets import DIGITS_TEACHER
from frami_edge.bank import BankSampler
from frami_edge.checkpoint import Teacher
from frami_edge.config import JourneyConfig, load_config
from frami_edge.data.sets import data_root, load_set
from frami_edge.data.store import Features, FeatureStore
from frami_edge.device import Compute, choose_compute, place
from frami_edge.evaluation import predict, score
from frami_edge.models import StudentNet
from frami_edge.progress import Progress
from frami_edge.sources import SourceContext, make_source

GOAL = 0.98
BAR_S = 60.0
SCORE_EVERY = 50
KD_STEPS = 200
"""Distillation steps after each of CMI's batches; the published 400 leave it fewer batches."""
ENDLESS = 10**6
FAST = (
    "bank.sources={inversion: 1, procedural: 1}",
    "bank.procedural_clips=1500",
    "bank.inversion.steps=60",
    "bank.inversion.burn_in=25",
    "distill.steps=1100",
)
"""Changes of the preset fsdd-student that fit into a minute."""
CMI = (
    "bank.sources={cmi: 1}",
    "bank.inversion.steps=100000",
    "bank.baselines.cmi.iterations=200",
    "bank.baselines.cmi.student_steps=0",  # the student that is scored is the adversary
    *FAST[-1:],
)


class Enough(Exception):  # noqa: N818
    """Ends a run from its progress callback."""


class Stopwatch:
    """Scores the student of a run every few steps; scoring stops the clock.

    Args:
        tests: Clips to score on.
        stop: End at the goal.
        limit_s: End after so many seconds.
    """

    def __init__(self, tests: Features, *, stop: bool = False, limit_s: float = math.inf) -> None:
        self.tests, self.stop, self.limit_s = tests, stop, limit_s
        self.points: list[tuple[float, float]] = []
        self.student: StudentNet | None = None
        self._started = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep hold of the student that `distill` makes, which is not returned before the end."""
        make = distillation.new_student

        def kept(*arguments: Any) -> StudentNet:
            self.student = make(*arguments)
            return self.student

        with mock.patch.object(distillation, "new_student", kept):
            yield

    def __call__(self, update: Progress) -> None:
        """Score now and then."""
        if update.done % SCORE_EVERY:
            return
        assert self.student is not None
        now = time.monotonic()
        logits_NK = predict(self.student, self.tests.mels)
        accuracy = score(logits_NK, self.tests.labels).accuracy
        self.points.append((now - self._started, accuracy))
        self._started += time.monotonic() - now
        if (self.stop and accuracy >= GOAL) or self.points[-1][0] > self.limit_s:
            raise Enough

    @property
    def crossing(self) -> float:
        """Seconds until the goal; infinite where it was not reached."""
        return next((s for s, accuracy in self.points if accuracy >= GOAL), math.inf)


def ours(teacher: Teacher, tests: Features, compute: Compute, seed: int) -> Stopwatch:
    """The bank, then the distillation."""
    config = load_config(JourneyConfig, "fsdd-student", [*FAST, f"seed={seed}"])
    watch = Stopwatch(tests)
    with tempfile.TemporaryDirectory() as folder, watch.watching():
        bank = inversion.invert(teacher, config.bank, Path(folder) / "bank", compute, seed)
        sampler = BankSampler(bank, config.bank.shares)
        distillation.distill(teacher, sampler, config, compute, progress=watch)
    return watch


class CmiLoop:
    """A sampler that makes another batch of CMI's every `KD_STEPS` steps."""

    def __init__(self, context: SourceContext, watch: Stopwatch) -> None:
        self.source: Any = make_source("cmi", context)
        self.device = context.compute.device.type
        self.watch, self.clips, self.calls, self.index = watch, torch.empty(0), 0, 0

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T) random clips of all batches so far."""
        if self.calls % KD_STEPS == 0:
            self._grow()
        self.calls += 1
        return self.clips[torch.randint(len(self.clips), (n,), generator=generator)]

    def _grow(self) -> None:
        self.source.auxiliary.student = self.watch.student
        kept = None
        while kept is None:
            # The first call is `distill`'s probe, which runs without gradients.
            with torch.enable_grad(), torch.autocast(self.device, enabled=False):
                made = self.source.step(self.index)
            self.index += 1
            kept = made.mels_B1MT.cpu() if made.keep else None
        self.clips = torch.cat([self.clips, kept]) if len(self.clips) else kept


def cmi(
    teacher: Teacher, tests: Features, compute: Compute, seed: int, limit_s: float
) -> Stopwatch:
    """Until the goal, or until the limit."""
    config = load_config(JourneyConfig, "fsdd-student", [*CMI, f"seed={seed}"])
    # Our peak rate and as many steps of warm-up, then constant: its number of steps is not known.
    warmup = config.distill.warmup * config.distill.steps / ENDLESS
    distil = config.distill.model_copy(update={"steps": ENDLESS, "warmup": warmup})
    config = config.model_copy(update={"distill": distil})
    place(teacher.model, compute)
    n_classes = len(teacher.labels)
    context = SourceContext(teacher.model, teacher.mel, n_classes, config.bank, compute, seed)
    watch = Stopwatch(tests, stop=True, limit_s=limit_s)
    with watch.watching(), suppress(Enough):
        distillation.distill(teacher, CmiLoop(context, watch), config, compute, progress=watch)
    return watch


def main() -> None:
    """Both, seed by seed, as a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=10.0, help="CMI's loop: times ours")
    parser.add_argument("--ours-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compute = choose_compute()
    print(f"{compute.reason}; {args.threads} threads", file=sys.stderr)
    teacher = load_teacher(DIGITS_TEACHER)
    test_clips = load_set("fsdd", data_root(args.data_root)).split("test")[1]
    tests = FeatureStore(teacher.mel).load(test_clips)
    print("| seed | ours to 98 % | ours, whole | at the end | CMI's loop to 98 % | best | ratio |")
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
            reached = math.isfinite(theirs.crossing)
            spent = theirs.crossing if reached else theirs.points[-1][0]
            sign = "" if reached else "> "
            ratios.append(spent / mine.crossing)
            best = max(accuracy for _, accuracy in theirs.points)
            cells += [f"{sign}{spent:.0f} s", f"{100 * best:.2f} %", f"{sign}{ratios[-1]:.1f}x"]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(Bar("median seconds to 98 %", statistics.median(times), BAR_S, " s", at_most=True))
    if ratios:
        print(f"median ratio, CMI's loop to ours: {statistics.median(ratios):.1f}x")


if __name__ == "__main__":
    main()
