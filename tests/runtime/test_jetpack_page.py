"""docs/JETPACK.md: its program runs, and the sentences that it explains are the ones we say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import frami_edge_runtime
from frami_edge_runtime.backends import BACKENDS

PAGE = (Path(__file__).parents[2] / "docs" / "JETPACK.md").read_text(encoding="utf-8")


def test_its_program_falls_back_in_the_open(
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


def test_the_sentences_that_it_explains_are_in_the_source() -> None:
    package = Path(frami_edge_runtime.__file__).parent
    source = "".join(p.read_text(encoding="utf-8") for p in sorted(package.rglob("*.py")))
    source = re.sub(r'"\s*\n?\s*f?"', "", source)  # join literals that are broken over lines
    rows = PAGE.split("| it says | it means |")[1].strip().splitlines()[1:]
    sentences = [row.split("|")[1].strip() for row in rows if row.startswith("|")]
    assert len(sentences) == 8
    for sentence in sentences:
        for words in re.split(r"[\d.]{3,}|student\S*|… .*|its CUDA\w+|U8S8|\(Orin\)", sentence):
            assert words.strip(" ;:,") in source, words
