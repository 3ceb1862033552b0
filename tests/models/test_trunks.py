"""A trunk is one file: found by name, streamable, and the only thing that a name can import."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from frami_edge.models.config import StudentArch
from frami_edge.models.student import Student
from frami_edge.models.trunks import build_trunk, trunk_names

ARCH = {"channels": (8, 12, 12), "time_kernels": (3, 3, 3), "out_channels": 16}


@pytest.mark.parametrize("name", trunk_names())
def test_every_trunk_streams(name: str) -> None:
    """A frame from its receptive field alone is the frame of the whole clip."""
    torch.manual_seed(0)
    trunk = build_trunk(StudentArch(trunk=name, **ARCH))  # type: ignore[arg-type]
    trunk.module.eval()
    x_B1MT = torch.randn(2, 1, 32, trunk.receptive_field + 5 * trunk.stride)
    with torch.no_grad():
        whole_BCT = trunk.module(x_B1MT)
        assert whole_BCT.shape == (2, 16, 6)
        for i in range(6):
            start = i * trunk.stride
            one = trunk.module(x_B1MT[..., start : start + trunk.receptive_field])
            torch.testing.assert_close(one, whole_BCT[..., i : i + 1])
    assert Student(StudentArch(trunk=name, **ARCH), 32, 5)(x_B1MT).shape == (2, 5)  # type: ignore[arg-type]


def test_the_default_is_written_as_ever_and_another_name_imports_nothing() -> None:
    assert "trunk" not in StudentArch().model_dump(mode="json")
    with pytest.raises(ValidationError, match=r"unknown trunk 'os'; known: .*depthwise"):
        StudentArch(trunk="os")
