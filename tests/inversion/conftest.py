from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from frami_edge.config import BankConfig, TeacherArch
from frami_edge.device import Compute
from frami_edge.models import ResNetTeacher
from frami_edge.sources.base import Context
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
def context(teacher: ResNetTeacher, spec: MelSpec) -> Callable[..., Context]:
    """`context(sources={...}, inversion={...})`: what sources need, tiny, on the CPU in float32."""

    def make(seed: int = 0, model: Any = teacher, **changes: Any) -> Context:
        tiny = {"steps": 6, "burn_in": 2, "batch_size": 8}
        fields: dict[str, Any] = {
            "frames": 16,
            "procedural_clips": 10,
            "control_clips": 10,
            "shard_clips": 16,
            "inversion": tiny
            | {"latent": 8, "width": 8, "contrastive_memory": 20}
            | changes.pop("inversion", {}),
            "translator": tiny | changes.pop("translator", {}),
        }
        config = BankConfig.model_validate(fields | changes)
        compute = Compute(torch.device("cpu"), torch.float32, False, "a test")
        return Context(model, spec, K, config, compute, seed)

    return make
