"""A grid of log-mels: a row a class, one colour scale from silence to full scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from frami_edge.plots.style import figure, short
from frami_edge_runtime.filterbank import hz_to_mel
from frami_edge_runtime.melspec import MelSpec

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
