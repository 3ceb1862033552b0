from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frami_edge import plots
from frami_edge.plots import _smoothed, accuracy_over_mels
from frami_edge.sources.noise import smooth_noise_mels
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)
MELS = smooth_noise_mels(SPEC, 6, 40, 0)[:, 0]
ROWS: list[dict[str, Any]] = [
    {"step": i, "loss": 5 / (i + 1), "agreement": i / 50 if i % 2 else None} for i in range(50)
] + [{"phase": "other"}]
HEALTH: dict[str, Any] = {
    "labels": ["dog", "rain"],
    "inversion": {
        "requested_per_class": [0.9, None],
        "requested": 0.9,
        "class_share": [0.5, 0.5],
        "cosine": 0.4,
    },
    "procedural": {
        "requested_per_class": [None, None],
        "requested": None,
        "class_share": [0.8, 0.2],
        "cosine": 0.6,
    },
}

DRAWERS: dict[str, Callable[[Path], None]] = {
    "mel grid": lambda p: plots.mel_grid(p, {"dog": MELS[:4], "rain": MELS[4:]}, SPEC, "Mels"),
    "curves": lambda p: plots.curves(p, ROWS, [["loss"], ["agreement"], ["absent"]], "Curves"),
    "joint curves": lambda p: plots.curves(p, ROWS, [["loss", "agreement"]], "Curves"),
    "confusion": lambda p: plots.confusion(p, torch.tensor([[3, 1], [0, 0]]), ["a", "b"], "Who"),
    "large confusion": lambda p: plots.confusion(
        p, torch.eye(30), [f"class {k}" for k in range(30)], "Who"
    ),
    "diversity": lambda p: plots.diversity(p, HEALTH),
    "bars": lambda p: plots.accuracy_bars(p, [("teacher", 0.9, None), ("us", 0.88, 0.02)], "Bars"),
}


def read_png(path: Path) -> Any:
    """(rows, columns, channels) of a PNG, decoded."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    from matplotlib import image

    return image.imread(path)


@pytest.mark.parametrize("name", DRAWERS)
def test_pictures_are_whole_png_files_with_something_on_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plots" / "picture.png"
    DRAWERS[name](path)
    assert list(path.parent.iterdir()) == [path]
    pixels = read_png(path)
    assert min(pixels.shape[:2]) > 100
    # Neither blank nor flooded: ink on a white ground.
    ink = (pixels[..., :3] < 0.9).any(axis=2).mean()
    assert 0.01 < ink < 0.95


def test_the_mel_grid_has_one_scale_from_silence_to_full_scale(tmp_path: Path) -> None:
    def middle(value: float) -> float:
        mels = torch.full((1, SPEC.n_mels, 40), value)
        plots.mel_grid(tmp_path / "m.png", {"x": mels}, SPEC, "t")
        pixels = read_png(tmp_path / "m.png")
        return float(pixels[pixels.shape[0] // 2 + 5, pixels.shape[1] // 3, :3].mean())

    low, high = float(SPEC.floor.min()), float(SPEC.ceiling.max())
    assert middle(low) < middle((low + high) / 2) < middle(high)
    assert middle(low - 5) == middle(low)


def test_smooth_curves_keep_lines_and_do_not_lag() -> None:
    line = [float(i) for i in range(100)]
    assert _smoothed(line) == pytest.approx(line)
    noisy = [i + (-1) ** i * 5.0 for i in range(200)]
    inner = [abs(y - i) for i, y in enumerate(_smoothed(noisy))][10:-10]
    assert max(inner) < 1.0
    assert _smoothed([]) == []
    assert _smoothed([math.pi]) == [math.pi]


@pytest.mark.parametrize(
    "draw",
    [
        lambda p: plots.mel_grid(p, {}, SPEC, "t"),
        lambda p: plots.mel_grid(p, {"a": MELS[:0]}, SPEC, "t"),
        lambda p: plots.curves(p, ROWS, [], "t"),
        lambda p: plots.confusion(p, torch.zeros(3, 3), ["a", "b"], "t"),
        lambda p: plots.diversity(p, {"labels": ["a"]}),
        lambda p: plots.accuracy_bars(p, [], "t"),
    ],
)
def test_nothing_to_draw_is_an_error_and_no_file(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"need|fit"):
        draw(tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_names_the_picture(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"p\.png") as caught:
        DRAWERS["bars"](tmp_path / "file" / "p.png")
    assert str(caught.value.filename).endswith("p.png")


def test_importing_plots_does_not_import_matplotlib() -> None:
    code = "import sys, frami_edge.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_axis_of_clips_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are drawn as they are, without mathtext, so powers of ten would show their source."""
    from matplotlib.figure import Figure

    drawn: list[str] = []
    save = Figure.savefig

    def watch(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        axis = self.axes[0].xaxis
        labels = axis.get_ticklabels() + axis.get_ticklabels(minor=True)
        drawn.extend(text for label in labels if (text := label.get_text()))

    monkeypatch.setattr(Figure, "savefig", watch)
    points = [(48, 0.8, 0.9), (768, 0.8, 0.9), (21240, 0.8, 0.9)]
    accuracy_over_mels(tmp_path / "m.png", points, "t")
    assert drawn == ["48", "768", "21,240"]
