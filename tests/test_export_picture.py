from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from frami_edge.plots import draw_export_report


def artifact(name: str, **more: Any) -> dict[str, Any]:
    found = {"name": name, "path": f"student.{name}.onnx", "bytes": 200_000, "verdict": "fine"}
    return found | {"p50_ms": 0.08, "p95_ms": 0.1, "agreement": 1.0, "speedup": 1.0} | more


REPORT: dict[str, Any] = {
    "schema": 1,
    "name": "student",
    "artifacts": [
        artifact("fp32", chunk_p50_ms=0.03, accuracy=0.98),
        artifact("int8.cpu", bytes=80_000, chunk_p50_ms=0.02, speedup=1.6, agreement=0.97),
    ],
    "recommended": "student.int8.cpu.onnx",
    "gates": [
        {"name": "agreement", "value": 0.97, "limit": 0.98, "passed": False, "better": "higher"}
    ],
    "quantisation": {"float_layers": ["stem"]},
    "layers": [{"layer": "stem", "sqnr_db": 31.0}, {"layer": "3", "sqnr_db": None}],
    "bench": {"cpu": "a CPU", "rounds": 20, "chunk_s": 0.1},
    "notes": ["a note"],
}


def pixels(report: dict[str, Any], path: Path) -> Any:
    from matplotlib import image

    draw_export_report(report, path)
    return image.imread(path)[..., :3]


def share(picture: Any, colour: tuple[float, float, float]) -> float:
    near = abs(picture - colour).max(axis=2) < 0.03
    return float(near.mean())


def test_the_picture_is_whole_and_nothing_touches_its_border(tmp_path: Path) -> None:
    picture = pixels(REPORT, tmp_path / "plots" / "export.png")
    assert list((tmp_path / "plots").iterdir()) == [tmp_path / "plots" / "export.png"]
    ink = (picture < 0.9).any(axis=2)
    assert 0.01 < ink.mean() < 0.6
    border = [ink[:2].any(), ink[-2:].any(), ink[:, :2].any(), ink[:, -2:].any()]
    assert not any(border)


def test_the_recommended_file_is_green_and_a_failed_gate_red(tmp_path: Path) -> None:
    green, red = (0x2F / 255, 0x9E / 255, 0x77 / 255), (0xB0 / 255, 0x41 / 255, 0x3E / 255)
    with_both = pixels(REPORT, tmp_path / "a.png")
    clean = copy.deepcopy(REPORT) | {"recommended": "", "gates": []}
    without = pixels(clean, tmp_path / "b.png")
    assert share(with_both, green) > 0.005
    assert share(without, green) == 0
    assert share(with_both, red) > 0
    assert share(without, red) == 0


def test_a_report_of_fp32_alone_and_one_without_any_measurement_can_be_drawn(
    tmp_path: Path,
) -> None:
    bare = {"name": "fp32", "path": "s.fp32.onnx", "bytes": 5}
    for i, report in enumerate(
        (
            REPORT | {"artifacts": REPORT["artifacts"][:1], "layers": [], "quantisation": None},
            {"name": "s", "artifacts": [bare]},
        )
    ):
        assert pixels(report, tmp_path / f"{i}.png").shape[0] > 100


def test_a_report_of_many_files_and_long_words_grows_and_is_not_cut(tmp_path: Path) -> None:
    files = [artifact(f"kind{i}", verdict="so many words " * 30) for i in range(7)]
    layers = [{"layer": f"blocks.{i}.depthwise.conv", "sqnr_db": 20.0 + i} for i in range(40)]
    tall = pixels(REPORT | {"artifacts": files, "layers": layers}, tmp_path / "tall.png")
    short = pixels(REPORT, tmp_path / "short.png")
    assert tall.shape[0] > 1.5 * short.shape[0]
    ink = (tall < 0.9).any(axis=2)
    assert not ink[-2:].any()
    assert not ink[:, -2:].any()


def test_no_artefact_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one artefact"):
        draw_export_report(REPORT | {"artifacts": []}, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_one_slow_round_does_not_squeeze_the_medians(tmp_path: Path) -> None:
    blue = (0x25 / 255, 0x63 / 255, 0xA8 / 255)
    slow = copy.deepcopy(REPORT)
    slow["artifacts"][0]["p95_ms"] = 100.0
    usual = share(pixels(REPORT, tmp_path / "a.png"), blue)
    assert share(pixels(slow, tmp_path / "b.png"), blue) > 0.9 * usual
