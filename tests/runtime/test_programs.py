"""The runtime's examples, and the programs of its README and of docs/JETPACK.md, run as printed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from frami_edge_runtime import listen
from frami_edge_runtime.backends import BACKENDS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "runtime" / "examples"
README = (ROOT / "runtime" / "README.md").read_text(encoding="utf-8")
JETPACK = (ROOT / "docs" / "JETPACK.md").read_text(encoding="utf-8")
MICROPHONE = (
    "out.write(random.randbytes(48_000)); out.flush(); time.sleep(0.5); "
    "sys.exit('arecord: pcm_read:1: unplugged')"
)


@pytest.fixture
def run(model_path, fake_arecord):
    """`run(*arguments)`: Python's output beside student.onnx, or its errors."""

    def start(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=model_path.parent,
            env=fake_arecord(MICROPHONE), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return (done.stderr if code else done.stdout).strip()

    return start


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("file.py student.onnx street.wav street.wav --on .25 --window .4", r"(\S.*\n?){2,}"),
        ("several_streams.py student.onnx street.wav street.wav", r"(street.wav  .* s  .*\n?){8,}"),
        (
            "jetson_engine.py student.engine student.onnx street.wav",
            r"without the engine: .*\non cpu: (.*\n)+p99 of a step: .*",
        ),
        (
            "microphone.py student.onnx --device plughw:1 --seconds 3",
            r"listening to ALSA device plughw:1 .*\n(.*\n)*.* start (.*\n)+0 samples lost, .*",
        ),
    ],
)
def test_examples(run, wav_path, line, expected):
    name, *arguments = line.split()
    found = run(EXAMPLES / name, *arguments)
    assert re.fullmatch(expected, found), found
    if name == "file.py":
        lines = found.splitlines()  # nothing stays from file to file
        assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_the_example_that_restarts_gives_the_events_of_one_run(run, wav_path):
    def events(state, *seconds):
        arguments = (EXAMPLES / "save_and_restore.py", "student.onnx", wav_path, state)
        return [line for s in seconds for line in run(*arguments, "--seconds", s).splitlines()]

    in_one_go = events("one", 3.7)
    assert len(in_one_go) >= 2
    assert events("parts", 0.9, 1.9, 0.9) == in_one_go


@pytest.mark.parametrize(
    ("word", "code", "expected"),
    [
        ("clf.classify", 0, r"[a-z ]+(\n\d\.\d\d-\d\.\d\d s  [a-z ]+  [01]\.\d\d){9}"),
        ("Microphone(", 1, r"(.*\n)+.*AudioError: arecord stopped recording: .*unplugged.*"),
        ("clf.streams(8", 0, r"(microphone [0-7]: .*\n?)+"),
        ("merge_gap_s=", 0, r"start (.*\n)+end .*"),
    ],
)
def test_the_readme_s_programs(run, word, code, expected):
    (text,) = (p for p in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in p)
    found = run("-c", text.replace("student.engine", "student.onnx"), code=code)
    assert re.fullmatch(expected, found), found


def test_the_jetpack_page_reports_the_fallback_and_names_every_backend(run, model_path):
    model_path.rename(model_path.with_name("student.int8.cpu.onnx"))
    (text,) = re.findall(r"```python\n(.*?)```", JETPACK, re.DOTALL)
    found = run("-c", text)
    assert "Cannot read the engine student.int8.engine" in found
    assert "cpu because" in found
    assert set(re.findall(r"^\| `([a-z-]+)` \|", JETPACK, re.MULTILINE)) == set(BACKENDS)


def test_the_service_and_the_container_start_the_program_as_it_is(tmp_path):
    folder = ROOT / "examples" / "listen"
    unit = (folder / "frami-edge-listen.service").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *arguments = shlex.split(line)
    assert listen.parse(arguments, program).mqtt == "homeassistant.local"
    container = (folder / "Containerfile").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(ENTRYPOINT|CMD) (.*)$", container, re.MULTILINE))
    program, *arguments = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    assert listen.parse(arguments, program).source == "mic"
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze: THE UNIT IS NOT VERIFIED HERE")
    copy = tmp_path / "frami-edge-listen.service"
    copy.write_text(unit.replace("/opt/listen/bin/frami-edge-listen", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
