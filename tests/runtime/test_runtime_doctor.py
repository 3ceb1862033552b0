from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frami_edge_runtime.doctor import (
    Answer,
    Check,
    Children,
    Machine,
    Probe,
    as_text,
    examine,
    main,
    marks,
    runtime_probes,
    verdict,
)


def test_this_machine_is_ready() -> None:
    begun = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "frami_edge_runtime.doctor", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["ready"] is True
    lines = {line["name"]: line for line in told["checks"]}
    assert lines["onnxruntime"]["status"] == "ok"
    assert {"name", "status", "found", "fix", "group", "needed"} == set(lines["Python"])
    assert time.monotonic() - begun < 20


def test_text_goes_to_stdout_and_the_verdict_to_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(command: object, limit_s: float) -> Answer:
        return Answer(None, trouble="python3: not found")

    bare = Machine(root=tmp_path, run=run, versions=lambda name: None, environ={})
    assert main([], bare) == 3
    out, err = capsys.readouterr()
    assert "fix: pip install numpy\n" in out
    assert err == "Not ready for listening: NumPy, onnxruntime.\n"
    assert "Not ready" not in out


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from frami_edge_runtime.doctor.__main__ import main; main(['--json']); "
        "print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(run.stdout.partition("LOADED")[2].split())
    assert "numpy" in loaded
    assert not loaded & {"onnxruntime", "tensorrt", "sounddevice", "soundfile", "torch", "soxr"}


def test_a_child_that_hangs_is_ended_and_its_words_are_kept() -> None:
    begun = time.monotonic()
    told = Machine().ask("x", "say(first=1)\nimport time\ntime.sleep(60)", 1.5)
    assert time.monotonic() - begun < 6
    assert told["first"] == 1
    assert "did not end within 1.5 s" in told.trouble


def test_a_child_that_crashes_is_named() -> None:
    told = Machine().ask("x", "say(a=2)\nimport os\nos.kill(os.getpid(), 11)", 20)
    assert told["a"] == 2
    assert told.trouble.endswith("crashed with SIGSEGV")


def test_a_child_that_raises_tells_its_error() -> None:
    told = Machine().ask("x", "raise OSError('no libnvinfer\\nmore')", 20)
    assert (told.error, told.trouble) == ("OSError", "OSError: no libnvinfer")


def test_grandchildren_that_hold_the_pipe_do_not_hold_us() -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '30']); print('said', flush=True)"
    begun = time.monotonic()
    answer = Children().run([sys.executable, "-c", code], 1.0)
    assert time.monotonic() - begun < 8
    assert "said" in answer.out


def test_a_command_that_is_not_there() -> None:
    answer = Machine().command("frami-edge-no-such-command")
    assert answer.missing
    assert answer.code is None


def test_a_file_of_the_current_folder_is_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('fooled')")
    monkeypatch.chdir(tmp_path)
    told = Machine().ask("x", "say(ok=1)", 20)
    assert (told["ok"], told.trouble) == (1, "")


def test_probes_that_hang_or_raise_are_lines(tmp_path: Path) -> None:
    def hangs(machine: Machine) -> list[Check]:
        time.sleep(5)
        return []

    def raises(machine: Machine) -> list[Check]:
        raise RuntimeError("first line\nsecond")

    def fine(machine: Machine) -> list[Check]:
        return [Check("fine", "ok", "yes")]

    begun = time.monotonic()
    lines = examine(
        [
            Probe("a", "one", hangs, limit_s=0.3, needed=True),
            Probe("b", "one", raises),
            Probe("c", "two", fine),
        ],
        Machine(root=tmp_path),
    )
    assert time.monotonic() - begun < 3
    assert [(line.name, line.status, line.group) for line in lines] == [
        ("a", "fail", "one"), ("b", "warn", "one"), ("fine", "ok", "two"),
    ]  # fmt: skip
    assert lines[0].blocks
    assert lines[1].found == "could not be looked at: RuntimeError: first line"


def test_children_are_killed_when_the_doctor_ends(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    def slow(machine: Machine) -> list[Check]:
        code = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
        machine.ask("slow", code, 50)
        return []

    examine([Probe("slow", "x", slow, limit_s=1.5)], Machine())
    pid = int(mark.read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the child lives on")


def test_a_finding_without_a_fix_is_refused() -> None:
    with pytest.raises(ValueError, match="without a fix"):
        Check("x", "warn", "broken")


def test_marks_that_an_encoding_lacks() -> None:
    assert marks("utf-8")["ok"] == "✔"
    assert marks("ascii")["fail"] == marks(None)["fail"] == marks("latin-1")["fail"] == "XX"
    text = as_text([Check("a", "fail", "b", "c", group="g")], "ascii")
    assert text == "g\n  XX a  b\n    fix: c\n"


def test_the_verdict_counts() -> None:
    good = Check("a", "ok", "x", needed=True)
    warn = Check("b", "warn", "x", "y")
    assert verdict([good], "work") == "Ready for work."
    assert verdict([good, warn, warn], "work") == "Ready for work; 2 lines with a fix."
    bad = Check("c", "fail", "x", "y", needed=True)
    assert verdict([good, bad], "work") == "Not ready for work: c."


def test_every_probe_has_a_limit() -> None:
    probes = runtime_probes([Path("x.engine")])
    assert len({probe.name for probe in probes}) == len(probes)
    assert all(0 < probe.limit_s <= 20 for probe in probes)
