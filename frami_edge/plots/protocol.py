"""The pictures of a protocol: what time and clips buy."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from frami_edge.plots.style import FAINT, SERIES, figure


def accuracy_over_time(
    path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], teacher: float, title: str
) -> None:
    """A line a method, from the end of its bank's making on.

    Args:
        path: PNG file.
        curves: (seconds since the bank was begun, accuracy in [0, 1]) by method.
        teacher: Accuracy of the teacher.
        title: Above.

    Raises:
        ValueError: There is no curve.
    """
    if not curves:
        raise ValueError("accuracy over time needs at least one curve")
    with figure(path, 1, 1, (7.5, 4.2)) as axes:
        axis = axes[0][0]
        for i, (name, points) in enumerate(curves.items()):
            seconds, accuracy = zip(*points, strict=True)
            style = ("-", "--", ":")[i // len(SERIES) % 3]
            values = [100 * a for a in accuracy]
            axis.plot(seconds, values, style, color=SERIES[i % len(SERIES)], label=name)
        axis.axhline(100 * teacher, color=FAINT, linestyle="--", linewidth=0.9)
        axis.annotate("teacher", (0, 100 * teacher), xytext=(2, 2), textcoords="offset points")
        axis.set_xlim(left=0)
        axis.set_xlabel("seconds, making the clips included")
        axis.set_ylabel("accuracy, %")
        axis.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        axis.set_title(textwrap.fill(title, 56), loc="left")
        axis.figure.legend(loc="outside right upper")


def accuracy_over_mels(
    path: Path, points: Sequence[tuple[float, float, float]], title: str
) -> None:
    """Accuracy and agreement over the number of clips in the bank, at equal steps.

    Args:
        path: PNG file.
        points: (clips, accuracy, agreement with the teacher), shares in [0, 1].
        title: Above.

    Raises:
        ValueError: There are fewer than two points.
    """
    if len(points) < 2:
        raise ValueError("accuracy over the number of clips needs two points")
    clips, accuracy, agreement = zip(*points, strict=True)
    with figure(path, 1, 1, (5.5, 3.6)) as axes:
        axis = axes[0][0]
        for colour, name, values in zip(
            SERIES, ("accuracy", "agreement with the teacher"), (accuracy, agreement), strict=False
        ):
            axis.plot(clips, [100 * v for v in values], "o-", color=colour, label=name)
        axis.set_xscale("log")
        axis.set_xticks(clips, [f"{n:,.0f}" for n in clips])  # powers of ten need mathtext
        axis.minorticks_off()
        axis.set_xlabel("clips in the bank")
        axis.set_ylabel("%")
        axis.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        axis.set_title(textwrap.fill(title, 56), loc="left")
        axis.legend()
