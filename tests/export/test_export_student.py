"""An export as a whole: files, metadata, report, card, answers, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_kit import FAST, MEL, TinyStudent
from torch import nn

from frami_edge_export.errors import CalibrationError, ExportError
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts, sha256
from frami_edge_export.lint import lint_tensorrt
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Head, cpu_session, run_trunk, with_context
from frami_edge_export.report import ExportReport, markdown_card
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.modelfile import Context, read_head, read_model_info

NAMES = ["fp32", "model", "int8.cpu", "int8.trt", "int8.portable"]
FILES = sorted(["calib.json", "export_report.json", *(f"kit.{name}.onnx" for name in NAMES)])


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, student: TinyStudent, calibration: np.ndarray
) -> tuple[Path, ExportReport]:
    folder = tmp_path_factory.mktemp("export")
    facts = StudentFacts(MEL, tuple("abcdef"), "a" * 64, "b" * 64, "Apache-2.0")
    report = export_student(
        student,
        facts,
        folder,
        name="kit",
        int8=True,
        calibration=calibration,
        source="bank",
        portable=True,
        options=FAST,
        evaluate=lambda path: 0.9 if "int8" in str(path) else 0.91,
    )
    return folder, report


def test_every_file_and_no_other(exported: tuple[Path, ExportReport]) -> None:
    folder, report = exported
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert report.ok
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / "kit.fp32.onnx").stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_streaming_file_describes_itself(
    exported: tuple[Path, ExportReport], student: TinyStudent
) -> None:
    for name, precision in (("kit.fp32.onnx", "fp32"), ("kit.int8.cpu.onnx", "int8")):
        session = cpu_session(str(exported[0] / name))
        info = read_model_info(session)
        assert info.mel == MEL
        assert info.labels == tuple("abcdef")
        assert (info.receptive_field, info.stride, info.channels) == (11, 2, 24)
        assert info.context == Context(5, 5, 0.0)
        assert info.pooling.eps == student.pool_eps
        assert info.precision == precision
        assert info.teacher_sha256 == "a" * 64
        assert info.student_sha256 == "b" * 64
        assert torch.__version__.startswith(info.versions["torch"])
        assert info.created.endswith("+00:00")
        head = cpu_session(read_head(session))
        pooled = np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)
        expected = student.head(torch.from_numpy(pooled)).detach().numpy()
        np.testing.assert_allclose(head.run(["logits"], {"pooled": pooled})[0], expected, atol=1e-5)


def test_int8_says_how_it_was_made(exported: tuple[Path, ExportReport]) -> None:
    folder, report = exported
    table = json.loads((folder / "calib.json").read_text())
    info = read_model_info(cpu_session(str(folder / "kit.int8.cpu.onnx")))
    assert info.quantisation is not None
    assert info.calibration is not None
    assert report.quantisation is not None
    assert report.calibration is not None
    assert info.quantisation["flavour"] == report.quantisation["flavour"]
    assert info.calibration["sha256"] == table["samples_sha256"] == report.calibration.sha256
    assert info.calibration["model_sha256"] == table["model_sha256"]
    assert report.calibration.source == table["source"] == "bank"
    assert report.calibration.samples + report.calibration.holdout == 160
    assert all(low <= high for low, high in table["ranges"].values())


def test_the_classifier_needs_nothing_else(
    exported: tuple[Path, ExportReport], student: TinyStudent, calibration: np.ndarray
) -> None:
    session = cpu_session(str(exported[0] / "kit.model.onnx"))
    with torch.inference_mode():
        expected = student(torch.from_numpy(calibration[:8])).numpy()
    found = session.run(["logits"], {"mel": calibration[:8]})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # It cannot be taken for a streaming file.
    assert "frami.model" not in session.get_modelmeta().custom_metadata_map
    assert "frami.classifier" in session.get_modelmeta().custom_metadata_map


def test_trunk_pooling_and_head_are_the_student(
    exported: tuple[Path, ExportReport], student: TinyStudent, calibration: np.ndarray
) -> None:
    session = cpu_session(str(exported[0] / "kit.fp32.onnx"))
    weight, bias = (t.detach().double().numpy() for t in student.collapsed_head())
    frames = run_trunk(session, with_context(calibration[:8], student.context))
    with torch.inference_mode():
        expected = student(torch.from_numpy(calibration[:8])).numpy()
    np.testing.assert_allclose(Head(weight, bias, 1e-5)(frames), expected, atol=1e-5)


def test_the_report_keeps_its_contract(exported: tuple[Path, ExportReport]) -> None:
    folder, report = exported
    values = json.loads((folder / "export_report.json").read_text())
    assert values == json.loads(json.dumps(report.to_dict()))
    assert [a["name"] for a in values["artifacts"]] == NAMES
    needed = "name path kind precision bytes p50_ms p95_ms max_abs_difference agreement sqnr_db"
    needed += " accuracy lint verdict"
    for artifact in values["artifacts"]:
        assert set(needed.split()) <= set(artifact)
        data = (folder / artifact["path"]).read_bytes()
        assert artifact["bytes"] == len(data)
        assert artifact["sha256"] == sha256(data)
        assert 0 < artifact["p50_ms"] <= artifact["p95_ms"]
        assert artifact["verdict"]
    assert {"source", "samples", "sha256"} <= set(values["calibration"])
    assert all({"name", "value", "limit", "passed"} <= set(g) for g in values["gates"])
    assert values["recommended"].startswith("kit.")
    assert len(values["layers"]) == 5


def test_accuracy_is_the_callers(exported: tuple[Path, ExportReport]) -> None:
    report = exported[1]
    assert report.artifact("fp32").accuracy == 0.91
    assert report.artifact("int8.cpu").accuracy == 0.9
    assert report.artifact("model").accuracy is None
    gate = next(g for g in report.gates if g.name == "accuracy lost by int8.cpu")
    assert gate.value == pytest.approx(0.01)
    assert gate.passed


def test_the_card_shows_every_file_and_gate(exported: tuple[Path, ExportReport]) -> None:
    report = exported[1]
    card = markdown_card(report)
    for artifact in report.artifacts:
        assert f"`{artifact.path}`" in card
        assert artifact.verdict in card
    for gate in report.gates:
        assert gate.name in card
    assert f"**Use `{report.recommended}`.**" in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in table)


@pytest.mark.usefixtures("ready_graphs")
def test_the_readme_example_runs(
    student: TinyStudent,
    calibration: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = Path(__file__).resolve().parents[2] / "export" / "README.md"
    code = readme.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {"student": student, "mels": calibration})
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == [
        "calib.json",
        "export_report.json",
        "student.fp32.onnx",
        "student.int8.cpu.onnx",
        "student.int8.trt.onnx",
        "student.model.onnx",
    ]
    assert "**Use `student." in capsys.readouterr().out


def test_the_runtime_answers_as_the_export_was_judged(
    exported: tuple[Path, ExportReport], student: TinyStudent
) -> None:
    seconds = np.arange(2 * MEL.sample_rate) / MEL.sample_rate
    samples = 0.3 * np.sin(2 * np.pi * 700 * seconds * (1 + 0.1 * seconds)).astype(np.float32)
    mel = log_mel(samples, MEL).T.copy()[None, None]
    weight, bias = (t.detach().double().numpy() for t in student.collapsed_head())
    head = Head(weight, bias, student.pool_eps)
    with torch.inference_mode():
        expected = {"fp32": student(torch.from_numpy(mel))[0].numpy()}
    int8 = cpu_session(str(exported[0] / "kit.int8.cpu.onnx"))
    expected["int8.cpu"] = head(run_trunk(int8, with_context(mel, student.context)))[0]
    for name, logits in expected.items():
        result = Classifier(exported[0] / f"kit.{name}.onnx").classify(samples)
        assert result.index == logits.argmax()
        np.testing.assert_allclose(result.logits, logits, atol=2e-5, err_msg=name)


def test_parity_metadata_and_bytes_are_as_a_device_needs_them(
    exported: tuple[Path, ExportReport],
) -> None:
    folder, report = exported
    for name in ("fp32", "model"):
        artifact = report.artifact(name)
        assert artifact.max_abs_difference is not None
        assert artifact.max_abs_difference <= 1e-5
        assert artifact.agreement == 1.0
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        assert model.ir_version <= 10
        assert {o.domain: o.version for o in model.opset_import} == {"": 20}
        assert model.producer_name == "frami-edge-export"
    checkout = str(Path(__file__).resolve().parents[2]).encode()
    for path in folder.iterdir():
        data = path.read_bytes()
        for trace in (checkout, b"site-packages", str(Path.home()).encode() + b"/", b"/tmp/"):
            assert trace not in data, path.name


def test_the_files_for_tensorrt_are_clean_and_keep_their_answers(
    exported: tuple[Path, ExportReport],
) -> None:
    folder, report = exported
    for name in ("int8.trt", "int8.portable"):
        artifact = report.artifact(name)
        assert artifact.lint == "clean"
        assert lint_tensorrt(folder / artifact.path) == ()
        assert artifact.agreement is not None
        assert artifact.agreement >= 0.98
        assert artifact.sqnr_db is not None
        assert artifact.sqnr_db > 25
        assert artifact.bytes < report.artifact("fp32").bytes
        assert artifact.verdict
        assert Classifier(folder / artifact.path).info.precision == "int8"
    assert report.artifact("int8.trt").verdict.startswith("for TensorRT; on this CPU ")
    assert report.artifact("fp32").lint == report.artifact("model").lint == "clean"
    assert report.artifact("int8.cpu").lint.endswith("findings")
    assert report.artifact("int8.cpu").findings[0].keys() == {"rule", "node", "message", "fix"}
    assert {g.artifact for g in report.gates} == {"", "int8.cpu", "int8.trt", "int8.portable"}
    assert any("same class as int8.cpu on" in note for note in report.notes)


def test_the_report_says_how_int8_does_at_other_levels(
    exported: tuple[Path, ExportReport],
) -> None:
    report = exported[1]
    assert report.quantisation is not None
    levels = report.quantisation["levels"]
    assert levels["level_db"] == 12.0
    assert levels["agreement"] > 0.9
    assert "12 dB louder or softer" in markdown_card(report)


def export(student: Any, folder: Path, facts: StudentFacts, **changes: Any) -> ExportReport:
    arguments: dict[str, Any] = {"int8": False, "calibration": None, "source": "", "options": FAST}
    return export_student(student, facts, folder, **{**arguments, **changes})


@pytest.mark.usefixtures("ready_graphs")
def test_fp32_alone_needs_no_calibration(
    student: TinyStudent, facts: StudentFacts, tmp_path: Path
) -> None:
    (tmp_path / "student.int8.cpu.onnx").write_bytes(b"of yesterday")
    report = export(student, tmp_path, facts)
    assert [a.name for a in report.artifacts] == ["fp32", "model"]
    assert report.recommended == "student.fp32.onnx"
    assert report.calibration is None
    assert report.notes == (
        "student.int8.cpu.onnx in this folder is from an earlier export, not from this one.",
    )
    assert "int8" not in markdown_card(report).partition("Latency")[0]


@pytest.mark.usefixtures("ready_graphs")
def test_a_bad_set_writes_nothing(
    student: TinyStudent, facts: StudentFacts, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).random((64, 1, MEL.n_mels, 40), dtype=np.float32)
    for calibration in (None, noise):
        with pytest.raises(CalibrationError):
            export(student, tmp_path / "out", facts, int8=True, calibration=calibration)
    with pytest.raises(ExportError, match="portable"):
        export(student, tmp_path / "out", facts, portable=True)
    with pytest.raises(ExportError, match=r"evaluate gave 91.0 for student.fp32.onnx"):
        export(student, tmp_path / "out", facts, evaluate=lambda path: 91.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ready_graphs")
def test_a_lost_point_is_a_failed_gate(
    student: TinyStudent, facts: StudentFacts, calibration: np.ndarray, tmp_path: Path
) -> None:
    report = export(
        student, tmp_path, facts, int8=True, calibration=calibration, source="bank",
        evaluate=lambda path: 0.5 if "int8" in str(path) else 0.9,
    )  # fmt: skip
    assert not report.ok
    assert report.recommended == "student.fp32.onnx"
    assert (
        "accuracy lost by int8.cpu is 0.4, above its limit" in report.artifact("int8.cpu").verdict
    )
    assert (tmp_path / "student.int8.cpu.onnx").exists()


@pytest.mark.usefixtures("ready_graphs")
def test_a_full_disk_leaves_the_old_files(
    student: TinyStudent, facts: StudentFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "student.fp32.onnx").write_bytes(b"old")
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="No space left on device") as caught:
        export(student, tmp_path, facts)
    assert "room" in caught.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["student.fp32.onnx"]
    assert (tmp_path / "student.fp32.onnx").read_bytes() == b"old"


@pytest.mark.usefixtures("ready_graphs")
def test_a_folder_that_is_a_file(student: TinyStudent, facts: StudentFacts, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ExportError, match="Cannot write the export to"):
        export(student, tmp_path / "taken", facts)


def set_field(student: TinyStudent, field: int) -> None:
    student.receptive_field, student.context = field, (0, field - 1)


class Padded(TinyStudent):
    """Pads along time: its frames are as many, but not the same, on a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.ZeroPad2d((1, 0, 0, 0)), *self.trunk.children())
        set_field(self, self.receptive_field - 1)


