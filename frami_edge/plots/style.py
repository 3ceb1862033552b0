"""One look for all pictures, and files that are whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frami_edge.io import atomic_path

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
