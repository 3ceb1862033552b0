"""The programs in the runtime's README run as they are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "runtime" / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(model_path: Path, tmp_path: Path) -> Path:
    """student.onnx, and an arecord that records 3 s of noise and is then unplugged."""
    arecord = tmp_path / "bin" / "arecord"
    arecord.parent.mkdir()
    arecord.write_text(
        f"#!{sys.executable}\nimport random, sys\nrandom.seed(0)\n"
        "sys.stdout.buffer.write(random.randbytes(48_000))\nsys.exit('arecord: unplugged')\n"
    )
    arecord.chmod(0o755)
    (tmp_path / "sounddevice.py").write_text("raise ImportError")
    assert model_path.parent == tmp_path
    return tmp_path


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": str(folder / "bin"), "PYTHONPATH": path},
    )  # fmt: skip


def program(word: str) -> str:
    (found,) = (p for p in PROGRAMS if word in p)
    return str(found)


def test_no_program_goes_untested() -> None:
    assert len(PROGRAMS) == 4
    assert all(len(line) <= 100 for p in PROGRAMS for line in p.splitlines())


def test_the_ten_lines_run(folder: Path) -> None:
    done = run(program("clf.classify"), folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 9
    assert re.fullmatch(r"\d\.\d\d-\d\.\d\d s  [a-z ]+  [01]\.\d\d", lines[1])


def test_the_program_for_a_pi_listens_until_the_microphone_goes(folder: Path) -> None:
    done = run(program("Microphone("), folder)
    assert done.returncode == 1
    assert "AudioError: arecord stopped recording: unplugged" in done.stderr
    assert re.match(r"start [a-z ]+ \d\.\d s 0\.\d\d\n", done.stdout)


def test_the_program_for_a_jetson_runs_on_what_is_here(folder: Path) -> None:
    text = program("clf.streams(8")
    assert text.count('"student.engine"') == 1
    done = run(text.replace("student.engine", "student.onnx"), folder)
    assert (done.returncode, done.stderr) == (0, "")
    heard = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert heard == {f"microphone {i}" for i in range(8)}


def test_the_program_with_events_tells_starts_and_ends(folder: Path) -> None:
    done = run(program("merge_gap_s="), folder)
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert kinds.count("start") == kinds.count("end") >= 1


def test_the_table_of_records_names_every_field(folder: Path) -> None:
    arecord = folder / "bin" / "arecord"
    arecord.write_text(
        f"#!{sys.executable}\nimport random, sys, time\nout = sys.stdout.buffer\n"
        "random.seed(0); out.write(random.randbytes(32_000)); out.flush(); time.sleep(0.3)\n"
        "print('overrun!!! (at least 5 ms long)', file=sys.stderr, flush=True); time.sleep(0.3)\n"
        "out.write(random.randbytes(32_000)); out.flush(); time.sleep(30)"
    )
    listen = "from frami_edge_runtime.listen import main; main(['student.onnx', '--json', '--on', "
    done = run(f"{listen} '0.25', '--duration', '3'])", folder)
    records = {r["type"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert set(records) == {"start", "result", "event", "gap", "summary"}
    for kind, record in records.items():
        (row,) = (line for line in README.splitlines() if line.startswith(f"| `{kind}` |"))
        # Values are explained in brackets.
        named = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))) - {kind}
        assert named == set(record) - {"type"}
