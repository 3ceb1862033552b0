"""An export as a whole: files, metadata, report, card, answers, and what is refused."""

import copy
import dataclasses
import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_kit import FAST, MEL
from torch import nn

from frami_edge_export import exporter
from frami_edge_export.errors import CalibrationError, ExportError
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts, sha256
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import cpu_session, run_trunk
from frami_edge_export.report import markdown_card
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.modelfile import Context, read_head, read_model_info

NAMES = ["fp32", "model", "int8.cpu", "int8.trt", "int8.portable", "fp16", "int8.trt.fp16", "wave"]
FACTS = StudentFacts(MEL, tuple("abcdef"), "a" * 64, "b" * 64, "Apache-2.0")
ACCURACY = {"fp32": 0.91, "int8.cpu": 0.9, "int8.portable": 0.5}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, student, calibration):
    folder = tmp_path_factory.mktemp("export")
    report = export_int8(
        student, folder, calibration, portable=True, half=True, waveform=True,
        evaluate=lambda path: ACCURACY.get(Path(path).name[4:-5], 0.9),
    )  # fmt: skip
    return folder, report


def test_the_files_load_on_a_device_and_hold_no_local_path(exported):
    files = sorted(path.name for path in exported[0].iterdir())
    models = [f"kit.{name}.onnx" for name in NAMES]
    assert files == sorted(["calib.json", "export_report.json", *models])
    umask = os.umask(0)
    os.umask(umask)
    checkout = str(Path(__file__).resolve().parents[2]).encode()
    for path in exported[0].iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        data = path.read_bytes()
        for trace in (checkout, b"site-packages", str(Path.home()).encode() + b"/", b"/tmp/"):
            assert trace not in data, path.name
        if path.suffix == ".onnx":
            model = onnx.load(path)
            assert model.ir_version <= 10
            assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
            assert model.producer_name == "frami-edge-export"


def test_the_streaming_files_describe_themselves(exported, student):
    for name, precision in (("fp32", "fp32"), ("int8.cpu", "int8"), ("int8.trt.fp16", "int8")):
        session = cpu_session(str(exported[0] / f"kit.{name}.onnx"))
        info = read_model_info(session)
        assert (info.mel, info.labels, info.precision) == (MEL, tuple("abcdef"), precision)
        assert (info.receptive_field, info.stride, info.channels) == (11, 2, 24)
        assert (info.context, info.pooling.eps) == (Context(5, 5, 0.0), student.pool_eps)
        assert (info.teacher_sha256, info.student_sha256) == ("a" * 64, "b" * 64)
        assert torch.__version__.startswith(info.versions["torch"])
        assert info.created == ""  # no clock: two exports are equal files
        head = cpu_session(read_head(session))
        pooled = np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)
        expected = student.head(torch.from_numpy(pooled)).detach().numpy()
        np.testing.assert_allclose(head.run(["logits"], {"pooled": pooled})[0], expected, atol=1e-5)
        golden = info.golden
        assert len(json.dumps(golden)) < 4000
    for name in ("fp32", "int8.cpu", "int8.portable"):
        assert Classifier(exported[0] / f"kit.{name}.onnx").selftest()
    classifier = cpu_session(str(exported[0] / "kit.model.onnx")).get_modelmeta()
    assert set(classifier.custom_metadata_map) == {"frami.classifier"}  # no streaming file


def test_one_calibration_table_for_all_int8_files(exported):
    folder, report = exported
    table = json.loads((folder / "calib.json").read_text())
    assert report.quantisation is not None
    assert report.calibration.source == table["source"] == "bank"
    assert report.calibration.samples + report.calibration.holdout == 160
    assert all(low <= high for low, high in table["ranges"].values())
    for name in ("int8.cpu", "int8.trt", "int8.portable"):
        info = read_model_info(cpu_session(str(folder / f"kit.{name}.onnx")))
        assert info.calibration["sha256"] == table["samples_sha256"] == report.calibration.sha256
        assert info.calibration["model_sha256"] == table["model_sha256"]
        assert info.quantisation is not None
        if name == "int8.cpu":
            assert info.quantisation["flavour"] == report.quantisation["flavour"]


