"""Accuracy over time, and over the number of clips."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from frami_edge.plots import FAINT, SERIES, figure
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


def accuracy_lines(
    path: Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    title: str,
    *,
    teacher: float | None = None,
    log: bool = False,
) -> None:
    """Accuracies or agreements over time or over the number of clips, one line per name.

    Args:
        path: PNG file.
        lines: (x, share in [0, 1]) of each line.
        x: Name of the horizontal axis.
        title: Title of the picture.
        teacher: Accuracy of the teacher, drawn as a dashed line.
        log: Logarithmic horizontal axis with a tick at each point of the first line.

    Raises:
        ValueError: There is no line.
    """
    with figure(path, 1, 1, (7.5, 4.2)) as axes:
        axis = axes[0][0]
        for i, (name, points) in enumerate(lines.items()):
            style = ("-", "--", ":")[i // len(SERIES) % 3] + ("o" if log else "")
            at, shares = zip(*points, strict=True)
            percent = [100 * share for share in shares]
            axis.plot(at, percent, style, color=SERIES[i % len(SERIES)], label=name)
        if teacher is not None:
            axis.axhline(100 * teacher, color=FAINT, linestyle="--", linewidth=0.9, label="teacher")
        if log:
            ticks = [at for at, _ in next(iter(lines.values()))]
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{n:,.0f}" for n in ticks])  # powers of ten need mathtext
            axis.minorticks_off()
        axis.set_xlabel(x)
        axis.set_ylabel("%")
        axis.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        axis.set_title(textwrap.fill(title, 56))
        axis.figure.legend(loc="outside right upper")
