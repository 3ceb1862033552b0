from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from frami_edge.cli import app
from frami_edge_runtime.doctor import Check

GOOD = Check("torch", "ok", "2.14.1", group="packages", needed=True)
HINT = Check("microphone", "absent", "none", "Plug one in.", group="sound")
BAD = Check("torchaudio", "fail", "another CUDA", "pip install x", group="packages", needed=True)


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`doctor(checks, *arguments)`: the command, with these findings."""

    def call(checks: list[Check], *arguments: str) -> Any:
        monkeypatch.setattr("frami_edge_runtime.doctor.examine", lambda probes, machine: checks)
        return CliRunner().invoke(app, ["doctor", *arguments])

    return call


def test_ready(doctor: Any) -> None:
    done = doctor([GOOD, HINT])
    assert done.exit_code == 0, done.output
    assert "torch       2.14.1" in done.stdout
    assert "how: Plug one in." in done.stdout
    assert done.stderr.endswith("Ready for training.\nnext: frami-edge quickstart\n")


def test_a_needed_check_that_fails_is_exit_code_3(doctor: Any) -> None:
    done = doctor([GOOD, BAD, HINT])
    assert done.exit_code == 3
    assert "fix: pip install x" in done.stdout
    assert "Not ready for training: torchaudio." in done.stderr
    assert "fix: torchaudio: pip install x" in done.stderr


def test_json_is_one_object_also_when_it_fails(doctor: Any) -> None:
    done = doctor([GOOD, BAD], "--json")
    assert done.exit_code == 3
    told = json.loads(done.stdout)
    assert told["ready"] is False
    assert told["checks"][1] == {
        "name": "torchaudio", "status": "fail", "found": "another CUDA", "fix": "pip install x",
        "group": "packages", "needed": True,
    }  # fmt: skip


def test_markup_in_what_was_found_is_shown_as_it_is(doctor: Any) -> None:
    mic = Check("microphone", "ok", "[red]USB[/red] mic", group="sound")
    assert "[red]USB[/red] mic" in doctor([mic]).stdout


def test_help_names_the_exit_code_and_the_devices_own_doctor() -> None:
    text = " ".join(CliRunner().invoke(app, ["doctor", "--help"]).stdout.split())
    assert "frami_edge_runtime.doctor" in text
    assert "$ frami-edge doctor runs/export" in text


def test_on_this_machine_with_a_hanging_driver(tmp_path: Path) -> None:
    """The real thing: nvidia-smi sleeps, and the rest is told all the same, in seconds."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\nsleep 60\n")
    smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "frami_edge", "doctor", "--json"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert time.monotonic() - begun < 100
    lines = {line["name"]: line for line in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stderr
    assert lines["GPU"]["status"] == "warn"
    assert "the driver hangs" in lines["GPU"]["found"]
    assert lines["torch"]["status"] == lines["torchaudio"]["status"] == "ok"
    assert "Ready for training; " in done.stderr
