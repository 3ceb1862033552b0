"""Pictures of runs and exports, as PNG files.

Shape legend: n clips, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from frami_edge.io import atomic_path
from frami_edge_runtime.melspec import MelSpec, hz_to_mel

INK, FAINT, PALE, GREY = "#1f2933", "#9aa5b1", "#a9c4de", "#6b7785"
SERIES = ("#2563a8", "#d9822b", "#2f9e77", "#b0413e", "#7c5fb0", GREY, "#c2a83e")
"""Colours of lines and bars, chosen for print and for colour-blind readers."""
BLUE, _, GREEN = SERIES[:3]
MOST_CLASSES = 64
"""Rows of a mel grid."""
_FEW_CLASSES = 25
_SMOOTHED_SHARE = 0.04  # of the steps, averaged by one point of a curve
_STYLE = {
    "font.size": 9,
    "text.parse_math": False,  # a class may be named $x
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "legend.frameon": False,
}


def short(name: str) -> str:
    """A class name without control characters, at most 32 characters long."""
    text = "".join(c if c.isprintable() else "?" for c in name)
    return text if len(text) <= 32 else f"{text[:29]}..."


@contextmanager
def figure(
    path: Path, rows: int, columns: int, size: tuple[float, float], **kwargs: Any
) -> Iterator[Any]:
    """Axes (rows, columns) of a new figure of a size in inches, written when the block ends."""
    # Imported here because it takes a second; Agg because servers have no screen.
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


def mel_grid(path: Path, mels: Mapping[str, Tensor], mel: MelSpec, title: str) -> None:
    """Log-mels (n, M, T), one row per class, with one colour scale from silence to full scale."""
    columns = max((len(clips) for clips in mels.values()), default=0)
    if len(mels) > MOST_CLASSES:
        title = f"{title}, {MOST_CLASSES} of {len(mels)} classes"
        mels = dict(list(mels.items())[:MOST_CLASSES])
    low, high = float(mel.floor.min()), float(mel.ceiling.max())
    ticks_hz = [f for f in (250, 1000, 4000, 16_000) if mel.f_min <= f <= mel.f_high]
    bottom, top = hz_to_mel([mel.f_min, mel.f_high], mel.mel_scale)
    places = [(float(hz_to_mel(f, mel.mel_scale)) - bottom) / (top - bottom) for f in ticks_hz]
    size = (1.2 + 1.55 * columns, 0.7 + 0.95 * len(mels))
    with figure(path, len(mels), columns, size) as axes:
        for row, (label, clips) in zip(axes, mels.items(), strict=True):
            for axis in row:
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            for axis, clip in zip(row, clips, strict=False):
                seconds = clip.shape[1] * mel.hop_s
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
        seconds = next(iter(mels.values())).shape[2] * mel.hop_s
        ticks = axes[-1][0].set_xticks([0, seconds], ["0", f"{seconds:.2f} s"], fontsize=7)
        # Flush with the picture: a label that sticks out would widen the gap to the next column.
        ticks[-1].label1.set_horizontalalignment("right")
        fig = axes[-1][0].figure
        fig.suptitle(f"{title}   (kHz over seconds)", fontweight="bold", fontsize=10)
        bar = fig.colorbar(image, ax=axes, shrink=0.5, aspect=30, ticks=[low, high])
        bar.ax.set_yticklabels(["silence", "full scale"])
        bar.outline.set_visible(False)


def curves(
    path: Path,
    metrics: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    title: str,
    x: str = "step",
) -> None:
    """Columns of metrics.jsonl over their step, which is called `x`, one panel each.

    Each value is drawn faintly, the local mean in full colour.
    """
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with figure(path, rows, columns, (3.4 * columns, 0.5 + 2.1 * rows)) as axes:
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for panel, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
            points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
            steps, values = [step for step, _ in points], [value for _, value in points]
            colour = SERIES[panel % len(SERIES)]
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
            axis.plot(steps, smoothed(values), color=colour, linewidth=1.6)
            axis.set_title(name.replace("_", " "))
            axis.set_xlabel(x)
            axis.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        axes[0][0].figure.suptitle(title, fontweight="bold", fontsize=11)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred local mean, over fewer values at the ends: it does not lag behind a descent."""
    half = math.ceil(_SMOOTHED_SHARE * len(values) / 2)
    reach = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [float(np.mean(values[i - r : i + r + 1])) for i, r in enumerate(reach)]


