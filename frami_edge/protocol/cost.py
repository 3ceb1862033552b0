"""What the tasks of a plan cost on this machine, from a few steps of untrained networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

from frami_edge.config import BankConfig
from frami_edge.data.sets import SoundSet
from frami_edge.device import Compute, autocast
from frami_edge.distillation import Distiller, TensorFeed
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge.protocol.plan import Plan, Task
from frami_edge.sources import SOURCES
from frami_edge.sources.base import Context
from frami_edge.sources.baselines import BatchWise
from frami_edge_runtime.melspec import MelSpec

STEPS = 3
"""Steps that are timed, after one that warms up."""


class Cost:
    """Seconds that tasks take; what is alike is timed once.

    Args:
        plan: The tasks.
        data: The protocol's set.
        compute: Device and precision.
    """

    def __init__(self, plan: Plan, data: SoundSet, compute: Compute) -> None:
        self.plan, self.data, self.compute = plan, data, compute
        self._config = plan.teacher_config(plan.protocol.folds[0])
        self._spec: MelSpec = self._config.mel.spec()
        teacher = ResNetTeacher(self._config.arch, self._spec.n_mels, len(data.labels))
        self._teacher = teacher.to(compute.device).eval().requires_grad_(False)
        self._known: dict[object, float] = {}

    def seconds(self, task: Task) -> float:
        """Of the whole task; reading audio and scoring are left out."""
        if task.kind == "teacher":
            return self._once("teacher", self._epoch) * self._config.train.epochs
        journey = self.plan.journey(task)
        if task.kind == "student":
            recipe = journey.distill
            like = recipe.model_copy(update={"steps": 1}), journey.student
            return recipe.steps * self._once(str(like), lambda: self._distil_step(task))
        facts = journey.bank.model_dump_json()
        return sum(
            self._once((facts, name), lambda name=name: self._source(task, name))  # type: ignore[misc]
            for name in journey.bank.shares
        )

    def _once(self, key: object, measure: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]

    def _epoch(self) -> float:
        train = self._config.train
        frames = train.crop_frames or 500
        model = ResNetTeacher(self._config.arch, self._spec.n_mels, len(self.data.labels))
        model.to(self.compute.device)
        x = torch.randn(train.batch_size, 1, self._spec.n_mels, frames, device=self.compute.device)

        def step(_: int) -> None:
            with autocast(self.compute):
                loss = F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long).to(x.device))
            loss.backward()

        clips = len(self.data.split(self.plan.protocol.folds[0])[0])
        return self._timed(step) * clips / train.batch_size

    def _distil_step(self, task: Task) -> float:
        journey = self.plan.journey(task)
        clips = torch.randn(256, 1, self._spec.n_mels, journey.bank.frames)
        head = self._teacher.head if journey.distill.reuse_head else None
        student = StudentNet(journey.student, self._spec.n_mels, len(self.data.labels), head)
        recipe, feed = journey.distill, TensorFeed(clips)
        distiller = Distiller(self._teacher, student, recipe, self.compute, 0, feed)
        return self._timed(lambda _: distiller.step())

    def _source(self, task: Task, name: str) -> float:
        bank = without_warm_up(self.plan.journey(task).bank)
        classes = len(self.data.labels)
        context = Context(self._teacher, self._spec, classes, bank, self.compute, 0)
        source = SOURCES[name](context)
        if isinstance(source, BatchWise):
            return self._batches(source)
        # What the first step alone does, such as the translator's pool of clips, counts once.
        first, *others = self._took(source.step, source.steps)
        return first + (source.steps - 1) * median(others or [first])

    def _batches(self, source: BatchWise) -> float:
        """By the last batch: from the second one on there is a sparring student to play against.

        It learns after the last step of each batch, which takes many times as long as the others.
        """
        n, steps = source.batches, source.steps
        begin = -(-(n - 1) * steps // n)
        end = n * self._timed(lambda _: source.step(steps - 1), 2)
        others = steps - n
        if not others:
            return end
        return end + others * self._timed(lambda i: source.step(begin + i), steps - 1 - begin)

    def _timed(self, step: Callable[[int], object], most: int = STEPS + 1) -> float:
        """Median of a few steps without the first, unless there is only that one."""
        took = self._took(step, most)
        return median(took[1:] or took)

    def _took(self, step: Callable[[int], object], most: int) -> list[float]:
        """Seconds of each of the first steps."""
        took = []
        for i in range(min(STEPS + 1, most)):
            begun = time.monotonic()
            step(i)
            if self.compute.device.type == "cuda":
                torch.cuda.synchronize(self.compute.device)
            took.append(time.monotonic() - begun)
        return took


def without_warm_up(bank: BankConfig) -> BankConfig:
    """The terms that begin late count from the first step: rather too dear than too cheap."""
    adversarial = bank.inversion.adversarial.model_copy(update={"warmup_steps": 0})
    fast = bank.baselines.fast.model_copy(update={"warmup": 0.0})
    return bank.model_copy(
        update={
            "inversion": bank.inversion.model_copy(update={"adversarial": adversarial}),
            "baselines": bank.baselines.model_copy(update={"fast": fast}),
        }
    )
