"""Curves, confusion, diversity and control bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from frami_edge.plots.style import FAINT, INK, SERIES, figure

_SMOOTH = 0.9


def curves(
    path: Path,
    metrics: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[str]],
    title: str,
    x: str = "step",
) -> None:
    """A panel for each group of metrics: every value faintly, their running mean over it.

    Args:
        path: PNG file.
        metrics: Rows of metrics.jsonl.
        groups: Names of the metrics of each panel.
        title: Above all.
        x: Name of the horizontal axis' metric.
    """
    columns = min(3, max(1, len(groups)))
    rows = math.ceil(len(groups) / columns) or 1
    with figure(path, rows, columns, (3.4 * columns, 0.5 + 2.1 * rows)) as axes:
        for axis in axes.flat[len(groups) :]:
            axis.set_visible(False)
        for panel, (axis, names) in enumerate(zip(axes.flat, groups, strict=False)):
            for i, name in enumerate(names):
                points = [(r[x], r[name]) for r in metrics if r.get(name) is not None]
                if not points:
                    continue
                at, values = zip(*points, strict=True)
                colour = SERIES[(panel + i) % len(SERIES)]
                axis.plot(at, values, color=colour, alpha=0.25, linewidth=0.7)
                axis.plot(at, _smoothed(values), color=colour, linewidth=1.6, label=name)
            axis.set_title(", ".join(n.replace("_", " ") for n in names), loc="left")
            axis.set_xlabel(x)
            axis.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
            if len(names) > 1:
                axis.legend()
        axes[0][0].figure.suptitle(title, fontweight="bold", fontsize=11)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential running mean, corrected for its start."""
    out, mean = [], 0.0
    for i, value in enumerate(values, 1):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        out.append(mean / (1 - _SMOOTH**i))
    return out


def confusion(path: Path, matrix_KK: Tensor, labels: Sequence[str], title: str) -> None:
    """True classes down, answers across: colour is the share of the row, the number counts clips."""
    counts = matrix_KK.long()
    share = counts.float() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    k = len(labels)
    side = 2.2 + 0.42 * k
    with figure(path, 1, 1, (side + 0.6, side)) as axes:
        axis = axes[0][0]
        axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
        if k <= 25:
            for i in range(k):
                for j in range(k):
                    if counts[i, j]:
                        colour = "white" if share[i, j] > 0.6 else INK
                        text = str(int(counts[i, j]))
                        axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(k), labels, rotation=45, ha="right")
        axis.set_yticks(range(k), labels)
        axis.set_xlabel("answer")
        axis.set_ylabel("true class")
        axis.set_title(title, loc="left", fontsize=9)


def diversity(path: Path, health: Mapping[str, Any]) -> None:
    """What the teacher hears in each source: share as requested, class balance, mean cosine.

    Args:
        path: PNG file.
        health: Source to figures (see `frami_edge.inversion.health`), and ``labels``.
    """
    labels = list(health["labels"])
    sources = [name for name in health if name != "labels"]
    wide = max(4.5, 0.42 * len(labels) + 1.5)
    with figure(path, 1, 3, (2 * wide + 3, 3.4), width_ratios=[wide, wide, 3]) as axes:
        asked, balance, cosine = axes[0]
        width = 0.8 / len(sources)
        for i, name in enumerate(sources):
            at = [k + (i - (len(sources) - 1) / 2) * width for k in range(len(labels))]
            colour = SERIES[i % len(SERIES)]
            share = [s if s is not None else 0.0 for s in health[name]["requested_per_class"]]
            if health[name]["requested"] is not None:
                asked.bar(at, share, width, color=colour)
            balance.bar(at, health[name]["class_share"], width, color=colour, label=name)
        asked.axhline(0.8, color=FAINT, linewidth=0.8, linestyle="--")
        asked.set_title("Heard as the class that was asked for", loc="left")
        asked.set_ylim(0, 1.02)
        balance.axhline(1 / len(labels), color=FAINT, linewidth=0.8, linestyle="--")
        balance.set_title("Classes the teacher hears", loc="left")
        balance.legend()
        for axis in (asked, balance):
            axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        colours = [SERIES[i % len(SERIES)] for i in range(len(sources))]
        cosine.bar(sources, [health[name]["cosine"] for name in sources], color=colours)
        cosine.set_title("Mean pairwise cosine", loc="left")
        cosine.set_ylim(0, 1)
        cosine.tick_params(axis="x", rotation=30)


def accuracy_bars(
    path: Path, rows: Sequence[tuple[str, float, float | None]], title: str
) -> None:
    """Accuracies by name, with their standard deviation where known, the first row on top."""
    with figure(path, 1, 1, (6.5, 0.8 + 0.36 * len(rows))) as axes:
        axis = axes[0][0]
        names = [name for name, _, _ in rows]
        values = [100 * value for _, value, _ in rows]
        spread = [100 * (std or 0.0) for _, _, std in rows]
        axis.barh(names, values, xerr=spread, color=SERIES[0], ecolor=INK, height=0.62)
        for i, value in enumerate(values):
            axis.text(value + spread[i] + 1, i, f"{value:.1f}", va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 112)
        axis.set_xlabel("accuracy, %")
        axis.set_title(title, loc="left")
