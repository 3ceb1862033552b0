"""Accuracy over time, and over the number of clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from frami_edge.plots import accuracy_lines
from frami_edge.protocol.plan import Plan
from frami_edge.protocol.tables import Row


def draw(folder: Path, plan: Plan, rows: Sequence[Row]) -> list[Path]:
    """The pictures for which there are rows; their paths."""
    drawn = []
    curves = {name: _curve([r for r in rows if r["method"] == name]) for name in _learned(plan)}
    curves = {name: points for name, points in curves.items() if points}
    if curves:
        drawn.append(folder / "accuracy-over-time.png")
        accuracy_lines(
            drawn[-1],
            curves,
            "seconds, making the clips included",
            plan.protocol.title,
            teacher=_teacher(rows),
        )
    counts = _by_mels(plan, rows)
    if len(counts) > 1:
        drawn.append(folder / "accuracy-over-mels.png")
        lines = {
            "accuracy": [(n, accuracy) for n, accuracy, _ in counts],
            "agreement with the teacher": [(n, agreement) for n, _, agreement in counts],
        }
        accuracy_lines(drawn[-1], lines, "clips in the bank", plan.protocol.title, log=True)
    return drawn


def _learned(plan: Plan) -> list[str]:
    return [name for name, m in plan.protocol.methods.items() if m.mels is None]


def _teacher(rows: Sequence[Row]) -> float:
    by_fold: dict[str, float] = {r["fold"]: r["teacher_accuracy"] for r in rows}
    return mean(by_fold.values())


def _curve(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(seconds, accuracy): means over runs, the bank's time first; one fold fewer would bend it."""
    whole = [row for row in rows if row.get("curve") and not row["resumed"]]
    if not whole:
        return []
    points = []
    for i in range(min(len(row["curve"]) for row in whole)):
        here = [(row["curve"][i]["s"] + row.get("bank_s", 0.0), row) for row in whole]
        points.append((mean(s for s, _ in here), mean(r["curve"][i]["accuracy"] for _, r in here)))
    return points


def _by_mels(plan: Plan, rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """(clips, accuracy, agreement) of the methods with a limit and of the whole bank they share.

    Means over the folds and seeds that all of them have.
    """
    limited = [name for name, m in plan.protocol.methods.items() if m.mels]
    if not limited:
        return []
    whole = plan.protocol.methods[limited[0]].bank_of
    names = [*limited, *([whole] if whole else [])]
    runs = [{(r["fold"], r["seed"]) for r in rows if r["method"] == n} for n in names]
    common = set.intersection(*[r for r in runs if r]) if any(runs) else set()
    found = []
    for name in names:
        mine = [r for r in rows if r["method"] == name and (r["fold"], r["seed"]) in common]
        if mine:
            found.append(
                (
                    mean(r["mels"] for r in mine),
                    mean(r["accuracy"] for r in mine),
                    mean(r["agreement_all"] for r in mine),
                )
            )
    return sorted(found)
