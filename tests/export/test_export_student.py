"""An export as a whole: its files, their metadata, the report, the card and the answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_kit import FAST, MEL, TinyStudent

import frami_edge_export
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts
from frami_edge_export.parity import Head, cpu_session, run_trunk, with_context
from frami_edge_export.report import ExportReport, markdown_card
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.modelfile import Context, read_head, read_model_info

FILES = [
    "calib.json", "export_report.json", "kit.fp32.onnx", "kit.int8.cpu.onnx", "kit.int8.trt.onnx",
    "kit.model.onnx",
]  # fmt: skip


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


def test_no_local_path_leaves_the_house(exported: tuple[Path, ExportReport]) -> None:
    checkout = str(Path(__file__).resolve().parents[2]).encode()
    for path in exported[0].iterdir():
        data = path.read_bytes()
        for trace in (checkout, b"site-packages", str(Path.home()).encode() + b"/", b"/tmp/"):
            assert trace not in data, path.name


def test_the_report_keeps_its_contract(exported: tuple[Path, ExportReport]) -> None:
    folder, report = exported
    values = json.loads((folder / "export_report.json").read_text())
    assert values == json.loads(json.dumps(report.to_dict()))
    assert [a["name"] for a in values["artifacts"]] == ["fp32", "model", "int8.cpu", "int8.trt"]
    needed = {
        "name", "path", "kind", "precision", "bytes", "p50_ms", "p95_ms", "max_abs_difference",
        "agreement", "sqnr_db", "accuracy", "lint", "verdict",
    }  # fmt: skip
    for artifact in values["artifacts"]:
        assert needed <= set(artifact)
        data = (folder / artifact["path"]).read_bytes()
        assert artifact["bytes"] == len(data)
        assert artifact["sha256"] == frami_edge_export.files.sha256(data)
        assert 0 < artifact["p50_ms"] <= artifact["p95_ms"]
        assert artifact["verdict"]
    assert {"source", "samples", "sha256"} <= set(values["calibration"])
    assert all({"name", "value", "limit", "passed"} <= set(g) for g in values["gates"])
    assert values["recommended"] in {"kit.fp32.onnx", "kit.int8.cpu.onnx"}
    assert len(values["layers"]) == 5


def test_parity_is_within_the_bar(exported: tuple[Path, ExportReport]) -> None:
    for name in ("fp32", "model"):
        artifact = exported[1].artifact(name)
        assert artifact.max_abs_difference is not None
        assert artifact.max_abs_difference <= 1e-5
        assert artifact.agreement == 1.0


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


def test_a_device_can_load_it(exported: tuple[Path, ExportReport]) -> None:
    for path in exported[0].glob("*.onnx"):
        model = onnx.load(path)
        assert model.ir_version <= 10
        assert max(o.version for o in model.opset_import) <= 20
        assert {o.domain for o in model.opset_import} == {""}
        assert model.producer_name == "frami-edge-export"


def test_the_public_api_is_what_it_says() -> None:
    for name in frami_edge_export.__all__:
        assert hasattr(frami_edge_export, name)
    assert sorted(frami_edge_export.__all__) == frami_edge_export.__all__


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