def confusion(path: Path, matrix_KK: Tensor, labels: Sequence[str], title: str) -> None:
    """Confusion matrix: colour is the share of the row (true class), numbers count clips."""
    k = len(labels)
    counts = matrix_KK.long()
    share = counts.float() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    names = [short(label) for label in labels]
    # Many classes get smaller cells, so that the picture still fits a screen.
    cell, size = (0.42, 8) if k <= _FEW_CLASSES else (0.24, 6)
    side = 2.2 + cell * k
    with figure(path, 1, 1, (side + 0.6, side)) as axes:
        axis = axes[0][0]
        axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
        for i, j in counts.nonzero().tolist():
            colour = "white" if share[i, j] > 0.6 else INK
            text = str(int(counts[i, j]))
            axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
        # White lines between the cells lead from a row to its label.
        axis.set_xticks([i - 0.5 for i in range(1, k)], minor=True)
        axis.set_yticks([i - 0.5 for i in range(1, k)], minor=True)
        axis.grid(which="minor", color="white", linewidth=1.2)
        axis.tick_params(which="both", length=0)
        axis.set_xticks(range(k), names, fontsize=size + 1, **_rotation(names))
        axis.set_yticks(range(k), names, fontsize=size + 1)
        axis.set_xlabel("prediction")
        axis.set_ylabel("true class")
        axis.set_title(title, fontsize=9)


def _rotation(names: Sequence[str]) -> dict[str, Any]:
    """Short names below an axis are upright, longer ones are turned."""
    if max(map(len, names)) <= 2:
        return {}
    few = len(names) <= _FEW_CLASSES
    return {"rotation": 45 if few else 90, "ha": "right" if few else "center"}


def diversity(path: Path, health: Mapping[str, Any], labels: Sequence[str], least: float) -> None:
    """What the teacher predicts for each source: hit rate, class balance, mean cosine.

    `least` is the hit rate that the check of the bank asks for.
    """
    labels, sources = [short(label) for label in labels], list(health)
    colours = [SERIES[i % len(SERIES)] for i in range(len(sources))]
    wide = max(4.5, (0.42 if len(labels) <= _FEW_CLASSES else 0.24) * len(labels) + 1.5)
    with figure(path, 1, 3, (2 * wide + 3, 3.7), width_ratios=[wide, wide, 3]) as axes:
        hits, balance, cosine = axes[0]
        width = 0.8 / len(sources)
        for i, name in enumerate(sources):
            places = [k + (i - (len(sources) - 1) / 2) * width for k in range(len(labels))]
            if health[name]["hit_rate"] is not None:
                rates = [rate or 0.0 for rate in health[name]["hit_rate_per_class"]]
                hits.bar(places, rates, width, color=colours[i])
            share = health[name]["class_share"]
            balance.bar(places, share, width, color=colours[i], label=name)
        hits.axhline(least, color=FAINT, linewidth=0.8, linestyle="--")
        hits.set_title("Hit rate: predicted as the target class")
        hits.set_ylim(0, 1.02)
        balance.axhline(1 / len(labels), color=FAINT, linewidth=0.8, linestyle="--")
        balance.set_title("Share of predicted classes")
        balance.figure.legend(loc="outside upper right", ncols=len(sources))
        for axis in (hits, balance):
            axis.set_xticks(range(len(labels)), labels, **_rotation(labels))
        cosine.bar(sources, [health[name]["cosine"] for name in sources], color=colours)
        cosine.set_title("Mean pairwise cosine")
        cosine.set_ylim(0, 1)
        cosine.tick_params(axis="x", rotation=30)