class SqueezeExcite(nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * torch.sigmoid(h.mean(dim=2, keepdim=True))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: set_field(s, 10), "cannot compute|receptive_field 10"),
        (lambda s: setattr(s, "context", (5, 4)), r"A context of 5 \+ 4 mel frames"),
        (lambda s: setattr(s, "context", (11, -1)), r"A context of 11 \+ -1 mel frames"),
        (lambda s: setattr(s, "stride", 3), "stride 3"),
        (lambda s: setattr(s, "channels", 12), r"The head maps \(48, 6\)"),
        (lambda s: s.trunk.append(SqueezeExcite()), "depends on more than its 11 mel frames"),
        (lambda s: delattr(s, "trunk"), "not an exportable student"),
    ],
)
def test_a_student_that_cannot_stream_is_refused(
    student: TinyStudent, facts: StudentFacts, tmp_path: Path, spoil: Any, said: str
) -> None:
    mine = copy.deepcopy(student)
    spoil(mine)
    with pytest.raises(ExportError, match=said):
        export(mine, tmp_path / "out", facts)
    assert not (tmp_path / "out").exists()


def test_padding_along_time_is_refused(facts: StudentFacts, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="depends on more than its 10 mel frames"):
        export(Padded().eval(), tmp_path / "out", facts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ("a", "b")}, "2 labels"),
        ({"labels": ("a",) * 6}, "twice"),
        ({"teacher_sha256": "no"}, "teacher_sha256"),
    ],
)
def test_facts_that_do_not_fit_are_refused(
    student: TinyStudent,
    facts: StudentFacts,
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(FramiEdgeError, match=said):
        export(student, tmp_path / "out", dataclasses.replace(facts, **changes))


def test_a_name_with_a_folder_is_refused(
    student: TinyStudent, facts: StudentFacts, tmp_path: Path
) -> None:
    for name in ("../up", "", "a/b"):
        with pytest.raises(ExportError, match="cannot prefix a file"):
            export(student, tmp_path, facts, name=name)


@pytest.mark.parametrize(
    "wrong", [{"min_agreement": 98}, {"max_range_ratio": 1.0}, {"bench_rounds": 0}, {"chunk_s": 0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=next(iter(wrong))):
        ExportOptions(**wrong)
