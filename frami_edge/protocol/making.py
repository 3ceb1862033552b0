"""Makes the tasks of a plan: a teacher, a bank, a student with its score."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frami_edge.bank import Bank, BankFeed
from frami_edge.checkpoint import Teacher, load_checkpoint, parameters
from frami_edge.cli._output import Output
from frami_edge.controls import control_feed, control_student
from frami_edge.data.sets import SoundSet, check_disjoint, load_set
from frami_edge.data.store import Features, FeatureStore
from frami_edge.device import Compute
from frami_edge.distillation import CHECKPOINT, Feed, distill, save_student
from frami_edge.evaluation import check_held_out, predict, score
from frami_edge.inversion import context_of, draw, invert, ready
from frami_edge.models import StudentNet
from frami_edge.protocol.clips import Clips
from frami_edge.protocol.curve import Curve
from frami_edge.protocol.memory import Peak, peak_memory
from frami_edge.protocol.plan import Plan, Task
from frami_edge.protocol.results import Results
from frami_edge.runs import RunFolder, git_commit, read_manifest
from frami_edge.training import TEACHER, train_teacher

KINDS = {"teacher": "teachers", "bank": "banks", "student": "students"}
"""Folder of each kind of task."""


class Maker:
    """Does the tasks of one protocol inside its folder.

    Args:
        plan: The tasks.
        folder: Of the protocol's runs.
        root: Of the data sets; None for $FRAMI_EDGE_DATA.
        compute: Device and precision.
        out: For progress.
    """

    def __init__(
        self, plan: Plan, folder: Path, root: Path | None, compute: Compute, out: Output
    ) -> None:
        self.plan, self.folder, self.root = plan, folder, root
        self.compute, self.out = compute, out
        self.results = Results(folder)
        self._teacher: tuple[str, Teacher] | None = None
        self._clips: tuple[str, Clips] | None = None
        self._answers: dict[str, Tensor] = {}

    @cached_property
    def data(self) -> SoundSet:
        """The set; tables of what is there do without it.

        Raises:
            DataError: It is not there.
        """
        return load_set(self.plan.protocol.data, self.root)

    def check(self) -> None:
        """That all real audio of the plan is there, and apart where it should be.

        Raises:
            DataError: A set or a fold is missing, or an unrelated set shares clips with the one
                that is scored.
        """
        for fold in self.plan.protocol.folds:
            self.data.split(fold)
        for name in sorted({m.unrelated or "" for m in self.plan.protocol.methods.values()}):
            if name:
                check_disjoint(load_set(name, self.root), self.data)

    def place(self, task: Task) -> Path:
        """The task's run folder."""
        return self.folder / KINDS[task.kind] / task.key

    def done(self, task: Task) -> bool:
        """Whether its result is there."""
        if task.kind == "student":
            return task.key in self.results
        place = self.place(task)
        if not (place / "manifest.json").exists():
            return False
        finished: bool = read_manifest(place).get("status") == "finished"
        return finished

    def make(self, task: Task) -> None:
        """Make it, or go on where it was cut short."""
        # No task pays for the clips that the one before was scored on.
        self._clips = None
        {"teacher": self._train, "bank": self._invert, "student": self._distil}[task.kind](task)

    def _run(self, task: Task, config: Any) -> RunFolder:
        place = self.place(task)
        begun = (place / "manifest.json").exists()
        return RunFolder.create(
            place,
            command=f"protocol {task.kind}",
            config=config,
            resume=begun,
            seeds={"seed": task.seed},
            device=self.compute.reason,
        )

    def _train(self, task: Task) -> None:
        config = self.plan.teacher_config(task.fold)
        with self._run(task, config) as run, self._measured(run):
            train_teacher(run, config, self.root, self.compute)

    def _invert(self, task: Task) -> None:
        config = self.plan.journey(task)
        teacher = self._loaded(task)
        with self._run(task, config) as run, self._measured(run):
            context = context_of(teacher, config.bank, self.compute, task.seed)
            place = run.path("bank")
            bank = invert(run, place, context, teacher.card.labels, teacher.sha256, self.out)
            draw(run, bank)

    def _distil(self, task: Task) -> None:
        config, method = self.plan.journey(task), self.plan.method(task)
        teacher = self._loaded(task)
        check_held_out(teacher.card.heard, self.data, task.fold)
        clips = self._clips_of(task.fold, teacher)
        with self._run(task, config) as run:
            real = self._real(task, teacher)
            curve = Curve(run, self.plan.protocol.curve_steps, clips)
            sources: dict[str, float] = {}
            with self._measured(run) as peak:

                def watch(done: int, student: StudentNet) -> None:
                    with peak.left_out():
                        curve.watch(done, student)

                begun = time.monotonic(), time.process_time()
                if method.control == "scratch":
                    student = control_student("scratch", teacher, config, self.compute, real=real)
                else:
                    feed, sources = self._feed(task, teacher, real)
                    student = distill(
                        run,
                        teacher,
                        config.student,
                        config.distill,
                        feed,
                        self.compute,
                        task.seed,
                        self.out,
                        watch=watch,
                    )
                took = time.monotonic() - begun[0], time.process_time() - begun[1]
            row = {
                "distill_s": round(took[0] - curve.scoring_s, 2),
                "distill_cpu_s": round(took[1] - curve.scoring_cpu_s, 2),
                "resumed": run.resumed,
                "curve": curve.points,
            }
            row |= self._scores(student, clips)
            save_student(run, student, teacher, config, {"accuracy": row["accuracy"]})
        (run.folder / CHECKPOINT).unlink(missing_ok=True)
        peaks = {k: run.manifest.get(k) for k in ("peak_mib", "peak_device_mib")}
        row |= peaks | (self._bank_facts(task, sources) if sources else {})
        self.results.append(self._identity(task) | row)

    @contextlib.contextmanager
    def _measured(self, run: RunFolder) -> Iterator[Peak]:
        """Keeps the block's peak memory in the run's manifest: that of the making, not the scoring.

        What the process holds anyway, libraries and teacher, is part of it; see `Peak`.
        """
        with peak_memory(self.compute.device) as peak:
            yield peak
        run.record(peak_mib=peak.host_mib, peak_device_mib=peak.device_mib)

    def _identity(self, task: Task) -> dict[str, Any]:
        config = self.plan.journey(task)
        return {
            "key": task.key,
            "method": task.method,
            "fold": task.fold,
            "seed": task.seed,
            "steps": config.distill.steps,
            "device": self.compute.device.type,
            "threads": torch.get_num_threads(),
            "precision": str(self.compute.dtype).removeprefix("torch."),
            "teacher_sha256": self._loaded(task).sha256,
            "git": git_commit(),
        }

    def _scores(self, student: StudentNet, clips: Clips) -> dict[str, Any]:
        test = score(predict(student, clips.test.mels), clips.test.labels, clips.teacher_test)
        every = score(predict(student, clips.every.mels), clips.every.labels, clips.teacher_every)
        return {
            "clips": test.clips,
            "accuracy": test.accuracy,
            "teacher_accuracy": clips.teacher_accuracy,
            "agreement": test.agreement,
            "kl": test.kl,
            "clips_all": every.clips,
            "agreement_all": every.agreement,
            "kl_all": every.kl,
            "parameters": parameters(student),
        }

    def _feed(
        self, task: Task, teacher: Teacher, real: Features | None
    ) -> tuple[Feed, dict[str, float]]:
        config, method = self.plan.journey(task), self.plan.method(task)
        if method.control:
            mels = real.mels if real else ()
            return control_feed(method.control, teacher.spec, config, real=mels), {}
        shares = config.bank.shares
        return BankFeed(self._bank(task), shares, method.mels), shares

    def _bank(self, task: Task) -> Bank:
        return Bank.open(self.place(self.plan.tasks[task.needs[1]]) / "bank")

    def _bank_facts(self, task: Task, shares: dict[str, float]) -> dict[str, Any]:
        """What the clips cost and how they look to the teacher, for the sources in use."""
        bank = self._bank(task)
        manifest = read_manifest(self.place(self.plan.tasks[task.needs[1]]))
        seconds = manifest.get("source_seconds", {})
        health = bank.index.health

        def mean(key: str) -> float | None:
            values = [(w, health[n][key]) for n, w in shares.items() if health[n][key] is not None]
            weight = sum(w for w, _ in values)
            return sum(w * v for w, v in values) / weight if weight else None

        mels = sum(bank.sources[name] for name in shares)
        limit = self.plan.method(task).mels
        return {
            "mels": min(mels, limit) if limit else mels,
            "bank_s": round(sum(seconds.get(n, {}).get("wall", 0.0) for n in shares), 2),
            "bank_cpu_s": round(sum(seconds.get(n, {}).get("cpu", 0.0) for n in shares), 2),
            "bank_peak_mib": manifest.get("peak_mib"),
            "bank_peak_device_mib": manifest.get("peak_device_mib"),
            # Of whole sources: a few clips of them were not looked at on their own.
            "cosine": None if limit else mean("cosine"),
            "variance": None if limit else mean("embedding_variance"),
            "requested": None if limit else mean("requested"),
        }

    def _real(self, task: Task, teacher: Teacher) -> Features | None:
        method = self.plan.method(task)
        if method.control in ("real", "scratch"):
            return self._clips_of(task.fold, teacher).train
        if method.control == "unrelated" and method.unrelated:
            others = load_set(method.unrelated, self.root)
            return FeatureStore(teacher.spec).load(list(others.clips))
        return None

    def _loaded(self, task: Task) -> Teacher:
        key = task.needs[0]
        if self._teacher is None or self._teacher[0] != key:
            place = self.place(self.plan.tasks[key]) / TEACHER
            self._teacher = key, ready(load_checkpoint(place, "teacher"), self.compute)
        return self._teacher[1]

    def _clips_of(self, fold: str, teacher: Teacher) -> Clips:
        if self._clips is None or self._clips[0] != teacher.sha256:
            self._clips = teacher.sha256, Clips(self.data, fold, teacher, self._answers)
        return self._clips[1]
