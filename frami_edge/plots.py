"""Pictures of a run: people look before they read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from frami_edge.io import atomic_path
from frami_edge_runtime.melspec import MelSpec, hz_to_mel

# --- One look for all pictures, and files that are whole or absent

INK, FAINT = "#1f2933", "#9aa5b1"
SERIES = ("#2563a8", "#d9822b", "#2f9e77", "#b0413e", "#7c5fb0", "#6b7785", "#c2a83e")
"""Lines and bars; told apart in print and by colour-blind eyes as far as seven colours can be."""
LONGEST_NAME = 32
_STYLE = {
    "font.size": 9,
    "text.parse_math": False,  # a class may be called $x
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "legend.frameon": False,
}


def short(name: str) -> str:
    """A class name as a picture can show it: no control characters, at most 32 characters."""
    text = "".join(c if c.isprintable() else "?" for c in name)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}..."


@contextmanager
def figure(
    path: Path, rows: int, columns: int, size: tuple[float, float], **kwargs: Any
) -> Iterator[Any]:
    """Axes (rows, columns) of a new figure; it is written to ``path`` when the block ends.

    Args:
        path: PNG file.
        rows: Of axes.
        columns: Of axes.
        size: Inches.
        kwargs: Of `matplotlib.pyplot.subplots`.
    """
    # Here, because it takes a second and only runs draw; Agg, because CI has no screen.
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(_STYLE):
        fig, axes = plt.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained", **kwargs
        )
        try:
            yield axes
            with atomic_path(path) as temporary:
                fig.savefig(temporary, dpi=110, format="png")
        finally:
            plt.close(fig)


# --- Curves, confusion, diversity and control bars

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


# --- A grid of log-mels: a row a class, one colour scale from silence to full scale

MOST_CLASSES = 64
"""Rows of a grid: more fit no picture."""


def mel_grid(path: Path, mels: Mapping[str, Tensor], spec: MelSpec, title: str) -> None:
    """Draw clips by class.

    Args:
        path: PNG file.
        mels: Class name to (n, M, T) normalised log-mels.
        spec: Front end, for the axes and the colour scale.
        title: Above the grid.

    Raises:
        ValueError: There is nothing to draw.
    """
    columns = max((len(clips) for clips in mels.values()), default=0)
    if not columns:
        raise ValueError("a mel grid needs at least one clip")
    if len(mels) > MOST_CLASSES:
        title = f"{title}, {MOST_CLASSES} of {len(mels)} classes"
        mels = dict(list(mels.items())[:MOST_CLASSES])
    low, high = float(spec.floor.min()), float(spec.ceiling.max())
    ticks_hz = [f for f in (250, 1000, 4000, 16_000) if spec.f_min <= f <= spec.f_high]
    bottom, top = hz_to_mel([spec.f_min, spec.f_high], spec.mel_scale)
    places = [(float(hz_to_mel(f, spec.mel_scale)) - bottom) / (top - bottom) for f in ticks_hz]
    size = (1.2 + 1.55 * columns, 0.7 + 0.95 * len(mels))
    with figure(path, len(mels), columns, size) as axes:
        for row, (label, clips) in zip(axes, mels.items(), strict=True):
            for axis in row:
                axis.set_xticks([])
                axis.set_yticks([])
                for spine in axis.spines.values():
                    spine.set_visible(False)
            for axis, clip in zip(row, clips, strict=False):
                seconds = clip.shape[1] * spec.hop_s
                image = axis.imshow(
                    clip.float().numpy(),
                    origin="lower",
                    aspect="auto",
                    cmap="magma",
                    vmin=low,
                    vmax=high,
                    extent=(0, seconds, 0, 1),
                    interpolation="nearest",
                )
            row[0].set_ylabel(short(label), rotation=0, ha="right", va="center", fontweight="bold")
            row[0].set_yticks(places, [f"{f / 1000:g}" for f in ticks_hz], fontsize=6)
        last = axes[-1][0]
        seconds = next(iter(mels.values())).shape[2] * spec.hop_s
        ticks = last.set_xticks([0, seconds], ["0", f"{seconds:.2f} s"], fontsize=7)
        # Flush with the picture: a label that sticks out would widen the gap to the next column.
        ticks[-1].label1.set_horizontalalignment("right")
        fig = last.figure
        fig.suptitle(f"{title}   (kHz over seconds)", fontweight="bold", fontsize=10)
        bar = fig.colorbar(image, ax=axes, shrink=0.5, aspect=30, ticks=[low, high])
        bar.ax.set_yticklabels(["silence", "full scale"])
        bar.outline.set_visible(False)


# --- One picture of an export: size, speed, answers, layers, and the verdicts in words

_BLUE, _ORANGE, _GREEN, _RED = SERIES[0], SERIES[1], SERIES[2], SERIES[3]
_GREY = SERIES[5]
_PALE = "#a9c4de"
_LAYERS = 16
"""Shown, the most sensitive ones first; the report has all."""
_LINE = 150
"""Characters of a line of the verdicts."""
_CUT = 1.15
"""Times the longest median: where the lines to p95 are cut."""
_ROW = 0.42
"""Inches of an artefact."""


def draw_export_report(report: Mapping[str, Any], path: Path) -> None:
    """Draw an `export_report.json`.

    Args:
        report: Its content.
        path: PNG file.

    Raises:
        ValueError: There is no artefact.
    """
    artifacts = list(report["artifacts"])
    if not artifacts:
        raise ValueError("the picture of an export needs at least one artefact")
    lines = _words(report)
    layers = list(report.get("layers") or [])[:_LAYERS]
    bars = max(1.5 + _ROW * len(artifacts), 0.9 + 0.2 * len(layers), 2.4)
    words = 0.3 + 0.175 * len(lines)
    with figure(
        path, 2, 4, (13, 0.5 + bars + words), width_ratios=[1, 1.35, 1, 1.1],
        height_ratios=[bars, words],
    ) as axes:  # fmt: skip
        size, latency, answers, noise = axes[0]
        _size(size, artifacts, report)
        _latency(latency, artifacts, report)
        _answers(answers, artifacts)
        _noise(noise, layers, report)
        for axis in axes[1]:
            axis.set_axis_off()
        _write(axes[1][0], lines)
        size.figure.suptitle(_title(report), fontweight="bold", fontsize=12, x=0.01, ha="left")


def _size(axis: Any, artifacts: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    kilobytes = [a["bytes"] / 1000 for a in artifacts]
    whole = next((a["bytes"] for a in artifacts if a["name"] == "fp32"), 0) / 1000
    used = [a["path"] == report.get("recommended") for a in artifacts]
    axis.barh(
        range(len(artifacts)), kilobytes, color=[_GREEN if u else _BLUE for u in used], height=0.55
    )
    for i, value in enumerate(kilobytes):
        smaller = whole / value
        text = f" {value:.0f} kB" + (f", {smaller:.1f}x smaller" if smaller >= 1.05 else "")
        _label(axis, value, i, text)
    axis.set_xlim(0, 1.84 * max(kilobytes))
    axis.locator_params(axis="x", nbins=5)
    axis.set_title("Size, kB", loc="left")
    _names(axis, artifacts, used)


def _latency(axis: Any, artifacts: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    chunk_s = (report.get("bench") or {}).get("chunk_s")
    medians = [a.get(key) or 0.0 for a in artifacts for key in ("p50_ms", "chunk_p50_ms")]
    most = max(*medians, 1e-9)
    chunk = "a chunk" if chunk_s is None else f"a chunk of {chunk_s:g} s"
    for name, colour in (("1 s of audio", _BLUE), (chunk, _PALE)):
        axis.barh([0], [0], color=colour, label=name)
    for i, a in enumerate(artifacts):
        p50, p95, chunk_p50 = a.get("p50_ms"), a.get("p95_ms"), a.get("chunk_p50_ms")
        if p50 is not None:
            axis.barh(i - 0.16, p50, height=0.3, color=_BLUE)
            end = p50
            if p95 is not None and p95 > p50:
                # On a busy machine p95 can be a hundred medians: the line is cut, with an arrow.
                end = min(p95, _CUT * most)
                axis.plot([p50, end], [i - 0.16] * 2, color=INK, linewidth=0.8)
                if end < p95:
                    axis.plot([end], [i - 0.16], ">", color=INK, markersize=4)
            text = f"  {p50:.3f} ms" + _faster(a.get("speedup"), a)
            _label(axis, end, i - 0.16, text)
        if chunk_p50 is not None:
            axis.barh(i + 0.16, chunk_p50, height=0.3, color=_PALE)
            text = f" {chunk_p50:.3f} ms" + _faster(a.get("chunk_speedup"), a)
            _label(axis, chunk_p50, i + 0.16, text)
    axis.set_title("Latency, ms: median, line to p95", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    _names(axis, artifacts, None)
    axis.set_xlim(0, 2.1 * most)
    axis.locator_params(axis="x", nbins=5)


def _faster(speedup: float | None, a: Mapping[str, Any]) -> str:
    return "" if speedup is None or a["name"] == "fp32" else f", {speedup:.2f}x as fast"


def _answers(axis: Any, artifacts: Sequence[Mapping[str, Any]]) -> None:
    shown: list[float] = []
    for key, marker, colour, shift in (
        ("agreement", "o", _BLUE, -0.14), ("accuracy", "D", _ORANGE, 0.14),
    ):  # fmt: skip
        known = [(i, 100 * a[key]) for i, a in enumerate(artifacts) if a.get(key) is not None]
        if not known:
            continue
        at, values = zip(*known, strict=True)
        axis.plot(values, [i + shift for i in at], marker, color=colour, markersize=6, label=key)
        for i, value in known:
            axis.annotate(
                f"{value:.1f}", (value, i + shift), xytext=(-7, 0), textcoords="offset points",
                ha="right", va="center", fontsize=8,
            )  # fmt: skip
        shown += values
    low = min([*shown, 98.0])
    axis.set_xlim(low - 0.35 * (101 - low), 100 + 0.04 * (101 - low))
    axis.locator_params(axis="x", nbins=5)
    axis.set_title("Answers, % (cut axis)", loc="left")
    handles, names = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    _names(axis, artifacts, None)


def _noise(axis: Any, layers: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    axis.set_title("SQNR of each layer in int8, dB", loc="left")
    known = [row for row in layers if row.get("sqnr_db") is not None]
    if not known:
        axis.set_axis_off()
        axis.text(0, 0.9, "No layer was quantised.", transform=axis.transAxes, va="top")
        return
    kept = set((report.get("quantisation") or {}).get("float_layers") or [])
    values = [row["sqnr_db"] for row in known]
    colours = [_PALE if row["layer"] in kept else _BLUE for row in known]
    axis.barh(range(len(known)), values, color=colours, height=0.7)
    for i, (row, value) in enumerate(zip(known, values, strict=True)):
        text = f" {value:.1f}" + (", stays float" if row["layer"] in kept else "")
        axis.text(value, i, text, va="center", fontsize=7)
    names = [_shortened(str(row["layer"])) for row in known]
    axis.set_yticks(range(len(known)), names, fontsize=7)
    axis.set_ylim(len(known) - 0.4, -0.6)
    axis.set_xlim(0, 1.35 * max(*values, 1.0))
    axis.tick_params(axis="y", length=0)


def _names(axis: Any, artifacts: Sequence[Mapping[str, Any]], used: Sequence[bool] | None) -> None:
    axis.set_ylim(len(artifacts) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    if used is None:
        axis.set_yticks(range(len(artifacts)), [""] * len(artifacts))
        return
    axis.set_yticks(range(len(artifacts)), [a["name"] for a in artifacts])
    for label, chosen in zip(axis.get_yticklabels(), used, strict=True):
        label.set_fontweight("bold" if chosen else "normal")


def _label(axis: Any, at: float, y: float, text: str) -> None:
    axis.text(at, y, text, va="center", fontsize=7.5)


def _title(report: Mapping[str, Any]) -> str:
    gates = report.get("gates") or []
    passed = sum(bool(g["passed"]) for g in gates)
    use = report.get("recommended") or "nothing"
    return f"Export of {report['name']}: use {use} ({passed} of {len(gates)} gates passed)"


def _words(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines and their colours."""
    said: list[tuple[str, str]] = []
    for a in report["artifacts"]:
        chosen = a["path"] == report.get("recommended")
        text = f"{a['path']}: {a.get('verdict') or 'no verdict'}"
        said.append((text, _GREEN if chosen else INK))
    for gate in report.get("gates") or []:
        if not gate["passed"]:
            bound = "at most" if gate.get("better", "lower") == "lower" else "at least"
            rule = f"must be {bound} {gate['limit']:.4g}"
            text = f"Gate failed: {gate['name']} is {gate['value']:.4g}, {rule}"
            said.append((text, _RED))
    bench = report.get("bench") or {}
    if bench.get("cpu"):
        text = f"Latency of the graph alone: {bench.get('rounds', 'some')} interleaved rounds, one "
        said.append((f"{text}thread, batch 1, {bench['cpu']}.", _GREY))
    said += [(str(note), _GREY) for note in report.get("notes") or []]
    lines = []
    for text, colour in said:
        wrapped = textwrap.wrap(text, _LINE, subsequent_indent="    ") or [""]
        lines += [(line, colour) for line in wrapped]
    return lines


def _write(axis: Any, lines: Sequence[tuple[str, str]]) -> None:
    for i, (line, colour) in enumerate(lines):
        text = axis.text(
            0, 1 - i / max(1, len(lines)), line, transform=axis.transAxes, va="top", color=colour,
            fontsize=8.5,
        )  # fmt: skip
        # It runs below the other columns; counting it would squeeze them.
        text.set_in_layout(False)


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else f"…{name[-17:]}"


# --- The pictures of a protocol: what time and clips buy


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


# --- Pictures of a run: people look before they read

__all__ = ["accuracy_bars", "confusion", "curves", "diversity", "draw_export_report", "mel_grid"]