def test_the_report_keeps_its_contract(exported):
    folder, report = exported
    values = json.loads((folder / "export_report.json").read_text())
    assert values == json.loads(json.dumps(report.to_dict()))
    assert [a["name"] for a in values["artifacts"]] == NAMES
    for artifact in values["artifacts"]:
        data = (folder / artifact["path"]).read_bytes()
        assert (artifact["bytes"], artifact["sha256"]) == (len(data), sha256(data))
        assert artifact["verdict"]
        assert artifact["lint"]
        if "fp16" not in artifact["name"]:
            assert 0 < artifact["p50_ms"] <= artifact["p95_ms"]
    top = {"schema", "ok", "name", "artifacts", "recommended", "reason", "calibration", "gates"}
    top |= {
        "quantisation", "layers", "bench", "options", "versions", "notes", "stale", "engines",
        "labels", "thresholds",
    }  # fmt: skip
    assert set(values) == top
    assert {"source", "samples", "sha256"} <= set(values["calibration"])
    assert all({"name", "value", "limit", "passed"} <= set(g) for g in values["gates"])
    assert values["recommended"].startswith("kit.")
    assert len(values["layers"]) == 5


def test_every_file_is_measured_and_judged_by_its_own_gates(exported):
    report = exported[1]
    for name in ("fp32", "model"):
        found = report.artifact(name)
        assert found.agreement == 1.0
        assert found.max_abs_difference is not None
        assert found.max_abs_difference <= 1e-5
    for name in ("int8.cpu", "int8.trt", "int8.portable"):
        found = report.artifact(name)
        assert found.agreement is not None
        assert found.agreement >= 0.98
        assert found.sqnr_db is not None
        assert found.sqnr_db > 25
    lints = {a.name: a.lint for a in report.artifacts}
    assert lints.pop("int8.cpu").endswith("findings")
    assert set(lints.values()) == {"clean"}
    assert report.artifact("int8.trt").verdict.startswith("for TensorRT; on this CPU ")
    assert report.artifact("fp32").accuracy == 0.91
    assert report.artifact("model").accuracy is None
    lost = {g.artifact: g for g in report.gates if g.name.startswith("accuracy lost")}
    assert lost["int8.cpu"].value == pytest.approx(0.01)
    assert [name for name, gate in lost.items() if not gate.passed] == ["int8.portable"]
    assert not report.ok
    assert report.recommended != "kit.int8.portable.onnx"
    assert "is 0.41, above its limit" in report.artifact("int8.portable").verdict
    assert report.quantisation["levels"]["agreement"] > 0.9


def export(student, folder, facts, **changes):
    arguments = {"int8": False, "calibration": None, "source": "", "options": FAST}
    return export_student(student, facts, folder, **{**arguments, **changes})


def export_int8(student, folder, calibration, **changes):
    arguments = {"name": "kit", "int8": True, "calibration": calibration, "source": "bank"}
    return export(student, folder, FACTS, **arguments, **changes)


def test_two_exports_are_equal_files(exported, student, calibration, trunk, tmp_path, monkeypatch):
    """Whatever the clock and the stopwatch say; the trunk comes from another run of torch's."""
    monkeypatch.setattr(exporter, "trunk_graph", lambda *_: copy.deepcopy(trunk))
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock) ** 1.5))
    export_int8(student, tmp_path, calibration, portable=True)
    for path in tmp_path.glob("*.onnx"):
        assert path.read_bytes() == (exported[0] / path.name).read_bytes(), path.name
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    export(student, tmp_path, FACTS, name="dated")
    info = read_model_info(cpu_session(str(tmp_path / "dated.fp32.onnx")))
    assert info.created == "2023-11-14T22:13:20+00:00"


