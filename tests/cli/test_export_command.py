"""`frami-edge export`, from a checkpoint on disk to files that the runtime loads."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from typer.testing import CliRunner, Result

from frami_edge.bank import Bank, BankIndex, Clips
from frami_edge.checkpoint import Card, load_checkpoint, save_checkpoint
from frami_edge.cli import app
from frami_edge.config import StudentArch
from frami_edge.journey import calibration_mels
from frami_edge.models import StudentNet
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export import options
from frami_edge_export.options import ExportOptions
from frami_edge_export.web import ORT_FILES
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=24, mean=-6.0, std=3.0
)
ARCH = StudentArch(channels=(8, 12, 16), time_kernels=(3, 3, 3), out_channels=12)
LABELS = ("bell", "dog", "rain")
TEACHER = "c" * 64


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
        recipe={"bank": {"clip_s": 0.4}},
        licence="Apache-2.0",
    )
    save_checkpoint(path, student, card)
    return path


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(ExportOptions, bench_budget_s=0.02, bench_rounds=15)
    monkeypatch.setattr(options, "ExportOptions", quick)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return make_bank(tmp_path / "bank", TEACHER)


def make_bank(
    folder: Path, teacher: str, sources: Sequence[str] = ("inversion", "procedural")
) -> Path:
    index = BankIndex(
        mel=SPEC.to_dict(), frames=40, labels=LABELS, teacher_sha256=teacher, config={}, seed=0
    )
    bank = Bank.create(folder, index)
    for i, source in enumerate(sources):
        mels = procedural_mels(SPEC, 90, 40, seed=i)
        bank.append(source, Clips(mels, torch.zeros(90).long(), torch.zeros(90, 3)), 0, 1)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_a_student_and_its_bank_become_files_that_run(
    checkpoint: Path, bank: Path, tmp_path: Path
) -> None:
    out, page = tmp_path / "my models", tmp_path / "page"
    for name in ORT_FILES:
        (tmp_path / name).write_text("onnxruntime-web")
    result = run(
        checkpoint, "--int8", "--bank", bank, "--out", out, "--samples", 120, "--json",
        "--min-agreement", 0.5, "--portable", "--with-frontend", "--tensorrt", "--web", page,
        "--ort-web", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [a["name"] for a in found["artifacts"]] == [
        "fp32", "model", "int8.cpu", "int8.trt", "int8.portable", "fp16", "int8.trt.fp16", "wave",
    ]  # fmt: skip
    assert all((out / a["path"]).stat().st_size == a["bytes"] for a in found["artifacts"])
    assert found["calibration"]["source"] == "bank"
    assert "120 synthetic clips from the bank (60 inversion, 60 procedural)" in result.stderr
    assert found["calibration"]["samples"] + found["calibration"]["holdout"] == 120
    assert {"name", "value", "limit", "passed"} <= set(found["gates"][0])
    info = Classifier(out / found["recommended"]).info
    assert (info.labels, info.mel, info.teacher_sha256) == (LABELS, SPEC, TEACHER)
    assert (out / "plots" / "export.png").stat().st_size > 10_000
    assert f"**Use `{found['recommended']}`.**" in (out / "README.md").read_text()
    facts = json.loads((page / "model.json").read_text())
    assert (facts["labels"], facts["on"]) == (list(LABELS), found["thresholds"]["on"])
    assert f"python -m http.server --directory {found['page']}" in result.stderr
    assert found["engines"] is None
    assert "No engines were built" in result.stderr
    (line,) = (li for li in result.stderr.splitlines() if li.startswith("next: "))
    assert shlex.split(line)[3] == str(out / found["recommended"])
    again = run("--tensorrt", out)
    assert again.exit_code == 1
    assert "TensorRT" in again.stderr
    assert "fix:" in again.stderr


def test_without_a_bank_int8_is_calibrated_on_procedural_clips(
    checkpoint: Path, tmp_path: Path
) -> None:
    result = run(checkpoint, "--int8", "--out", tmp_path / "out", "--samples", 64)
    assert result.exit_code in (0, 3), result.output
    assert "64 synthetic clips from the procedural (64 procedural)" in result.stderr
    assert "Verdicts" in result.stdout


EVERY = {"inversion": 3, "procedural": 1, "translator": 0}


@pytest.mark.parametrize(
    ("learned", "sources", "clips"),
    [
        (EVERY, (*EVERY, "white_noise"), {"inversion": 30, "procedural": 10}),
        (None, ("inversion", "procedural", "white_noise"), {"inversion": 20, "procedural": 20}),
        ({"white_noise": 1}, ("white_noise",), {"white_noise": 40}),
    ],
)
def test_int8_is_calibrated_on_what_the_student_learned_from(
    checkpoint: Path, tmp_path: Path, learned: Any, sources: Sequence[str], clips: dict[str, int]
) -> None:
    student = load_checkpoint(checkpoint, "student")
    recipe = {"bank": {"clip_s": 0.4, "sources": learned}} if learned else {}
    student = replace(student, card=student.card.model_copy(update={"recipe": recipe}))
    bank = make_bank(tmp_path / "bank", TEACHER, sources)
    found = calibration_mels(student, Bank.open(bank), count=40)
    assert found.clips == clips
    assert found.mels.shape == (40, 1, SPEC.n_mels, 40)


def test_a_failed_gate_ends_with_3_and_keeps_the_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    harsh = functools.partial(
        ExportOptions, parity_tolerance=1e-12, bench_budget_s=0.02, bench_rounds=15
    )
    monkeypatch.setattr(options, "ExportOptions", harsh)
    result = run(checkpoint, "--out", out, "--json", "--quiet")
    assert result.exit_code == 3
    assert "Gate failed: torch = ONNX fp32" in result.stderr
    found = json.loads(result.stdout)
    assert (found["recommended"], found["ok"]) == ("", False)
    assert (out / "student.fp32.onnx").is_file()


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
    assert "not known whether the teacher was trained on fold test" in result.stderr
    found = json.loads(result.stdout)
    device = Classifier(out / "student.fp32.onnx")
    right = [
        device.classify(soundfile.read(p, dtype="float32")[0]).label == p.parent.name
        for p in (tmp_path / "clips" / "test").glob("*/*.wav")
    ]
    assert len(right) == 9
    assert found["artifacts"][0]["accuracy"] == pytest.approx(np.mean(right))
    assert found["artifacts"][1]["accuracy"] is None
    (tmp_path / "clips" / "test").rename(tmp_path / "some")
    shutil.rmtree(tmp_path / "some" / min(LABELS))  # classes meet the model's by name
    run(checkpoint, "--out", out, "--data", f"folder:{tmp_path / 'some'}", "--fold", "all")
    found = json.loads((out / "export_report.json").read_text())
    right = [
        device.classify(soundfile.read(p, dtype="float32")[0]).label == p.parent.name
        for p in (tmp_path / "some").glob("*/*.wav")
    ]
    assert found["artifacts"][0]["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--portable"], "int8 is off"),
        (["--bank", "b"], "There is no bank in b"),
        (["--fold", "1"], "need data"),
        (["--seconds", "1"], "--tensorrt is off"),
        (["--tensorrt", "--seconds", "3:1"], "is not MIN:OPT:MAX"),
        (["--int8", "--bank", "nowhere"], "There is no bank in nowhere"),
        (["--ort-web", "x"], "--web is off"),
        (["--web", "page", "--ort-web", "nowhere"], "nowhere does not contain ort."),
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


def test_other_teachers_and_no_students_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "other", teacher="d" * 64)
    result = run(checkpoint, "--int8", "--bank", bank, "--out", tmp_path / "out")
    assert (result.exit_code, "made with another teacher" in result.stderr) == (1, True)
    result = run(tmp_path / "none.safetensors", "--out", tmp_path / "out")
    assert (result.exit_code, "There is no checkpoint" in result.stderr) == (1, True)
    (tmp_path / "student.onnx").write_bytes(b"any")
    result = run(tmp_path / "student.onnx", "--out", tmp_path / "out")
    assert (result.exit_code, "a checkpoint is needed here" in result.stderr) == (1, True)
