"""One call of `frami-edge protocol`: the plan, the workers, the report."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from frami_edge.cli._app import catch_sigterm
from frami_edge.cli._output import Output
from frami_edge.config import dump_config
from frami_edge.device import Compute, choose_compute
from frami_edge.errors import RunError
from frami_edge.io import atomic_write_text
from frami_edge.protocol import pictures, tables, writing
from frami_edge.protocol.config import Protocol
from frami_edge.protocol.cost import Cost
from frami_edge.protocol.making import Maker
from frami_edge.protocol.plan import Plan
from frami_edge.protocol.results import NAME
from frami_edge.protocol.scheduler import Scheduler

LOOK_S = 0.5
"""Seconds between two looks at what the workers have done."""


@dataclass(frozen=True)
class WorkOrder:
    """What a worker process is told; plain values, because it starts from nothing."""

    protocol: dict[str, Any]
    folder: Path
    root: Path | None
    device: str
    precision: Literal["bf16", "fp32"]
    threads: int
    parent: int


class Session:
    """Everything behind the command.

    Args:
        plan: What to make.
        whole: What `plan` is a part of; tables in files and pictures show it.
        folder: Where; several protocols may share one, with its teachers, banks and students.
        name: Of the protocol's own files in it.
        root: Of the data sets; None for $FRAMI_EDGE_DATA.
        compute: Device and precision.
        out: For what is said and shown.
        workers: Processes.
    """

    def __init__(
        self,
        plan: Plan,
        whole: Plan,
        folder: Path,
        name: str,
        root: Path | None,
        compute: Compute,
        out: Output,
        workers: int,
    ) -> None:
        self.plan, self.whole, self.root = plan, whole, root
        self.folder, self.name = folder, name
        self.compute, self.out, self.workers = compute, out, workers
        self.maker = Maker(plan, folder, root, compute, Output(quiet=True))
        self.scheduler = Scheduler(plan, folder, self.maker.done)

    def show_plan(self) -> None:
        """What is left to make and what it would cost here, without making it.

        Raises:
            DataError: The data set is not there.
        """
        left = self.scheduler.open_tasks()
        self.maker.check()
        with self.out.progress("Timing a few steps of untrained networks", None, fields=()):
            cost = Cost(self.plan, self.maker.data, self.compute)
            seconds = {task.key: cost.seconds(task) for task in left}
        rows = tables.plan_rows(self.plan, left, seconds)
        total = sum(seconds.values())
        done = len(self.plan.tasks) - len(left)
        self.out.result(
            {
                "title": self.plan.protocol.title,
                "tasks": len(self.plan.tasks),
                "done": done,
                "seconds_left": round(total, 1),
                "workers": self.workers,
                "rows": [dict(zip(tables.PLAN_COLUMNS, row, strict=True)) for row in rows],
            }
        )
        self.out.table(
            self.plan.protocol.title,
            tables.PLAN_COLUMNS,
            rows,
            caption=f"{done} of {len(self.plan.tasks)} are there. The rest: about "
            f"{writing.duration(total)} of work, timed on this machine with "
            f"{torch.get_num_threads()} threads in one process.",
        )

    def run(self) -> None:
        """Make all that is missing.

        Raises:
            DataError: The data set is not there.
            RunError: Some of it failed; the rest is there.
        """
        self.scheduler.forget_failures()
        left = len(self.scheduler.open_tasks())
        if left:  # what is missing is told before anything is written
            self.maker.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / "protocols"
        place.mkdir(exist_ok=True)
        atomic_write_text(place / f"{self.name}.yaml", dump_config(self.whole.protocol))
        if left:
            total = len(self.plan.tasks)
            with self.out.progress("tasks", total, ("last",), completed=total - left) as bar:
                if self.workers == 1:
                    self._alone(bar)
                else:
                    self._together(bar)

    def report(self, write: Path | None = None) -> None:
        """Tables and pictures of what is there: files of the whole, the terminal of the part.

        Args:
            write: A Markdown file that gets the tables too, between markers.

        Raises:
            RunError: Some task failed.
        """
        rows = self._rows(self.whole)
        of_whole = tables.summary(self.whole, rows), tables.comparisons(self.whole, rows)
        text = writing.markdown(self.whole, *of_whole, rows)
        for page in (self.folder / "RESULTS.md", *([write] if write else [])):
            writing.write_between(page, self.whole.protocol.title, text)
        drawn = pictures.draw(self.folder / "plots" / self.name, self.whole, rows)
        several = tables.several_teachers(rows)
        if several:
            self.out.warn(
                f"Fold {', '.join(several)}: the rows are of more than one training of the "
                "teacher, which differ in their last bits and so by a clip or two. Pairs of "
                f"different teachers are left out. Delete their lines from {NAME} to make them "
                "anew."
            )
        rows = self._rows(self.plan)
        summary, pairs = tables.summary(self.plan, rows), tables.comparisons(self.plan, rows)
        failures = self.scheduler.failures()
        self.out.result(
            {
                "title": self.plan.protocol.title,
                "folder": str(self.folder),
                "students": len(rows),
                "of": len(self.plan.students),
                "methods": [method.facts() for method in summary],
                "comparisons": [pair.facts() for pair in pairs],
                "plots": [str(path) for path in drawn],
                "failures": failures,
            }
        )
        self.out.table(
            self.plan.protocol.title,
            tables.COLUMNS,
            [m.cells() for m in summary],
            caption=writing.caption(rows),
        )
        if pairs:
            columns = tables.PAIR_COLUMNS
            self.out.table("Paired differences", columns, [p.cells() for p in pairs])
        place = self.folder / "plots" / self.name
        self.out.note(f"Tables: {self.folder / 'RESULTS.md'}; pictures: {place}")
        if failures:
            lines = "".join(f"\n  {key}: {why}" for key, why in failures.items())
            raise RunError(
                f"{len(failures)} of {len(self.plan.tasks)} tasks failed:{lines}",
                fix="Mend the cause and run the command again: they alone are tried again.",
            )

    def _alone(self, bar: Any) -> None:
        def work(task: Any) -> None:
            self.maker.make(task)
            bar.update(self._done() - bar.completed, last=task.key)

        self.scheduler.run(work)

    def _together(self, bar: Any) -> None:
        """Workers of their own processes: torch's threads do not survive a fork."""
        order = WorkOrder(
            protocol=self.plan.protocol.model_dump(mode="json"),
            folder=self.folder,
            root=self.root,
            device=str(self.compute.device),
            precision="fp32" if self.compute.dtype == torch.float32 else "bf16",
            threads=max(1, (os.cpu_count() or 1) // self.workers),
            parent=os.getpid(),
        )
        context = multiprocessing.get_context("spawn")
        team = [context.Process(target=work_through, args=(order,)) for _ in range(self.workers)]
        for process in team:
            process.start()
        try:
            while any(process.is_alive() for process in team):
                bar.update(self._done() - bar.completed)
                time.sleep(LOOK_S)
        finally:
            for process in team:
                process.terminate()
                process.join()
        bar.update(self._done() - bar.completed)
        bad = [process.exitcode for process in team if process.exitcode]
        if bad and self.scheduler.open_tasks():
            raise RunError(
                f"{len(bad)} of {self.workers} workers ended early (exit code {bad[0]}).",
                fix="Run the command again: what is done stays, the rest goes on. An exit code "
                "of -9 means too little memory: use fewer --workers.",
            )

    def _rows(self, plan: Plan) -> list[tables.Row]:
        wanted = {task.key for task in plan.students}
        return [row for row in self.maker.results.rows() if row["key"] in wanted]

    def _done(self) -> int:
        return len(self.plan.tasks) - len(self.scheduler.wanted())


def work_through(order: WorkOrder) -> None:
    """The life of a worker process: tasks until none is left or the parent has gone."""
    catch_sigterm()
    torch.set_num_threads(order.threads)
    compute = choose_compute(order.device, order.precision)
    plan = Plan(Protocol.model_validate(order.protocol))
    maker = Maker(plan, order.folder, order.root, compute, Output(quiet=True))
    scheduler = Scheduler(plan, order.folder, maker.done)
    try:
        scheduler.run(maker.make, stop=lambda: os.getppid() != order.parent)
    except KeyboardInterrupt:
        return
