"""Pictures are whole PNG files that show what they should."""

import pytest
import torch
from kit import SPEC

from frami_edge import plots
from frami_edge.sources.baselines import smooth_noise_mels

MELS = smooth_noise_mels(SPEC, 6, 40, 0)[:, 0]
ROWS = [
    {"step": i, "loss": 5 / (i + 1), "agreement": i / 50 if i % 2 else None} for i in range(50)
] + [{"phase": "other"}]
HEALTH = {
    "inversion": {"hit_rate_per_class": [0.9, None], "hit_rate": 0.9},
    "procedural": {"hit_rate_per_class": [None, None], "hit_rate": None},
}
for name in ("inversion", "procedural"):
    HEALTH[name] |= {"class_share": [0.8, 0.2], "cosine": 0.4}
FP32 = {
    "name": "fp32", "path": "s.fp32.onnx", "bytes": 200_000, "p50_ms": 0.08, "agreement": 1.0,
    "accuracy": 0.98, "verdict": "the reference",
}  # fmt: skip
INT8 = FP32 | {"name": "int8.cpu", "path": "s.int8.cpu.onnx", "bytes": 80_000, "accuracy": None}
REPORT = {
    "name": "student",
    "artifacts": [FP32, INT8],
    "recommended": "s.int8.cpu.onnx",
    "gates": [
        {"name": "agreement", "value": 0.97, "limit": 0.98, "passed": False, "better": "higher"}
    ],
    "quantisation": {"float_layers": ["stem"]},
    "layers": [{"layer": "stem", "sqnr_db": 31.0}, {"layer": "3", "sqnr_db": None}],
}
NOTHING = {"layers": [], "quantisation": None, "gates": [], "recommended": ""}
FP32_ONLY = REPORT | NOTHING | {"artifacts": [FP32]}
LONG = REPORT | {
    "artifacts": [FP32] * 7,
    "layers": [{"layer": f"blocks.{i}.depthwise.conv", "sqnr_db": 20.0 + i} for i in range(40)],
}

DRAWERS = {
    "mel grid": lambda p: plots.mel_grid(p, {"$dog": MELS[:4], "rain": MELS[4:]}, SPEC, "Mels"),
    "curves": lambda p: plots.curves(p, ROWS, ["loss", "agreement", "absent"], "Curves"),
    "confusion": lambda p: plots.confusion(p, torch.tensor([[3, 1], [0, 0]]), ["a", "b"], "Who"),
    "large confusion": lambda p: plots.confusion(
        p, torch.eye(30), [f"class {k}" for k in range(30)], "Who"
    ),
    "diversity": lambda p: plots.diversity(p, HEALTH, ["dog", "rain"], 0.8),
    "bars": lambda p: plots.accuracy_bars(p, {"teacher": 0.9, "us": 0.88}, "Bars"),
    "export": lambda p: plots.draw_export_report(REPORT, p),
    "fp32 alone": lambda p: plots.draw_export_report(FP32_ONLY, p),
    "long export": lambda p: plots.draw_export_report(LONG, p),
}


def read_png(path):
    """(rows, columns, 3) of a PNG, decoded."""
    from matplotlib import image

    return image.imread(path)[..., :3]


@pytest.mark.parametrize("name", DRAWERS)
def test_pictures_are_whole_and_nothing_is_cut_off(name, tmp_path):
    path = tmp_path / "plots" / "picture.png"
    DRAWERS[name](path)
    assert list(path.parent.iterdir()) == [path]
    pixels = read_png(path)
    assert min(pixels.shape[:2]) > 100
    ink = (pixels < 0.9).any(axis=2)
    assert 0.01 < ink.mean() < 0.95
    assert not any(edge.any() for edge in (ink[:2], ink[-2:], ink[:, :2], ink[:, -2:]))
