"""Every example of the runtime runs as its first lines say, and says what the library says."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from frami_edge_runtime.classifier import Classifier

EXAMPLES = Path(__file__).parents[2] / "runtime" / "examples"
RATE = 8000


@pytest.fixture
def wav_path(clip: np.ndarray, tmp_path: Path) -> Path:
    return write(tmp_path / "a.wav", clip)


def write(path: Path, clip: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((clip * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    return path


def run(name: str, *arguments: object, code: int = 0, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return (done.stdout if code == 0 else done.stderr).splitlines()


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in text for path in EXAMPLES.glob("*.py"))


def test_file(model_path: Path, wav_path: Path, tmp_path: Path) -> None:
    lines = run("file.py", model_path, wav_path, wav_path, "--on", 0.25, "--window", 0.4)
    rows = [line.split("\t") for line in lines]
    assert len(rows) >= 4
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]  # nothing stays from file to file
    for path, t0, t1, _, score in rows:
        assert path == str(wav_path)
        assert 0 <= float(t0) < float(t1) <= 3.76
        assert float(score) >= 0.25
    said = run("file.py", model_path, tmp_path / "none.wav", code=1)
    assert said == [f"{tmp_path / 'none.wav'} does not exist.", "Check the path."]


def test_several_streams(model_path: Path, wav_path: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.wav", np.random.default_rng(1).normal(0, 0.1, 12_345))
    lines = run("several_streams.py", model_path, wav_path, other)
    for path in (wav_path, other):
        stream = Classifier(model_path).stream(RATE, window_s=1.0, hop_s=0.5)
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        last = stream.flush() if (results := stream.push(samples)) else None
        assert last is not None
        assert [line for line in lines if line.startswith(str(path))] == [
            f"{path}  {r.t1:7.2f} s  {r.label}  {r.score:.2f}" for r in [*results, last]
        ]


def test_save_and_restore(model_path: Path, wav_path: Path, tmp_path: Path) -> None:
    def heard(state: str, *seconds: float) -> list[str]:
        return [
            line
            for s in seconds
            for line in run(
                "save_and_restore.py", model_path, wav_path, tmp_path / state, "--seconds", s
            )
        ]

    in_one_go = heard("one", 3.7)
    assert len(in_one_go) >= 2
    assert heard("parts", 0.9, 1.9, 0.9) == in_one_go
    assert sorted(p.name for p in tmp_path.iterdir() if "parts" in p.name) == ["parts"]


def test_jetson_engine(model_path: Path, wav_path: Path, tmp_path: Path) -> None:
    lines = run("jetson_engine.py", tmp_path / "student.engine", model_path, wav_path)
    assert lines[0].startswith("without the engine: ")
    assert lines[1].startswith("on cpu: ")
    assert lines[-1].startswith("p99 of a step: ")
    assert len(lines) > 8


def test_microphone(
    model_path: Path, tmp_path: Path, fake_arecord: Callable[[str], dict[str, str]]
) -> None:
    environment = fake_arecord("out.write(random.randbytes(48_000)); out.flush(); time.sleep(30)")
    arguments = (model_path, "--device", "plughw:1", "--seconds", 3)
    lines = run("microphone.py", *arguments, **environment)
    assert lines[0] == "listening to ALSA device plughw:1 at 8000 Hz"
    assert lines[-1].startswith("0 samples lost, ")
    assert any(" start " in line for line in lines[1:-1])
    said = run("microphone.py", model_path, code=1, **{**environment, "PATH": str(tmp_path)})
    assert said[0].startswith("There is no way to record here")
    assert "pip install" in said[1]
