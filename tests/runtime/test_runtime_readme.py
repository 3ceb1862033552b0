"""The programs in the runtime's README run as they are printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "runtime" / "README.md").read_text(encoding="utf-8")
Run = Callable[..., subprocess.CompletedProcess[str]]
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


NOISE = "out.write(random.randbytes(48_000)); sys.exit('arecord: unplugged')"


@pytest.fixture
def run(
    model_path: Path, fake_arecord: Callable[[str], dict[str, str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run(program, script)`, beside student.onnx; its arecord runs the script."""

    def start(program: str, script: str = NOISE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=model_path.parent,
            env=fake_arecord(script),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return start


def program(word: str) -> str:
    (found,) = (p for p in PROGRAMS if word in p)
    return str(found)


def test_no_program_goes_untested() -> None:
    assert len(PROGRAMS) == 4
    assert all(len(line) <= 100 for p in PROGRAMS for line in p.splitlines())


def test_the_ten_lines_run(run: Run) -> None:
    done = run(program("clf.classify"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 9
    assert re.fullmatch(r"\d\.\d\d-\d\.\d\d s  [a-z ]+  [01]\.\d\d", lines[1])


def test_the_program_for_a_pi_listens_until_the_microphone_goes(run: Run) -> None:
    done = run(program("Microphone("))
    assert done.returncode == 1
    assert "AudioError: arecord stopped recording: unplugged" in done.stderr
    assert re.match(r"start [a-z ]+ \d\.\d s 0\.\d\d\n", done.stdout)


def test_the_program_for_a_jetson_runs_on_what_is_here(run: Run) -> None:
    text = program("clf.streams(8")
    assert text.count('"student.engine"') == 1
    done = run(text.replace("student.engine", "student.onnx"))
    assert (done.returncode, done.stderr) == (0, "")
    heard = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert heard == {f"microphone {i}" for i in range(8)}


def test_the_program_with_events_tells_starts_and_ends(run: Run) -> None:
    done = run(program("merge_gap_s="))
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert kinds.count("start") == kinds.count("end") >= 1


def test_the_table_of_records_names_every_field(run: Run) -> None:
    listen = "from frami_edge_runtime.listen import main; main(['student.onnx', '--json', '--on', "
    done = run(
        f"{listen} '0.25', '--duration', '3'])",
        "out.write(random.randbytes(32_000)); out.flush(); time.sleep(0.3)\n"
        "print('overrun!!! (at least 5 ms long)', file=sys.stderr, flush=True); time.sleep(0.3)\n"
        "out.write(random.randbytes(32_000)); out.flush(); time.sleep(30)",
    )
    records = {r["type"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert set(records) == {"start", "result", "event", "gap", "summary"}
    for kind, record in records.items():
        (row,) = (line for line in README.splitlines() if line.startswith(f"| `{kind}` |"))
        # Values are explained in brackets.
        named = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))) - {kind}
        assert named == set(record) - {"type"}
