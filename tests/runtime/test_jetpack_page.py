"""docs/JETPACK.md: its program runs, and every backend is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from frami_edge_runtime.backends import BACKENDS

PAGE = (Path(__file__).parents[2] / "docs" / "JETPACK.md").read_text(encoding="utf-8")


def test_its_program_reports_the_fallback(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model_path.parent)
    model_path.rename("student.int8.cpu.onnx")
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(programs) == 1
    exec(compile(programs[0], "JETPACK.md", "exec"), {})
    said = capsys.readouterr().out
    assert "Cannot read the engine student.int8.engine" in said
    assert "cpu because" in said


def test_it_names_every_backend() -> None:
    named = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE))
    assert named == set(BACKENDS)
