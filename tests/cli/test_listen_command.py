"""`frami-edge listen` is the runtime's `frami-edge-listen`."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from frami_edge.cli import app


def test_help_arguments_and_errors_are_the_runtime_s(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["listen", "--help"])
    assert shown.exit_code == 0
    assert "frami-edge listen student.onnx" in shown.stdout
    assert "--min-level DB" in shown.stdout
    arguments = ["listen", str(tmp_path / "none.onnx"), "a.wav", "-q", "--watch", "dog"]
    failed = CliRunner().invoke(app, arguments)
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: ")
    assert "\nfix: " in failed.stderr
