from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_kit import MEL, TinyStudent
from onnx import numpy_helper
from torch import nn

from frami_edge_export.errors import ParityError
from frami_edge_export.graph import frozen_trunk, whole_classifier
from frami_edge_export.parity import check_parity, parity_inputs, parity_lengths, with_context

TOLERANCE = 1e-5
FRAMES: dict[str, Any] = {"names": ("mel", "frames"), "tolerance": TOLERANCE, "label": "t"}


@pytest.fixture(scope="module")
def inputs(student: TinyStudent) -> list[np.ndarray]:
    return parity_inputs(parity_lengths(student.receptive_field, student.stride, MEL), MEL, seed=0)


def test_lengths_run_from_one_frame_to_30_s(student: TinyStudent) -> None:
    lengths = parity_lengths(student.receptive_field, student.stride, MEL)
    assert len(set(lengths)) >= 15
    assert lengths[0] == 1
    assert {student.receptive_field - 1, student.receptive_field} <= set(lengths)
    assert lengths[-1] == MEL.frames(30 * MEL.sample_rate)


def test_inputs_stay_in_the_physical_range(inputs: list[np.ndarray]) -> None:
    for x in inputs:
        assert x.dtype == np.float32
        assert (x >= MEL.floor[:, None] - 1e-6).all()
        assert (x <= MEL.ceiling[:, None] + 1e-6).all()


def test_both_graph_forms_equal_torch(
    student: TinyStudent,
    trunk: onnx.ModelProto,
    whole: onnx.ModelProto,
    inputs: list[np.ndarray],
) -> None:
    frames = check_parity(
        frozen_trunk(student),
        trunk,
        [with_context(x, student.context) for x in inputs],
        names=("mel", "frames"),
        tolerance=TOLERANCE,
        label="t",
    )
    logits = check_parity(
        whole_classifier(student),
        whole,
        inputs,
        names=("mel", "logits"),
        tolerance=TOLERANCE,
        label="w",
    )
    for parity in (frames, logits):
        assert parity
        assert parity.max_abs_difference <= TOLERANCE
        assert parity.agreement == 1.0


def test_the_reference_is_the_students_own_forward(
    student: TinyStudent, inputs: list[np.ndarray]
) -> None:
    x = torch.from_numpy(inputs[5])
    with torch.inference_mode():
        torch.testing.assert_close(whole_classifier(student)(x), student(x), atol=1e-5, rtol=1e-5)


def test_a_changed_weight_is_found(
    student: TinyStudent, trunk: onnx.ModelProto, inputs: list[np.ndarray]
) -> None:
    spoilt = copy.deepcopy(trunk)
    tensor = spoilt.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.001, tensor.name))
    parity = check_parity(
        frozen_trunk(student),
        spoilt,
        inputs[-3:],
        names=("mel", "frames"),
        tolerance=TOLERANCE,
        label="t",
    )
    assert not parity
    assert parity.max_abs_difference > TOLERANCE


def test_names_come_first(
    student: TinyStudent, trunk: onnx.ModelProto, inputs: list[np.ndarray]
) -> None:
    with pytest.raises(ParityError, match="must map mel to logits"):
        check_parity(
            nn.Identity(), trunk, inputs, names=("mel", "logits"), tolerance=TOLERANCE, label="t"
        )


def test_shapes_come_second(
    student: TinyStudent, trunk: onnx.ModelProto, inputs: list[np.ndarray]
) -> None:
    shortest = [inputs[0].repeat(student.receptive_field, axis=3)]
    with pytest.raises(ParityError, match=r"mel frames give \(1, 24, 1\), in torch \(1, 1, 32"):
        check_parity(nn.Identity(), trunk, shortest, **FRAMES)


def test_values_must_be_finite(
    student: TinyStudent, trunk: onnx.ModelProto, inputs: list[np.ndarray]
) -> None:
    bad = [inputs[-1][..., :40].copy()]
    bad[0][0, 0, 3, 2] = np.nan
    with pytest.raises(ParityError, match="not finite"):
        check_parity(
            frozen_trunk(student),
            trunk,
            bad,
            names=("mel", "frames"),
            tolerance=TOLERANCE,
            label="t",
        )
