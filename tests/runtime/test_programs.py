"""The runtime's examples, and the programs of its README and of docs/JETPACK.md, run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stream_kit import write_wav

from frami_edge_runtime.backends import BACKENDS
from frami_edge_runtime.classifier import Classifier

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "runtime" / "examples"
README = (ROOT / "runtime" / "README.md").read_text(encoding="utf-8")
JETPACK = (ROOT / "docs" / "JETPACK.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
RATE = 8000
NOISE = "out.write(random.randbytes(48_000)); out.flush(); time.sleep(0.5); sys.exit('unplugged')"

FakeArecord = Callable[[str], dict[str, str]]
Run = Callable[..., list[str]]


@pytest.fixture
def run(model_path: Path, fake_arecord: FakeArecord) -> Run:
    """`run(*arguments)`: lines of Python's output beside student.onnx, or of its errors."""

    def start(*arguments: object, code: int = 0, microphone: str = NOISE) -> list[str]:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=model_path.parent,
            env=fake_arecord(microphone),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return (done.stderr if code else done.stdout).splitlines()

    return start


def program(word: str) -> str:
    (found,) = (p for p in PROGRAMS if word in p)
    return str(found)


def test_file(run: Run, wav_path: Path) -> None:
    arguments = ("student.onnx", wav_path, wav_path, "--on", 0.25, "--window", 0.4)
    rows = [line.split("\t") for line in run(EXAMPLES / "file.py", *arguments)]
    assert len(rows) >= 4
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]  # nothing stays from file to file
    for path, t0, t1, _, score in rows:
        assert path == str(wav_path)
        assert 0 <= float(t0) < float(t1) <= 3.76
        assert float(score) >= 0.25
    said = run(EXAMPLES / "file.py", "student.onnx", "none.wav", code=1)
    assert said == ["none.wav does not exist.", "Check the path."]


def test_several_streams(run: Run, classifier: Classifier, wav_path: Path, tmp_path: Path) -> None:
    other = write_wav(tmp_path / "b.wav", np.random.default_rng(1).normal(0, 0.1, 12_345))
    lines = run(EXAMPLES / "several_streams.py", "student.onnx", wav_path, other)
    for path in (wav_path, other):
        stream = classifier.stream(RATE, window_s=1.0, hop_s=0.5)
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        results = stream.push(samples)
        last = stream.flush()
        assert last is not None
        assert [line for line in lines if line.startswith(str(path))] == [
            f"{path}  {r.t1:7.2f} s  {r.label}  {r.score:.2f}" for r in [*results, last]
        ]


def test_save_and_restore(run: Run, wav_path: Path) -> None:
    def events(state: str, *seconds: float) -> list[str]:
        arguments = (EXAMPLES / "save_and_restore.py", "student.onnx", wav_path, state)
        return [line for s in seconds for line in run(*arguments, "--seconds", s)]

    in_one_go = events("one", 3.7)
    assert len(in_one_go) >= 2
    assert events("parts", 0.9, 1.9, 0.9) == in_one_go


def test_jetson_engine(run: Run, wav_path: Path) -> None:
    lines = run(EXAMPLES / "jetson_engine.py", "student.engine", "student.onnx", wav_path)
    assert lines[0].startswith("without the engine: ")
    assert lines[1].startswith("on cpu: ")
    assert lines[-1].startswith("p99 of a step: ")


def test_microphone(run: Run) -> None:
    arguments = ("student.onnx", "--device", "plughw:1", "--seconds", 3)
    lines = run(EXAMPLES / "microphone.py", *arguments)
    assert lines[0] == "listening to ALSA device plughw:1 at 8000 Hz"
    assert lines[-1].startswith("0 samples lost, ")
    assert any(" start " in line for line in lines[1:-1])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("clf.classify", r"[a-z ]+(\n\d\.\d\d-\d\.\d\d s  [a-z ]+  [01]\.\d\d){9}"),
        ("clf.streams(8", r"(microphone [0-7]: .*\n?)+"),
        ("merge_gap_s=", r"start (.*\n)+end .*"),
    ],
)
def test_the_readme_s_programs(run: Run, word: str, expected: str) -> None:
    lines = run("-c", program(word).replace("student.engine", "student.onnx"))
    assert re.fullmatch(expected, "\n".join(lines))


def test_the_readme_s_program_for_a_pi_listens_until_the_microphone_goes(run: Run) -> None:
    lines = run("-c", program("Microphone("), code=1)
    assert "AudioError: arecord stopped recording: unplugged" in lines[-1]


def test_the_jetpack_page_reports_the_fallback_and_names_every_backend(
    run: Run, model_path: Path
) -> None:
    os.rename(model_path, model_path.with_name("student.int8.cpu.onnx"))
    (text,) = re.findall(r"```python\n(.*?)```", JETPACK, re.DOTALL)
    said = "\n".join(run("-c", text))
    assert "Cannot read the engine student.int8.engine" in said
    assert "cpu because" in said
    assert set(re.findall(r"^\| `([a-z-]+)` \|", JETPACK, re.MULTILINE)) == set(BACKENDS)
