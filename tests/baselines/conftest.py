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
    """`context("cmi", iterations=3, steps=12)`: what a baseline needs, tiny, in float32."""

    def make(name: str, seed: int = 0, model: Any = teacher, **changes: Any) -> Context:
        budget = {"steps": 12, "burn_in": 2, "batch_size": 8, "width": 8}
        budget |= {key: changes.pop(key) for key in list(changes) if key in budget}
        own: dict[str, Any] = {"student_steps": 1}
        own |= {"iterations": 4} if name in ("cmi", "deep_inversion", "fast") else {}
        own |= {} if name == "deep_inversion" else {"latent": 8}
        own |= {"warmup": 0.25} if name == "fast" else {}
        config = BankConfig.model_validate(
            {
                "frames": 24,
                "shard_clips": 8,
                "sources": {name: 1},
                "inversion": budget,
                "baselines": {name: own | changes},
            }
        )
        compute = Compute(torch.device("cpu"), torch.float32, False, "a test")
        return Context(model, spec, K, config, compute, seed)

    return make
