"""`frami-edge listen` is the runtime's `frami-edge-listen`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from frami_edge.cli import app
from frami_edge_runtime import listen


def test_arguments_and_exit_code_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], str]] = []

    def main(arguments: list[str], prog: str) -> int:
        seen.append((arguments, prog))
        return 7

    monkeypatch.setattr(listen, "main", main)
    arguments = ["m.onnx", "-", "--rate", "16000", "-q", "--watch", "dog", "--once", "--help"]
    assert CliRunner().invoke(app, ["listen", *arguments]).exit_code == 7
    assert seen == [(arguments, "frami-edge listen")]


def test_help_and_errors_are_the_runtime_s(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["listen", "--help"])
    assert shown.exit_code == 0
    assert "frami-edge listen student.onnx" in shown.stdout
    assert "--min-level DB" in shown.stdout
    failed = CliRunner().invoke(app, ["listen", str(tmp_path / "none.onnx"), "a.wav"])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: ")
    assert "\nfix: " in failed.stderr
