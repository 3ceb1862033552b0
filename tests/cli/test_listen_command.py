"""`frami-edge listen` and `frami-edge-listen` are one program with one set of options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import frami_edge_runtime.listen
from frami_edge.cli import app, listen
from frami_edge_runtime import listen as cli
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.listen import ListenOptions

EVERYTHING = [
    "--window", "2", "--hop", "0.25", "--top", "5", "--backend", "cpu", "--on", "0.7",
    "--off", "0.4", "--min-on", "0.5", "--min-off", "0.25", "--merge-gap", "1", "--cooldown", "3",
    "--smooth", "0.2", "--update", "5", "--min-level", "-50", "--watch", "dog", "--watch", "rain",
    "--ignore", "wind", "--rate", "16000", "--format", "f32le", "--channels", "2", "--channel", "1",
    "--ring", "4", "--duration", "60", "--once", "--json", "--plain", "--quiet",
]  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ListenOptions]:
    """What either program would have run with."""
    seen: list[ListenOptions] = []
    monkeypatch.setattr(frami_edge_runtime.listen, "run", seen.append)
    monkeypatch.setattr(cli, "run", seen.append)
    return seen


def both(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["listen", *arguments])
    assert result.exit_code == 0, result.output
    assert cli.main(arguments) == 0


def test_every_option_means_the_same_in_both(asked: list[ListenOptions]) -> None:
    both(["student.onnx", "-", *EVERYTHING])
    ours, theirs = asked
    assert ours == theirs
    assert ours.source == "-"
    assert ours.spec.watch == ("dog", "rain")
    assert (ours.spec.min_on_s, ours.spec.min_level_db) == (0.5, -50.0)
    untouched = {"device", "forget_s"}  # for another source, and instead of --window
    plain = ListenOptions("student.onnx")
    same = {n for n in ListenOptions.__dataclass_fields__ if getattr(ours, n) == getattr(plain, n)}
    assert same == untouched | {"model"}


def test_defaults_are_the_same_in_both(asked: list[ListenOptions]) -> None:
    both(["student.onnx"])
    both(["student.onnx", "mic", "--device", "plughw:1", "--forget", "2"])
    assert asked[0] == asked[1] == ListenOptions("student.onnx")
    assert asked[2] == asked[3]
    assert asked[2].spec.min_on_s == 1.0


def test_both_have_the_same_options() -> None:
    command = typer.main.get_command(listen.app)
    ours = {o for p in command.params for o in p.opts if o.startswith("--")}
    theirs = {o for a in cli.parser()._actions for o in a.option_strings if o.startswith("--")}
    shared = {"--help", "--version", "--install-completion", "--show-completion"}
    assert ours - shared == theirs - shared
    assert {o for o in EVERYTHING if o.startswith("--")} | {"--device", "--forget"} == ours - shared


def test_errors_come_as_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "none.onnx")
    result = CliRunner().invoke(app, ["listen", missing, "a.wav"])
    assert result.exit_code == cli.main([missing, "a.wav"]) == 1
    assert result.stdout == ""
    ours = " ".join(result.stderr.split())
    theirs = " ".join(capsys.readouterr().err.split())
    assert ours == theirs
    assert ours.startswith("error: ")
    assert " fix: " in ours

    def unplugged(options: Any) -> None:
        raise AudioError("Unplugged.", fix="Plug it in.")

    monkeypatch.setattr(frami_edge_runtime.listen, "run", unplugged)
    result = CliRunner().invoke(app, ["listen", "student.onnx"])
    assert (result.exit_code, result.stderr) == (1, "error: Unplugged.\nfix: Plug it in.\n")


def test_the_help_says_that_json_is_json_lines() -> None:
    result = CliRunner().invoke(app, ["listen", "--help"], env={"COLUMNS": "200"})
    assert "JSON Lines" in result.stdout
    assert "frami-edge-listen" in result.stdout