def accuracy_bars(path: Path, accuracies: Mapping[str, float], title: str) -> None:
    """Accuracies in [0, 1] by name as bars, the first on top."""
    with figure(path, 1, 1, (6.5, 0.8 + 0.36 * len(accuracies))) as axes:
        axis = axes[0][0]
        values = [100 * accuracy for accuracy in accuracies.values()]
        _bars(axis, list(accuracies), values, [BLUE] * len(values), "{:.1f}")
        axis.set_xlabel("accuracy, %")
        axis.set_title(title)


def detection_error(
    path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], title: str
) -> None:
    """Missed sounds over false alarms per hour as all thresholds rise, one line per model.

    Args:
        path: PNG file.
        curves: (false alarms per hour, hit rate) of each model.
        title: Title of the picture.
    """
    with figure(path, 1, 1, (6.5, 4.2)) as axes:
        axis = axes[0][0]
        for (name, points), colour in zip(curves.items(), SERIES, strict=False):
            rates = [max(false, 0.1) for false, _ in points]
            missed = [100 * (1 - hit) for _, hit in points]
            axis.plot(rates, missed, color=colour, label=name, marker=".")
        axis.set_xscale("log")
        axis.set_ylim(0, 100)
        axis.set_xlabel("false alarms per hour (at least 0.1 is drawn)")
        axis.set_ylabel("missed sounds, %")
        axis.set_title(title)
        axis.legend()


def draw_export_report(report: Mapping[str, Any], path: Path) -> None:
    """Size, latency, agreement and int8 noise of an ``export_report.json``."""
    artifacts, gates = report["artifacts"], report["gates"]
    recommended = report["recommended"]
    layers = [row for row in report["layers"] if row["sqnr_db"] is not None][:16]
    floats = (report["quantisation"] or {}).get("float_layers", ())
    height = max(2.0 + 0.42 * len(artifacts), 1.4 + 0.2 * len(layers), 2.9)
    with figure(path, 1, 4, (13, height), width_ratios=[1, 1.2, 1, 1]) as axes:
        size, latency, agreement, noise = axes[0]
        names = [a["name"] for a in artifacts]
        colours = [GREEN if a["path"] == recommended else BLUE for a in artifacts]
        size.set_title("Size, kB")
        _bars(size, names, [a["bytes"] / 1000 for a in artifacts], colours, "{:.0f}")
        latency.set_title("Median latency of 1 s of audio, ms")
        _bars(latency, names, [a["p50_ms"] for a in artifacts], colours, "{:.3f}")
        agreement.set_title("Agreement with fp32, %")
        shares = [None if a["agreement"] is None else 100 * a["agreement"] for a in artifacts]
        _bars(agreement, names, shares, colours, "{:.1f}")
        noise.set_title("SQNR of each layer in int8, dB")
        colours = [PALE if row["layer"] in floats else BLUE for row in layers]
        names = [row["layer"][-18:] + (" (float)" * (row["layer"] in floats)) for row in layers]
        _bars(noise, names, [row["sqnr_db"] for row in layers], colours, "{:.1f}")
        title = f"Export of {report['name']}: use {recommended or 'nothing'}"
        title += f" ({sum(g['passed'] for g in gates)} of {len(gates)} gates passed)"
        size.figure.suptitle(title, fontweight="bold", fontsize=12, x=0.01, ha="left")


def _bars(
    axis: Any,
    names: Sequence[str],
    values: Sequence[float | None],
    colours: Sequence[str],
    form: str,
) -> None:
    """Horizontal bars with their values, the first on top; None leaves a bar out."""
    if not names:
        axis.set_axis_off()
        return
    axis.barh(range(len(names)), [value or 0 for value in values], color=colours, height=0.6)
    for i, value in enumerate(values):
        if value is not None:
            axis.text(value, i, f" {form.format(value)}", va="center", fontsize=7.5)
    axis.set_yticks(range(len(names)), names, fontsize=7 if len(names) > 8 else 9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, 1.5 * max((value or 0 for value in values), default=0) or 1)
    axis.locator_params(axis="x", nbins=5)
