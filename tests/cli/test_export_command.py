"""`frami-edge export`, from a checkpoint on disk to files that the runtime loads."""

from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from torch import nn
from typer.testing import CliRunner, Result

import frami_edge_export
from frami_edge.bank import Bank, BankIndex, Clips
from frami_edge.checkpoint import Card, save_checkpoint
from frami_edge.cli import app
from frami_edge.config import StudentArch
from frami_edge.models import StudentNet
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export.options import ExportOptions
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=24, mean=-6.0, std=3.0
)
ARCH = StudentArch(channels=(8, 12, 16), time_kernels=(3, 3, 3), out_channels=12)
LABELS = ("bell", "dog", "rain")
TEACHER = "c" * 64
FILES = ["README.md", "calib.json", "export_report.json", "plots", "student.fp32.onnx",
         "student.int8.cpu.onnx", "student.int8.trt.onnx", "student.model.onnx"]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, BatchNorm statistics of procedural clips, as after a distillation."""
    torch.manual_seed(0)
    student = StudentNet(ARCH, SPEC.n_mels, len(LABELS))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        student(procedural_mels(SPEC, 64, 40, seed=5))
        student.head.weight.mul_(6)  # type: ignore[operator]
    path = tmp_path_factory.mktemp("run") / "student.safetensors"
    card = Card(
        kind="student",
        arch=ARCH.model_dump(mode="json"),
        mel=SPEC.to_dict(),
        labels=LABELS,
        teacher_sha256=TEACHER,
        recipe={"bank": {"frames": 40}},
        licence="Apache-2.0",
    )
    save_checkpoint(path, student, card)
    return path


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(ExportOptions, bench_budget_s=0.02, bench_rounds=15)
    monkeypatch.setattr(frami_edge_export, "ExportOptions", quick)


def make_bank(folder: Path, teacher: str = TEACHER) -> Path:
    index = BankIndex(
        mel=SPEC.to_dict(), frames=40, labels=LABELS, teacher_sha256=teacher, config={}, seed=0
    )
    bank = Bank.create(folder, index)
    for i, source in enumerate(("inversion", "procedural")):
        mels = procedural_mels(SPEC, 90, 40, seed=i)
        bank.append(source, Clips(mels, torch.zeros(90).long(), torch.zeros(90, 3)), 0, 1)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_a_student_and_its_bank_become_files_that_run(checkpoint: Path, tmp_path: Path) -> None:
    bank, out = make_bank(tmp_path / "bank"), tmp_path / "out"
    result = run(
        checkpoint, "--int8", "--bank", bank, "--out", out, "--samples", 120, "--json",
        "--min-agreement", 0.5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert [a["name"] for a in found["artifacts"]] == ["fp32", "model", "int8.cpu", "int8.trt"]
    assert found["calibration"]["source"] == "bank"
    assert found["calibration_clips"] == {"inversion": 60, "procedural": 60}
    assert found["calibration"]["samples"] + found["calibration"]["holdout"] == 120
    assert found["recommended"] in FILES
    assert {"name", "value", "limit", "passed"} <= set(found["gates"][0])
    info = Classifier(out / found["recommended"]).info
    assert (info.labels, info.mel, info.teacher_sha256) == (LABELS, SPEC, TEACHER)
    assert info.student_sha256 == found["student"]["sha256"]
    card = (out / "README.md").read_text()
    assert f"**Use `{found['recommended']}`.**" in card
    assert "| the student heard | no recording |" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "Classifier(" in code


def test_every_file_at_once(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        checkpoint, "--int8", "--bank", make_bank(tmp_path / "bank"), "--out", out, "--samples", 60,
        "--portable", "--with-frontend", "--tensorrt", "--min-agreement", 0, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = {a["name"] for a in found["artifacts"]}
    assert names == {
        "fp32", "model", "int8.cpu", "int8.trt", "int8.portable",
        "fp16", "int8.trt.fp16", "wave",
    }  # fmt: skip
    assert all((out / a["path"]).stat().st_size == a["bytes"] for a in found["artifacts"])
    assert (out / "plots" / "export.png").stat().st_size > 10_000
    assert found["engines"] is None
    assert "TensorRT" in found["engines_missing"]
    assert "frami-edge export --tensorrt FOLDER" in result.stderr
    wave = onnxruntime.InferenceSession(out / "student.wave.onnx")
    x = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
    logits = wave.run(None, {"waveform": x[None]})[0][0]
    expected = Classifier(out / "student.fp32.onnx").classify(x).logits
    assert np.abs(logits - expected).max() <= 1e-4


def test_the_next_command_can_be_pasted(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "my models"
    result = run(checkpoint, "--out", out)
    assert result.exit_code == 0, result.stderr
    (line,) = (li for li in result.stderr.splitlines() if li.startswith("next: "))
    assert shlex.split(line)[3] == str(out / "student.fp32.onnx")


def test_a_folder_without_tensorrt_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(checkpoint, "--out", out, "--quiet").exit_code == 0
    before = sorted(p.name for p in out.iterdir())
    result = run("--tensorrt", out)
    assert result.exit_code == 1
    assert "TensorRT" in result.stderr
    assert "fix:" in result.stderr
    assert sorted(p.name for p in out.iterdir()) == before


def test_without_a_bank_the_clips_are_made_and_that_is_said(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(checkpoint, "--int8", "--out", out, "--samples", 64, "--min-agreement", 0.5)
    assert result.exit_code == 0, result.output
    assert "64 procedural clips of 40 mel frames" in result.stderr
    assert "no bank was given" in result.stderr
    assert "student.int8.cpu.onnx" in result.stdout
    assert "next: frami-edge evaluate" in result.stderr
    assert json.loads((out / "export_report.json").read_text())["calibration"]["source"] == (
        "procedural"
    )


def test_a_failed_gate_ends_with_3_and_keeps_the_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    harsh = functools.partial(
        ExportOptions, parity_tolerance=1e-12, bench_budget_s=0.02, bench_rounds=15
    )
    monkeypatch.setattr(frami_edge_export, "ExportOptions", harsh)
    result = run(checkpoint, "--out", out, "--json", "--quiet")
    assert result.exit_code == 3
    assert "Gate failed: torch = ONNX fp32" in result.stderr
    found = json.loads(result.stdout)
    assert found["recommended"] == ""
    assert not found["ok"]
    assert (out / "student.fp32.onnx").is_file()
    assert "Run it" not in (out / "README.md").read_text()


def test_accuracy_on_a_folder_of_real_clips(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for label in LABELS:
        for i in range(4):
            path = tmp_path / "clips" / ("test" if i else "train") / label / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(100 + 2500 * i), 8000)
    out = tmp_path / "out"
    result = run(checkpoint, "--out", out, "--data", f"folder:{tmp_path / 'clips'}", "--json")
    assert result.exit_code == 0, result.output
    assert "Nobody checked that the teacher held out fold test" in result.stderr
    found = json.loads(result.stdout)
    assert (found["data"]["fold"], found["data"]["clips"]) == ("test", 9)
    device = Classifier(out / "student.fp32.onnx")
    right = [
        device.classify(soundfile.read(p, dtype="float32")[0]).label == p.parent.name
        for p in (tmp_path / "clips" / "test").glob("*/*.wav")
    ]
    assert found["artifacts"][0]["accuracy"] == pytest.approx(np.mean(right))
    assert found["artifacts"][1]["accuracy"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bank", "b"], "--int8 was not given"),
        (["--fold", "1"], "need --data"),
        (["--teacher", "t"], "--int8 was not given"),
        (["--int8", "--teacher", "t", "--bank", "b"], "exclude each other"),
        (["--seconds", "1"], "--tensorrt was not given"),
        (["--tensorrt", "--seconds", "3:1"], "is not MIN:OPT:MAX"),
        (["--int8", "--bank", "nowhere"], "There is no bank in nowhere"),
    ],
)
def test_wrong_use_is_one_sentence(
    checkpoint: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = run(checkpoint, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "fix:" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_bank_of_another_teacher_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank", teacher="d" * 64)
    result = run(checkpoint, "--int8", "--bank", bank, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "made with another teacher" in result.stderr


def test_what_is_no_student_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path / "none.safetensors", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "There is no checkpoint" in result.stderr
