"""`frami-edge inspect` on a teacher in Python code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import teacher_zoo as zoo
import torch
from typer.testing import CliRunner, Result

from frami_edge.cli import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for name, layout in (("XVector", "BMT"), ("ScoresOverTime", "BMT"), ("SqueezeExcite", "B1MT")):
        module = zoo.lively(getattr(zoo, name)(), "BTM" if name == "ScoresOverTime" else layout)
        torch.save(module.state_dict(), tmp_path / f"{name}.pt")
    (tmp_path / "mel.yaml").write_text("n_mels: 16\n")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    return tmp_path


def inspect(folder: Path, name: str, *more: str) -> Result:
    files = ["--weights", str(folder / f"{name}.pt"), "--mel", str(folder / "mel.yaml")]
    files += ["--labels", str(folder / "labels.txt")]
    return CliRunner().invoke(app, ["inspect", f"teacher_zoo:{name}", *files, *more])


def test_what_was_found_is_shown(folder: Path) -> None:
    result = inspect(folder, "XVector", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["kind"] == "foreign-teacher"
    assert found["network"]["batch_norms"] == {"tdnn.2": 16, "tdnn.5": 12, "norm": 10}
    assert found["hidden_states"]["frames"] == "tdnn.5"
    assert found["hidden_states"]["receptive_field"] == 9
    assert found["model"]["mel"]["n_mels"] == 16
    assert any("not affine" in finding for finding in found["findings"])
    assert any("trained_on" in finding for finding in found["findings"])


def test_people_see_where_time_disappears(folder: Path) -> None:
    result = inspect(folder, "SqueezeExcite")
    assert "pool: AdaptiveAvgPool2d (4, 16, 1, 1), no time axis" in result.stdout
    assert "time on axis 3" in result.stdout


def test_what_is_missing_is_told_and_not_fatal(folder: Path) -> None:
    result = inspect(folder, "ScoresOverTime", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["hidden_states"]["found"] is False
    assert "pools over time and returns the result at once" in found["findings"][0]


def test_a_description_is_a_file_to_inspect(folder: Path) -> None:
    (folder / "t.yaml").write_text(
        "factory: teacher_zoo:XVector\nweights: XVector.pt\nmel: mel.yaml\nlabels: labels.txt\n"
    )
    result = CliRunner().invoke(app, ["inspect", str(folder / "t.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["title"] == "teacher teacher_zoo:XVector"
