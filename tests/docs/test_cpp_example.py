"""examples/cpp: built as its page says, and its answers are those of the Python runtime.

Needs a compiler, CMake, and ONNX Runtime's headers: `ORT_ROOT`, a folder with include/ and perhaps
lib/, or where CMake finds them. Where ORT_ROOT has no library, the one of the Python package is
taken.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import given
import numpy as np
import onnxruntime
import pytest
from docs_pages import ROOT

from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.classifier import Classifier

SOURCE = ROOT / "examples" / "cpp"
PLACES = ("/usr", "/usr/local", os.environ.get("ORT_ROOT") or "/opt/onnxruntime")


def headers() -> Path | None:
    for place in reversed(PLACES):
        for inner in ("include", "include/onnxruntime", "include/onnxruntime/core/session"):
            if (Path(place) / inner / "onnxruntime_cxx_api.h").is_file():
                return Path(place) / inner
    return None


def library() -> Path | None:
    root = Path(os.environ.get("ORT_ROOT") or "/opt/onnxruntime")
    for folder in (root / "lib", root / "lib64", Path(onnxruntime.__file__).parent / "capi"):
        found = sorted(folder.glob("libonnxruntime.so*"))
        if found:
            return found[-1].resolve()
    return None


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return given.exported(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include, shared = headers(), library()
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("the C++ example is not built: no cmake or no C++ compiler")
    if include is None or shared is None:
        pytest.skip("the C++ example is not built: no ONNX Runtime headers; set ORT_ROOT")
    folder = tmp_path_factory.mktemp("cpp")
    # The library of the Python package has no link without a version beside it.
    (folder / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(shared)
    for words in (
        ["-S", SOURCE, "-B", folder / "build", f"-DORT_INCLUDE={include}",
         f"-DORT_LIBRARY={folder / 'lib' / 'libonnxruntime.so'}"],
        ["--build", folder / "build"],
    ):  # fmt: skip
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr
    return folder / "build" / "classify"


def answer(program: Path, *arguments: object, **more: object) -> list[tuple[float, str, float]]:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, timeout=60, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^([\d.]+) s  (.+)  ([\d.]+)$", done.stdout.decode(), re.MULTILINE)
    return [(float(t), label, float(score)) for t, label, score in rows]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.01, 0.4, 3.3])
def test_a_clip_gets_pythons_answer(
    program: Path, export: Path, tmp_path: Path, seconds: float
) -> None:
    path = given.clip_wav(tmp_path / "clip.wav", seconds)
    ((_, label, score),) = answer(program, export / "student.wave.onnx", path)
    with AudioFile(path) as file:
        samples = np.concatenate(list(file.blocks()))
    expected = Classifier(export / "student.fp32.onnx").classify(samples)
    assert label == expected.label
    assert score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.slow
def test_a_pipe_is_heard_twice_a_second(program: Path, export: Path) -> None:
    samples = given.noise(2.6)
    rows = answer(program, export / "student.wave.onnx", "-", input=samples.tobytes())
    assert [t for t, _, _ in rows] == [0.5, 1.0, 1.5, 2.0, 2.5]
    clf = Classifier(export / "student.fp32.onnx")
    expected = clf.classify(samples[int(1.5 * given.RATE) : int(2.5 * given.RATE)])
    assert rows[-1][1:] == (expected.label, pytest.approx(expected.score, abs=1e-4))


@pytest.mark.slow
def test_what_it_cannot_read_is_said(program: Path, export: Path, tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_bytes(b"RIFF")
    other = given.clip_wav(tmp_path / "clip.wav")
    for model, clip, words in (
        ("student.wave.onnx", tmp_path / "no.wav", "is no WAV file"),
        ("student.fp32.onnx", other, "export with --with-frontend"),
        ("none.onnx", other, "none.onnx"),
    ):
        done = subprocess.run(
            [program, export / model, clip], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert words in done.stderr
    assert subprocess.run([program], capture_output=True).returncode == 2
