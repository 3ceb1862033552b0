from __future__ import annotations

import pytest
import torch

from frami_edge.config import StudentArch, TeacherArch
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge_runtime.melspec import MelSpec

K = 5


@pytest.fixture
def spec() -> MelSpec:
    return MelSpec(
        sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
    )


@pytest.fixture
def teacher(spec: MelSpec) -> ResNetTeacher:
    """A tiny teacher whose BatchNorm statistics are those of some data, not the initial ones."""
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 12, 16), blocks=1), spec.n_mels, K)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, spec.n_mels, 40))
    return model.eval().requires_grad_(False)


@pytest.fixture
def student(spec: MelSpec, teacher: ResNetTeacher) -> StudentNet:
    """A tiny student with the teacher's head and BatchNorm statistics of some data."""
    torch.manual_seed(1)
    arch = StudentArch(channels=(8, 12, 12, 16), time_kernels=(3, 3, 3, 1), out_channels=8)
    model = StudentNet(arch, spec.n_mels, K, teacher.head)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, spec.n_mels, 40))
        assert isinstance(model.head, torch.nn.Module)
        model.head.projector.bias.normal_()  # type: ignore[operator,union-attr]
    return model.eval().requires_grad_(False)
