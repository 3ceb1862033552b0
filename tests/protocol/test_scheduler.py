"""Locks, order and failures, with tasks that take no time."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from frami_edge.errors import RunError
from frami_edge.protocol import scheduler as module
from frami_edge.protocol.plan import Plan, Task, load_protocol
from frami_edge.protocol.scheduler import Scheduler


def test_every_task_once_and_after_what_it_needs(tones: Path, tmp_path: Path) -> None:
    module_wait, module.WAIT_S = module.WAIT_S, 0.01
    plan = Plan(load_protocol(tones))
    order: list[str] = []
    finished: set[str] = set()
    guard = threading.Lock()

    def work(task: Task) -> None:
        with guard:
            assert set(task.needs) <= finished
            order.append(task.key)
        threading.Event().wait(0.005)
        with guard:
            finished.add(task.key)

    def worker() -> None:
        Scheduler(plan, tmp_path / "out", lambda task: task.key in finished).run(work)

    team = [threading.Thread(target=worker) for _ in range(4)]
    try:
        for thread in team:
            thread.start()
        for thread in team:
            thread.join(timeout=30)
    finally:
        module.WAIT_S = module_wait
    assert not any(thread.is_alive() for thread in team)
    assert Counter(order) == Counter(plan.tasks.keys())


@pytest.mark.parametrize("error", [RunError("no", fix="none"), RuntimeError("no memory")])
def test_what_needs_a_failure_is_left(tones: Path, tmp_path: Path, error: Exception) -> None:
    plan = Plan(load_protocol(tones))
    done: set[str] = set()

    def work(task: Task) -> None:
        if task.kind == "bank" and task.fold == "1":
            raise error
        done.add(task.key)

    scheduler = Scheduler(plan, tmp_path / "out", lambda task: task.key in done)
    scheduler.run(work)
    left = [task for task in plan.tasks.values() if task.key not in done]
    assert {task.fold for task in left} == {"1"}
    assert all(task.kind == "bank" or len(task.needs) == 2 for task in left)
    assert len(scheduler.failures()) == 1
    assert "no" in next(iter(scheduler.failures().values()))
    scheduler.forget_failures()
    assert [task.key for task in scheduler.open_tasks()] == [task.key for task in left]


def test_it_stops_between_two_tasks(tones: Path, tmp_path: Path) -> None:
    plan = Plan(load_protocol(tones))
    done: list[str] = []
    scheduler = Scheduler(plan, tmp_path / "out", lambda task: task.key in done)
    scheduler.run(lambda task: done.append(task.key), stop=lambda: len(done) == 3)
    assert len(done) == 3


def test_students_alone_are_enough_to_go_on(tones: Path, tmp_path: Path) -> None:
    plan = Plan(load_protocol(tones))
    missing = next(task for task in plan.students if task.method == "mixed" and task.fold == "2")
    done = {task.key for task in plan.students} - {missing.key}
    scheduler = Scheduler(plan, tmp_path / "out", lambda task: task.key in done)
    made: list[str] = []

    def work(task: Task) -> None:
        made.append(task.key)
        done.add(task.key)

    scheduler.run(work)
    assert made == [*missing.needs, missing.key], "no teacher and no bank of the others"
