"""`frami-edge quickstart`, shortened to seconds: all of its steps, none of its quality."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from typer.testing import CliRunner

from frami_edge import quickstart
from frami_edge.checkpoint import DIGITS_TEACHER, Teacher, load_checkpoint, parameters
from frami_edge.cli import app
from frami_edge.data.clips import Clip
from frami_edge.data.store import Features
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_runtime.classifier import Classifier

TINY = (
    "distill.steps=40",  # fewer leave BatchNorm statistics that int8 rightly refuses
    "distill.batch_size=16",
    "bank.procedural_clips=64",
    "bank.control_clips=64",
    "bank.inversion={steps: 3, burn_in: 1, batch_size: 16}",
    "bank.translator={steps: 3, burn_in: 1, batch_size: 16}",
    "student={channels: [8, 16, 16], time_kernels: [3, 3, 3], out_channels: 64}",
)


def run(out, *more):
    tiny = [part for change in TINY for part in ("--set", change)]
    arguments = ["quickstart", "--no-fetch", "--out", out, "--device", "cpu", *tiny, *more]
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.slow
def test_without_data_there_are_all_figures_but_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "SYNTHETIC_TEST_CLIPS", 48)
    folder = tmp_path / "run"
    result = run(folder, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    student, teacher = figures["student"], load_checkpoint(DIGITS_TEACHER, "teacher")
    assert (teacher.card.trained_on.data, teacher.card.trained_on.test_fold) == ("fsdd", "test")
    assert figures["teacher"] == {"accuracy": None, "parameters": parameters(teacher.model)}
    assert (student["accuracy"], figures["int8"]["accuracy"]) == (None, None)
    for share in (student["agreement"], figures["controls"]["noise"]["agreement"]):
        assert 0 <= share <= 1
    assert figures["stream"]["max_abs_difference"] < 1e-4
    assert figures["stream"]["real_time_factor"] > 0
    assert "synthetic clips that neither student was trained on" in result.stderr
    assert set(figures["seconds"]) == {"invert", "distill", "control", "export", "total"}
    for picture in figures["plots"].values():
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "quickstart.json").read_text())["student"] == student
    opened = load_checkpoint(folder / "student.safetensors", "student")
    assert opened.card.teacher_sha256 == teacher.sha256
    file = folder / "export" / "student.int8.cpu.onnx"
    assert file.stat().st_size == figures["int8"]["bytes"]
    assert Classifier(file).info.labels == teacher.labels
    table = " ".join(str(quickstart.summary(figures)).split())
    for text in (
        "student (data-free)",
        "control: 6 steps on white noise",
        "90 % sure of (no FSDD",
    ):
        assert text in table
    again = run(folder, "--json")
    assert again.exit_code == 1
    assert "already holds a finished run" in again.stderr


def test_with_data_it_scores_on_the_official_test_split(tmp_path, monkeypatch):
    """The real loader needs all files of FSDD; here thirty clips replace its test split."""

    def clips(teacher, root):
        assert root == tmp_path
        found, mels = [], []
        for i, samples in enumerate(ProceduralAudio(teacher.sample_rate, 0.6).clips(30, seed=1)):
            path = tmp_path / f"{i}.wav"
            soundfile.write(path, samples, teacher.sample_rate)
            found.append(Clip(path, i % 10, "test", path.name))
            mels.append(torch.randn(teacher.mel.n_mels, 40 + i % 3))
        labels = torch.tensor([c.label for c in found])
        return Features(mels, labels, found, [""] * 30, [], "0" * 64, teacher.mel)

    monkeypatch.setattr(quickstart, "real_clips", clips)
    teacher = load_checkpoint(DIGITS_TEACHER, "teacher")
    assert isinstance(teacher, Teacher)
    tests = quickstart.real_tests(teacher, tmp_path)
    assert tests.what == "30 real clips, the official FSDD test split"
    assert len(tests.samples) == 10 * int(0.6 * teacher.sample_rate)
    accuracy, agreement = tests.score(tests.teacher_NK)
    assert agreement == 1
    hits = (tests.teacher_NK.argmax(1) == tests.labels_N).float()
    assert accuracy == pytest.approx(float(hits.mean()))


def test_mistakes_are_found_before_any_work(tmp_path):
    (tmp_path / "sounds").mkdir()
    for options, words in (
        (("--set", "distill.step=3"), "did you mean 'steps'?"),
        (("--set", "bank.sources={dreams: 1}"), "unknown source dreams"),
        (("--data-root", tmp_path / "sounds"), "fix: "),
    ):
        result = run(tmp_path / "run", *options)
        assert result.exit_code == 1, result.output
        assert words in result.stderr
    assert not (tmp_path / "run").exists()
