"""Curves, confusion, diversity and control bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from frami_edge.plots.style import FAINT, INK, SERIES, figure, short

_WINDOW = 0.04
"""Share of the steps that one point of a smooth curve averages."""


def curves(
    path: Path,
    metrics: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[str]],
    title: str,
    x: str = "step",
) -> None:
    """A panel for each group of metrics: every value faintly, their local mean over it.

    Args:
        path: PNG file.
        metrics: Rows of metrics.jsonl.
        groups: Names of the metrics of each panel.
        title: Above all.
        x: Name of the horizontal axis' metric.

    Raises:
        ValueError: There is no group.
    """
    if not groups:
        raise ValueError("loss curves need at least one group of metrics")
    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    with figure(path, rows, columns, (3.4 * columns, 0.5 + 2.1 * rows)) as axes:
        for axis in axes.flat[len(groups) :]:
            axis.set_visible(False)
        for panel, (axis, names) in enumerate(zip(axes.flat, groups, strict=False)):
            for i, name in enumerate(names):
                points = [(r[x], r[name]) for r in metrics if None not in (r.get(x), r.get(name))]
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
    """Mean of the neighbours on both sides, fewer at the ends: it does not lag behind a descent."""
    half = math.ceil(_WINDOW * len(values) / 2)
    sums = [0.0, *accumulate(values)]
    out = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        out.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return out


def confusion(path: Path, matrix_KK: Tensor, labels: Sequence[str], title: str) -> None:
    """True classes down, answers across; colour is the share of the row, numbers count clips.

    Args:
        path: PNG file.
        matrix_KK: Counts.
        labels: K class names.
        title: Above all.

    Raises:
        ValueError: The matrix is not K by K.
    """
    if tuple(matrix_KK.shape) != (len(labels), len(labels)):
        raise ValueError(f"{len(labels)} labels do not fit a matrix {tuple(matrix_KK.shape)}")
    counts = matrix_KK.long()
    share = counts.float() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    k = len(labels)
    labels = [short(label) for label in labels]
    # Many classes get smaller cells, so that the picture still fits a screen.
    cell, size = (0.42, 8) if k <= 25 else (0.24, 6)
    side = 2.2 + cell * k
    with figure(path, 1, 1, (side + 0.6, side)) as axes:
        axis = axes[0][0]
        axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
        for i, j in counts.nonzero().tolist():
            colour = "white" if share[i, j] > 0.6 else INK
            text = str(int(counts[i, j]))
            axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
        # White lines between the cells: a row must be followed to its label.
        axis.set_xticks([i - 0.5 for i in range(1, k)], minor=True)
        axis.set_yticks([i - 0.5 for i in range(1, k)], minor=True)
        axis.grid(which="minor", color="white", linewidth=1.2)
        axis.tick_params(which="both", length=0)
        axis.set_xticks(range(k), labels, fontsize=size + 1, **_turned(labels))
        axis.set_yticks(range(k), labels, fontsize=size + 1)
        axis.set_xlabel("answer")
        axis.set_ylabel("true class")
        axis.set_title(title, loc="left", fontsize=9)


def _turned(labels: Sequence[str]) -> dict[str, Any]:
    """How names stand below an axis: upright digits, anything longer at an angle."""
    if max(map(len, labels)) <= 2:
        return {}
    return {
        "rotation": 45 if len(labels) <= 25 else 90,
        "ha": "right" if len(labels) <= 25 else "center",
    }


def diversity(path: Path, health: Mapping[str, Any]) -> None:
    """What the teacher hears in each source: share as requested, class balance, mean cosine.

    Args:
        path: PNG file.
        health: Source to figures (see `frami_edge.inversion.health`), and ``labels``.

    Raises:
        ValueError: There is no source.
    """
    labels = [short(label) for label in health["labels"]]
    sources = [name for name in health if name != "labels"]
    if not sources:
        raise ValueError("the diversity figure needs at least one source")
    wide = max(4.5, (0.42 if len(labels) <= 25 else 0.24) * len(labels) + 1.5)
    with figure(path, 1, 3, (2 * wide + 3, 3.7), width_ratios=[wide, wide, 3]) as axes:
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
        handles, names = balance.get_legend_handles_labels()
        balance.figure.legend(handles, names, loc="outside upper right", ncols=len(names))
        for axis in (asked, balance):
            axis.set_xticks(range(len(labels)), labels, **_turned(labels))
        colours = [SERIES[i % len(SERIES)] for i in range(len(sources))]
        cosine.bar(sources, [health[name]["cosine"] for name in sources], color=colours)
        cosine.set_title("Mean pairwise cosine", loc="left")
        cosine.set_ylim(0, 1)
        cosine.tick_params(axis="x", rotation=30)


def accuracy_bars(path: Path, rows: Sequence[tuple[str, float, float | None]], title: str) -> None:
    """Accuracies by name, with their standard deviation where known, the first row on top.

    Args:
        path: PNG file.
        rows: (name, accuracy in [0, 1], standard deviation over seeds or folds) of each bar.
        title: Above all.

    Raises:
        ValueError: There is no row.
    """
    if not rows:
        raise ValueError("accuracy bars need at least one row")
    with figure(path, 1, 1, (6.5, 0.8 + 0.36 * len(rows))) as axes:
        axis = axes[0][0]
        names = [name for name, _, _ in rows]
        values = [100 * value for _, value, _ in rows]
        spread = [100 * (std or 0.0) for _, _, std in rows]
        axis.barh(names, values, xerr=spread, color=SERIES[0], ecolor=INK, height=0.62)
        for i, value in enumerate(values):
            label = f"{value:.1f}" + (f" ± {spread[i]:.1f}" if rows[i][2] is not None else "")
            axis.text(value + spread[i] + 1, i, label, va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlim(0, 118)
        axis.set_xlabel("accuracy, %")
        axis.set_title(title, loc="left")
