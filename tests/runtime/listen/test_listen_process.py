"""The listening program as a process: signals, pipes, terminals, full disks, lost samples."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from listen_kit import EASY, PROGRAM, RATE, of, write_wav

ENDLESS = """
import struct, sys, time
out = sys.stdout.buffer
i = 0
while True:
    out.write(struct.pack("<400h", *((k * k * 37) % 9000 - 4500 for k in range(i, i + 400))))
    out.flush(); i += 400; time.sleep(0.02)
"""


def python_path(first: Path) -> str:
    return os.pathsep.join(filter(None, [str(first), os.environ.get("PYTHONPATH")]))


def microphone(folder: Path, script: str = ENDLESS) -> dict[str, str]:
    """An environment whose only microphone is an arecord that runs this script."""
    path = folder / "bin" / "arecord"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    blocked = folder / "blocked" / "sounddevice.py"
    blocked.parent.mkdir()
    blocked.write_text("raise ImportError")
    return {**os.environ, "PATH": str(path.parent), "PYTHONPATH": python_path(blocked.parent)}


def rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What is left to read; `communicate` would miss what `readline` has buffered."""
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        return process.stdout.read(), process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_with_a_summary_and_success(
    model_path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*PROGRAM, str(model_path), *EASY, "--json"], env=microphone(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    records = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(number)
    out, err = rest(process)
    assert process.returncode == 0, err
    records += [json.loads(line) for line in out.splitlines()]
    assert records[-1]["type"] == "summary"
    assert records[-1]["reason"] == "interrupted"
    assert [r["kind"] for r in of(records, "event")].count("start") == [
        r["kind"] for r in of(records, "event")
    ].count("end")
    assert records[0]["source"] == "ALSA device default"
    assert err == ""


def test_a_silent_pipe_can_be_interrupted(model_path: Path) -> None:
    process = subprocess.Popen(
        [*PROGRAM, str(model_path), "-", "--rate", "8000", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = rest(process)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["reason"] == "interrupted"


def test_lost_samples_are_told_and_the_clock_goes_on(model_path: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\nout = sys.stdout.buffer\nout.write(bytes(16000)); out.flush()\n"
        "time.sleep(0.3)\n"
        "print('overrun!!! (at least 500.000 ms long)', file=sys.stderr, flush=True)\n"
        "time.sleep(0.3)\nout.write(bytes(16000)); out.flush(); time.sleep(30)"
    )
    run = subprocess.run(
        [*PROGRAM, str(model_path), *EASY, "--json", "--duration", "2.5"],
        env=microphone(tmp_path, script), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert of(records, "gap") == [{"t": 1.0, "lost": 4000, "lost_s": 0.5}]
    assert [r["gap"] for r in of(records, "result") if r["gap"]] == [4000]
    (summary,) = of(records, "summary")
    assert (summary["audio_s"], summary["lost"], summary["gaps"]) == (2.5, 4000, 1)


def test_a_reader_that_goes_away_ends_it_quietly(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    write_wav(path, np.zeros(RATE * 600))
    process = subprocess.Popen(
        [*PROGRAM, str(model_path), str(path), "--json", *EASY],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_on_a_terminal_it_is_live_and_leaves_it_clean(model_path: Path, wav_path: Path) -> None:
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, str(model_path), str(wav_path), *EASY],
        stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65_536):
            shown += data
    except OSError:
        pass  # how Linux ends a terminal
    os.close(ours)
    assert process.wait(30) == 0
    text = shown.decode()
    assert "windows of 0.40 s every 0.10 s" in text
    assert "began at" in text
    assert "heard in" in text.splitlines()[-1]
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is shown again


def test_starting_stays_light(model_path: Path, wav_path: Path) -> None:
    code = (
        "import sys; from frami_edge_runtime.listen.cli import main; "
        f"main([{str(model_path)!r}, {str(wav_path)!r}, '-q']); "
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "onnxruntime" in loaded
    heavy = {"rich", "soundfile", "sounddevice", "soxr", "torch", "scipy", "typer", "pydantic"}
    assert not loaded & heavy


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is played by /dev/full")
def test_a_full_disk_under_stdout_is_one_sentence(model_path: Path, wav_path: Path) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*PROGRAM, model_path, wav_path, *EASY], stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=60,
        )  # fmt: skip
    assert run.returncode == 1
    errors = [line for line in run.stderr.splitlines() if line.startswith(("error:", "fix:"))]
    assert errors == [
        "error: The output could not be written: No space left on device.",
        "fix: Free some space, or send it elsewhere.",
    ]
    assert "Traceback" not in run.stderr
    assert "Exception" not in run.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_do_not_end_it(model_path: Path, wav_path: Path, closed: str) -> None:
    line = shlex.join([*PROGRAM, str(model_path), str(wav_path), *EASY])
    run = subprocess.run(f"{line} {closed}", shell=True, capture_output=True, timeout=60)
    assert run.returncode == 0
    assert b"error" not in run.stderr