def test_a_target_gets_its_files_and_the_same_answers(
    exported, student, calibration, tmp_path, monkeypatch
):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    options = dataclasses.replace(FAST, target="jetson-gpu")
    report = export_int8(student, tmp_path, calibration, options=options)
    assert report.recommended == "kit.fp32.onnx"
    assert "build the engines on the Jetson" in report.reason
    assert {"fp16", "int8.trt", "int8.trt.fp16"} <= {a.name for a in report.artifacts}
    assert report.quantisation["flavour"] == "S8S8"
    ours, theirs = (
        run_trunk(cpu_session(str(folder / "kit.int8.cpu.onnx")), calibration)
        for folder in (tmp_path, exported[0])
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(ExportError, match="target 'avr' is unknown"):
        ExportOptions(target="avr")


def test_fp32_alone_needs_no_calibration(student, facts, tmp_path):
    (tmp_path / "student.int8.cpu.onnx").write_bytes(b"of yesterday")
    report = export(student, tmp_path, facts)
    assert [a.name for a in report.artifacts] == ["fp32", "model"]
    assert (report.recommended, report.calibration) == ("student.fp32.onnx", None)
    assert report.notes == (
        "student.int8.cpu.onnx in this folder is from an earlier export, not from this one.",
    )
    assert "int8" not in markdown_card(report).partition("Latency")[0]


def test_a_failed_export_writes_nothing(student, facts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    noise = np.random.default_rng(0).random((64, 1, MEL.n_mels, 40), dtype=np.float32)
    for calibration in (None, noise):
        with pytest.raises(CalibrationError):
            export(student, out, facts, int8=True, calibration=calibration)
    with pytest.raises(ExportError, match="portable"):
        export(student, out, facts, portable=True)
    with pytest.raises(ExportError, match=r"evaluate gave 91.0 for student.fp32.onnx"):
        export(student, out, facts, evaluate=lambda path: 91.0)
    assert not out.exists()
    out.write_text("a file, no folder")
    with pytest.raises(ExportError, match="Cannot write the export to"):
        export(student, out, facts)
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "student.fp32.onnx").write_bytes(b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="No space left on device") as caught:
        export(student, folder, facts)
    assert "room" in caught.value.fix
    assert [p.name for p in folder.iterdir()] == ["student.fp32.onnx"]
    assert (folder / "student.fp32.onnx").read_bytes() == b"old"


def set_field(student, field):
    student.receptive_field, student.context = field, (0, field - 1)


def pad_along_time(student):
    """As many frames as before, but not the same on a stream."""
    student.trunk = nn.Sequential(nn.ZeroPad2d((1, 0, 0, 0)), *student.trunk.children())
    set_field(student, student.receptive_field - 1)


class SqueezeExcite(nn.Module):
    def forward(self, h):
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
        (pad_along_time, "depends on more than its 10 mel frames"),
        (lambda s: delattr(s, "trunk"), "not an exportable student"),
    ],
)
def test_a_student_that_cannot_stream_is_refused(student, facts, tmp_path, spoil, said):
    mine = copy.deepcopy(student)
    spoil(mine)
    with pytest.raises(ExportError, match=said):
        export(mine, tmp_path / "out", facts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ("a", "b")}, "2 labels"),
        ({"labels": ("a",) * 6}, "labels"),
        ({"teacher_sha256": "no"}, "teacher_sha256"),
        ({"name": "../up"}, "cannot prefix a file"),
        ({"name": ""}, "cannot prefix a file"),
    ],
)
def test_facts_that_do_not_fit_are_refused(student, facts, tmp_path, changes, said):
    name = {"name": changes.pop("name")} if "name" in changes else {}
    with pytest.raises(FramiEdgeError, match=said):
        export(student, tmp_path / "out", dataclasses.replace(facts, **changes), **name)
