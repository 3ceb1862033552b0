"""Fixtures of the export tests; what they are made of is in `export_kit`."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from frami_edge_export import exporter
from frami_edge_export.graph import (
    OnnxStudent,
    StudentFacts,
    frozen_head,
    head_graph,
    model_info,
    serialised,
    trunk_graph,
    whole_graph,
)
from frami_edge_export.parity import Head

# pytest's importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from export_kit import MEL, TinyStudent, synthetic_mels, train


@pytest.fixture(scope="session")
def student() -> TinyStudent:
    """Trained for seconds, so that its BatchNorm statistics and answers mean something."""
    torch.manual_seed(0)
    return train(TinyStudent(), steps=60)


@pytest.fixture
def facts() -> StudentFacts:
    return StudentFacts(
        mel=MEL,
        labels=tuple(f"class{k}" for k in range(6)),
        teacher_sha256="a" * 64,
        student_sha256="b" * 64,
        licence="Apache-2.0",
    )


@pytest.fixture(scope="session")
def calibration() -> np.ndarray:
    return synthetic_mels(160, 60, seed=7)[0].numpy()


@pytest.fixture(scope="session")
def trunk(student: TinyStudent) -> onnx.ModelProto:
    return trunk_graph(student, MEL.n_mels)


@pytest.fixture(scope="session")
def whole(student: TinyStudent) -> onnx.ModelProto:
    return whole_graph(student, MEL.n_mels)


@pytest.fixture(scope="session")
def made(student: TinyStudent, trunk: onnx.ModelProto) -> OnnxStudent:
    """The student in ONNX form, as an export holds it."""
    weight, bias = (t.double().numpy() for t in frozen_head(student))
    info = model_info(student, StudentFacts(mel=MEL, labels=tuple("abcdef")))
    head = Head(weight, bias, student.pool_eps)
    return OnnxStudent("s", trunk, head, serialised(head_graph(student)), info)


@pytest.fixture
def ready_graphs(
    trunk: onnx.ModelProto, whole: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skips torch's exporter, seconds each, where a test is about what comes after it."""
    monkeypatch.setattr(exporter, "trunk_graph", lambda *_: copy.deepcopy(trunk))
    monkeypatch.setattr(exporter, "whole_graph", lambda *_: copy.deepcopy(whole))
