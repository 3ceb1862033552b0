"""Fixtures of the export tests; what they are made of is in `export_kit`."""

import pytest
import torch
from export_kit import MEL, TinyStudent, synthetic_mels, train

from frami_edge_export.graph import (
    OnnxStudent,
    StudentFacts,
    classifier_graph,
    frozen_head,
    head_graph,
    model_info,
    serialised,
    trunk_graph,
)
from frami_edge_export.parity import Head


@pytest.fixture(scope="session")
def student():
    """Trained for seconds, so that its BatchNorm statistics and answers mean something."""
    torch.manual_seed(0)
    return train(TinyStudent(), steps=60)


@pytest.fixture
def facts():
    return StudentFacts(
        mel=MEL, labels=tuple(f"class{k}" for k in range(6)), teacher_sha256="a" * 64,
        student_sha256="b" * 64, licence="Apache-2.0",
    )  # fmt: skip


@pytest.fixture(scope="session")
def calibration():
    return synthetic_mels(160, 60, seed=7)[0].numpy()


@pytest.fixture(scope="session")
def trunk(student):
    return trunk_graph(student, MEL.n_mels)


@pytest.fixture(scope="session")
def whole(made):
    return classifier_graph(made.trunk, made.head, made.info)


@pytest.fixture(scope="session")
def made(student, trunk):
    """The student in ONNX form, as an export holds it."""
    weight, bias = (t.double().numpy() for t in frozen_head(student))
    info = model_info(student, StudentFacts(mel=MEL, labels=tuple("abcdef")))
    head = Head(weight, bias, student.pool_eps)
    return OnnxStudent("s", trunk, head, serialised(head_graph(student)), info)
