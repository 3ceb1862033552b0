"""What an export refuses or fails, what its gates say, and what it leaves in the folder."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_kit import FAST, MEL, TinyStudent
from torch import nn

from frami_edge_export.errors import CalibrationError, ExportError
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts
from frami_edge_export.options import ExportOptions
from frami_edge_export.report import ExportReport, markdown_card
from frami_edge_runtime.errors import FramiEdgeError


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
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ready_graphs")
def test_a_failing_evaluation_writes_nothing(
    student: TinyStudent, facts: StudentFacts, tmp_path: Path
) -> None:
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
        (lambda s: delattr(s, "trunk"), "no exportable student"),
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
