from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from frami_edge.cli.data import app
from frami_edge.data.sets import known_sets
from frami_edge.errors import DataError

Without = Callable[[str], AbstractContextManager[Path]]


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)


def test_the_list_shows_every_set(root: Path, without: Without) -> None:
    with without("free-spoken-digit-dataset/recordings/3_theo_7.wav"):
        result = CliRunner().invoke(app, ["--data-root", str(root)])
    assert result.exit_code == 0
    lines = {name: line for line in result.stdout.splitlines() for name in line.split()[1:2]}
    assert {info.name for info in known_sets()} <= set(lines)
    assert "2000/2000" in lines["esc50"]
    assert "incomplete" in lines["fsdd"]
    assert "2999/3000" in lines["fsdd"]
    assert "not found" in lines["audiomnist"]
    assert "github.com/soerenab/AudioMNIST" in lines["audiomnist"]
    assert "3_theo_7.wav" in result.stderr


def test_json_is_one_object(root: Path, without: Without) -> None:
    with without("ESC-50-master/audio/1-10-A-1.wav"):
        result = CliRunner().invoke(app, ["--data-root", str(root), "--json"])
    found = {entry["name"]: entry for entry in json.loads(result.stdout)["sets"]}
    assert list(found) == [info.name for info in known_sets()]
    assert (found["esc10"]["complete"], found["esc10"]["clips"]) == (True, 400)
    assert (found["esc50"]["complete"], found["esc50"]["clips"]) == (False, 1999)
    assert "1-10-A-1.wav" in found["esc50"]["problem"]
    assert found["fsdd"]["complete"] is True
    assert (found["audiomnist"]["found"], found["audiomnist"]["clips"]) == (False, 0)
    assert found["audiomnist"]["get"] == "frami-edge data get audiomnist"
    assert "weebly" in found["urbansound8k"]["get"]


def test_without_a_root_the_list_still_helps() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "FRAMI_EDGE_DATA" in result.stderr
    assert "audiomnist" in result.stdout


def test_a_wrong_root_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--data-root", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, DataError)


def test_get_reports_a_set_that_is_there(root: Path) -> None:
    for arguments in (
        ["get", "fsdd", "--data-root", str(root), "--json"],
        ["--data-root", str(root), "--json", "get", "fsdd"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert (answer["fetched"], answer["clips"], answer["folds"]) == (False, 3000, ["test"])


def test_get_without_a_root_or_with_a_wrong_name_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["get", "fsdd"])
    assert isinstance(result.exception, DataError)
    assert "--data-root" in result.exception.fix
    result = CliRunner().invoke(app, ["get", "fsd", "--data-root", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert "Did you mean fsdd?" in result.exception.fix


def test_listing_does_not_import_torch() -> None:
    code = (
        "import sys; import frami_edge.data.survey, frami_edge.data.download; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
