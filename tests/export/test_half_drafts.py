"""The fp16 files of an export: named, judged against fp32, linted, left out where impossible."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_kit import MEL, TinyStudent
from onnx import numpy_helper

from frami_edge_export import half as half_drafts
from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import (
    StudentFacts,
    described,
    frozen_head,
    head_graph,
    model_info,
    serialised,
)
from frami_edge_export.half import add_half, half_graph
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Head, with_context
from frami_edge_export.quantise import TENSORRT, Quantiser
from frami_edge_export.report import Artifact
from frami_edge_export.tensorrt import read_bundle
from frami_edge_runtime.backends import open_backend


@pytest.fixture
def parts(
    student: TinyStudent, trunk: onnx.ModelProto, calibration: np.ndarray
) -> tuple[Bundle, dict[str, object]]:
    info = model_info(student, StudentFacts(mel=MEL, labels=tuple(f"class{k}" for k in range(6))))
    head_bytes = serialised(head_graph(student))
    weight, bias = (t.double().numpy() for t in frozen_head(student))
    mels = with_context(calibration.astype(np.float32), student.context)
    quantiser = Quantiser(trunk, mels[:96])
    int8 = quantiser.graph(TENSORRT, [quantiser.layers[0]])
    bundle = Bundle()
    artifact = Artifact("int8.trt", "s.int8.trt.onnx", "streaming", "int8", 0)
    data = described(int8, info.replace(precision="int8"), head_bytes)
    bundle.add(Draft.of(artifact, data, int8))
    return bundle, {
        "trunk": trunk,
        "head_bytes": head_bytes,
        "head": Head(weight, bias, student.pool_eps),
        "info": info,
        "mels_N1MT": mels[96:],
        "name": "s",
        "options": ExportOptions(),
    }


def test_both_files_pass_their_gates_and_load(parts: tuple[Bundle, dict[str, object]]) -> None:
    bundle, given = parts
    add_half(bundle, **given)
    assert [a.name for a in bundle.artifacts] == ["int8.trt", "fp16", "int8.trt.fp16"]
    assert all(gate.passed for gate in bundle.gates), bundle.gates
    assert {gate.artifact for gate in bundle.gates} == {"fp16", "int8.trt.fp16"}
    for artifact, precision in zip(bundle.artifacts[1:], ("fp16", "int8"), strict=True):
        assert artifact.lint == "clean", artifact.findings
        assert (artifact.precision, artifact.purpose) == (precision, "TensorRT")
        assert artifact.sqnr_db is not None
        backend = open_backend(bundle.blobs[artifact.name], "cpu")
        assert backend.info.precision == precision
        backend.close()
    assert bundle.blobs["int8.trt.fp16"] != bundle.blobs["int8.trt"]


def test_what_half_cannot_hold_is_left_out_with_a_note(
    parts: tuple[Bundle, dict[str, object]], trunk: onnx.ModelProto
) -> None:
    bundle, given = parts
    huge = copy.deepcopy(trunk)
    weight = next(t for t in huge.graph.initializer if len(t.dims) == 4)
    scaled = numpy_helper.to_array(weight) * np.float32(1e6)
    weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
    add_half(bundle, **{**given, "trunk": huge})
    assert "fp16" not in {a.name for a in bundle.artifacts}
    assert "There is no fp16 file" in bundle.notes[0]
    assert weight.name in bundle.notes[0]


def test_a_gate_fails_where_the_numbers_differ(
    parts: tuple[Bundle, dict[str, object]],
    trunk: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, given = parts
    other = copy.deepcopy(trunk)
    weight = next(t for t in other.graph.initializer if len(t.dims) == 4)
    halved = numpy_helper.to_array(weight) * np.float32(0.5)
    weight.CopyFrom(numpy_helper.from_array(halved, weight.name))
    monkeypatch.setattr(half_drafts, "half_graph", lambda _: half_graph(other))
    add_half(bundle, **given)
    failed = {gate.name for gate in bundle.gates if not gate.passed}
    assert "fp16 difference from fp32" in failed


@pytest.mark.usefixtures("ready_graphs")
def test_an_export_with_half_files_is_a_bundle_for_tensorrt(
    student: TinyStudent, facts: StudentFacts, calibration: np.ndarray, tmp_path: Path
) -> None:
    report = export_student(
        student, facts, tmp_path, name="s", int8=True, half=True, calibration=calibration,
        source="test", options=ExportOptions(bench_budget_s=0.02, bench_rounds=15),
    )  # fmt: skip
    half = report.artifact("fp16")
    assert half.verdict == "for TensorRT; not timed on this CPU"
    assert half.p50_ms is None
    assert report.recommended not in ("s.fp16.onnx", "s.int8.trt.fp16.onnx")
    name, sources, missing = read_bundle(tmp_path)
    assert (name, missing) == ("s", ())
    assert [source.name for source in sources] == [
        "s.fp32.onnx",
        "s.fp16.onnx",
        "s.int8.trt.fp16.onnx",
        "s.int8.trt.onnx",
    ]


@pytest.mark.usefixtures("ready_graphs")
def test_half_files_without_int8(student: TinyStudent, facts: StudentFacts, tmp_path: Path) -> None:
    report = export_student(
        student, facts, tmp_path, name="s", int8=False, half=True, calibration=None,
        source="test", options=ExportOptions(bench_budget_s=0.02, bench_rounds=15),
    )  # fmt: skip
    assert [a.name for a in report.artifacts] == ["fp32", "model", "fp16"]
    assert report.recommended == "s.fp32.onnx"
    assert report.ok
