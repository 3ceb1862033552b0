"""Work through a plan, in one process or several, on one machine or on several that share a disk.

A task is done by whoever holds its lock; the lock goes with the process, however that ends. What
is there already is never made again, and a task that was cut short goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from frami_edge.io import atomic_write_text
from frami_edge.protocol.plan import Plan, Task
from frami_edge_runtime.errors import FramiEdgeError

WAIT_S = 1.0
"""Seconds until the next look, where all that can be done is being done by others."""


class Scheduler:
    """Hands out the tasks of a plan.

    Args:
        plan: The tasks.
        folder: Of the protocol's runs; locks and failures are kept in it.
        done: Whether a task needs nothing more.
    """

    def __init__(self, plan: Plan, folder: Path, done: Callable[[Task], bool]) -> None:
        self.plan, self.folder, self._done = plan, folder, done
        self._known_done: set[str] = set()

    def done(self, task: Task) -> bool:
        """Whether a task needs nothing more; what was done once stays done."""
        if task.key not in self._known_done and self._done(task):
            self._known_done.add(task.key)
        return task.key in self._known_done

    def wanted(self) -> set[str]:
        """Keys of what is still to be made: students, and what they need.

        A teacher or a bank whose students are all there is not made again, so that
        `results.jsonl` alone is enough to go on from.
        """
        wanted: set[str] = set()
        needed: set[str] = set()
        for task in reversed(self.plan.tasks.values()):  # a student comes after what it needs
            if (task.kind == "student" or task.key in needed) and not self.done(task):
                wanted.add(task.key)
                needed.update(task.needs)
        return wanted

    def open_tasks(self) -> list[Task]:
        """Tasks that are wanted, have not failed and do not need one that failed."""
        failed = set(self.failures())
        wanted = self.wanted()
        left = []
        for task in self.plan.tasks.values():
            if task.key in failed or failed.intersection(task.needs):
                failed.add(task.key)
            elif task.key in wanted:
                left.append(task)
        return left

    def run(self, work: Callable[[Task], None], stop: Callable[[], bool] = lambda: False) -> None:
        """Do tasks until none is left that this process could do, waiting for those of others.

        A task that fails is written down and left; the others go on.

        Args:
            work: Makes one task, going on from what is there.
            stop: Asked between two tasks.
        """
        while not stop():
            left = self.open_tasks()
            if not left:
                return
            for task in left:
                if all(self.done(self.plan.tasks[need]) for need in task.needs):
                    with self._claim(task) as mine:
                        if not mine or self.done(task):
                            continue
                        try:
                            work(task)
                        except Exception as error:  # out of memory, a full disk: others may go on
                            self._fail(task, error)
                        break
            else:
                time.sleep(WAIT_S)

    def failures(self) -> dict[str, str]:
        """Why tasks failed, by key, since `forget_failures`."""
        folder = self.folder / "failed"
        if not folder.is_dir():
            return {}
        return {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.txt"))}

    def forget_failures(self) -> None:
        """Try again what failed before."""
        for key in self.failures():
            (self.folder / "failed" / f"{key}.txt").unlink(missing_ok=True)

    def _fail(self, task: Task, error: Exception) -> None:
        said = str(error) if isinstance(error, FramiEdgeError) else repr(error)
        atomic_write_text(self.folder / "failed" / f"{task.key}.txt", said)

    @contextlib.contextmanager
    def _claim(self, task: Task) -> Iterator[bool]:
        """Whether the task is this process's own inside the block."""
        place = self.folder / "locks"
        place.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place / f"{task.key}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)
