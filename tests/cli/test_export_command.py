"""`frami-edge export`, from a checkpoint on disk to files that the runtime loads."""

import functools
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from kit import LABELS, QUICK, SPEC, settled, tones
from typer.testing import CliRunner

from frami_edge.bank import Bank, BankIndex, Clips
from frami_edge.checkpoint import Card, load_checkpoint, save_checkpoint
from frami_edge.cli import app
from frami_edge.config import StudentArch
from frami_edge.journey import calibration_mels
from frami_edge.models import StudentNet
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export import options
from frami_edge_export.web import ORT_FILES
from frami_edge_runtime.classifier import Classifier

TEACHER = "c" * 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights, BatchNorm statistics of procedural clips, as after a distillation."""
    torch.manual_seed(0)
    arch = StudentArch(channels=(8, 12, 16), time_kernels=(3, 3, 3), out_channels=12)
    student = settled(StudentNet(arch, SPEC.n_mels, len(LABELS)))
    with torch.no_grad():
        student.head.weight.mul_(6)
    path = tmp_path_factory.mktemp("run") / "student.safetensors"
    card = Card(
        kind="student", arch=arch.model_dump(mode="json"), mel=SPEC.to_dict(), labels=LABELS,
        teacher_sha256=TEACHER, recipe={"bank": {"clip_s": 0.4}}, licence="Apache-2.0",
    )  # fmt: skip
    save_checkpoint(path, student, card)
    return path


def make_bank(folder, sources=("inversion", "procedural"), teacher=TEACHER):
    index = BankIndex(
        mel=SPEC.to_dict(), frames=40, labels=LABELS, teacher_sha256=teacher, config={}, seed=0
    )
    bank = Bank.create(folder, index)
    for i, source in enumerate(sources):
        mels = procedural_mels(SPEC, 90, 40, seed=i)
        bank.append(source, Clips(mels, torch.zeros(90).long(), torch.zeros(90, 2)), 0, 1)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_a_student_and_its_bank_become_files_that_run(checkpoint, call, tmp_path):
    out, page, bank = tmp_path / "my models", tmp_path / "page", make_bank(tmp_path / "bank")
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
    program, *words = shlex.split(line.removeprefix("next: "))
    assert (program, words[0]) == ("frami-edge-listen", str(out / found["recommended"]))
    assert "passed" in call("listen", *words).stdout


EVERY = {"inversion": 3, "procedural": 1, "translator": 0}


@pytest.mark.parametrize(
    ("learned", "sources", "clips"),
    [
        (EVERY, (*EVERY, "white_noise"), {"inversion": 30, "procedural": 10}),
        (None, ("inversion", "procedural", "white_noise"), {"inversion": 20, "procedural": 20}),
        ({"white_noise": 1}, ("white_noise",), {"white_noise": 40}),
        (None, None, {"procedural": 40}),
    ],
)
def test_int8_is_calibrated_on_what_the_student_learned_from(
    checkpoint, tmp_path, learned, sources, clips
):
    student = load_checkpoint(checkpoint, "student")
    recipe = {"bank": {"clip_s": 0.4} | ({"sources": learned} if learned else {})}
    student = replace(student, card=student.card.model_copy(update={"recipe": recipe}))
    bank = Bank.open(make_bank(tmp_path / "bank", sources)) if sources else None
    found = calibration_mels(student, bank, count=40)
    assert found.clips == clips
    assert found.mels.shape == (40, 1, SPEC.n_mels, 40)


def test_a_failed_gate_ends_with_3_and_keeps_the_files(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    harsh = functools.partial(QUICK, parity_tolerance=1e-12)
    monkeypatch.setattr(options, "ExportOptions", harsh)
    result = run(checkpoint, "--out", out, "--json", "--quiet")
    assert result.exit_code == 3
    assert "Gate failed: torch = ONNX fp32" in result.stderr
    found = json.loads(result.stdout)
    assert (found["recommended"], found["ok"]) == ("", False)
    assert (out / "student.fp32.onnx").is_file()


def test_accuracy_on_a_folder_of_real_clips(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    clips, out = tones(tmp_path / "clips", train=1, test=3), tmp_path / "out"
    result = run(checkpoint, "--out", out, "--data", f"folder:{clips}", "--json")
    assert result.exit_code == 0, result.output
    assert "not known whether the teacher was trained on fold test" in result.stderr
    found = json.loads(result.stdout)["artifacts"]
    device = Classifier(out / "student.fp32.onnx")

    def accuracy():
        files = [*(clips / "test").glob("*/*.wav")]
        answers = [device.classify(soundfile.read(p, dtype="float32")[0]).label for p in files]
        return np.mean([a == p.parent.name for a, p in zip(answers, files, strict=True)])

    assert found[0]["accuracy"] == pytest.approx(accuracy())
    assert found[1]["accuracy"] is None
    shutil.rmtree(clips / "test" / min(LABELS))  # classes meet the model's by name
    run(checkpoint, "--out", out, "--data", f"folder:{clips / 'test'}", "--fold", "all")
    found = json.loads((out / "export_report.json").read_text())["artifacts"]
    assert found[0]["accuracy"] == pytest.approx(accuracy())


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
def test_wrong_use_is_one_sentence(checkpoint, tmp_path, arguments, said):
    result = run(checkpoint, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "fix:" in result.stderr
    assert not (tmp_path / "out").exists()


def test_other_teachers_and_no_students_are_refused(checkpoint, tmp_path):
    bank = make_bank(tmp_path / "other", teacher="d" * 64)
    result = run(checkpoint, "--int8", "--bank", bank, "--out", tmp_path / "out")
    assert (result.exit_code, "made with another teacher" in result.stderr) == (1, True)
    result = run(tmp_path / "none.safetensors", "--out", tmp_path / "out")
    assert (result.exit_code, "There is no checkpoint" in result.stderr) == (1, True)
    (tmp_path / "student.onnx").write_bytes(b"any")
    result = run(tmp_path / "student.onnx", "--out", tmp_path / "out")
    assert (result.exit_code, "a checkpoint is needed here" in result.stderr) == (1, True)
