"""Every baseline lowers its loss on a tiny teacher, and its losses are the published ones."""

from __future__ import annotations

import copy

import pytest
import torch

from frami_edge.baselines import BASELINES
from frami_edge.baselines.losses import (
    PublishedBatchNorm,
    balance_loss,
    divergence,
    jensen_shannon,
)
from frami_edge.device import Choice
from frami_edge.inversion.config import BankConfig
from frami_edge.inversion.sources import Context
from frami_edge.models.config import TeacherArch
from frami_edge.models.teacher import ResNetTeacher
from frami_edge_runtime.melspec import MelSpec

K = 4
# Adversaries move the goal; what must fall is what does not depend on them.
FALLS = {"dafl": "balance", "zskt": "", "dfq": "batch_norm"}


@pytest.fixture
def context() -> Context:
    spec = MelSpec(
        sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
    )
    torch.manual_seed(0)
    teacher = ResNetTeacher(TeacherArch(channels=(8, 12, 16), blocks=1), spec.n_mels, K)
    with torch.no_grad():
        for _ in range(20):
            teacher(torch.randn(8, 1, spec.n_mels, 40))
    teacher.eval().requires_grad_(False)
    choice = Choice(torch.device("cpu"), torch.float32, False, False, "a test")
    return Context(teacher, spec, K, BankConfig(frames=40), choice, 0)


def config_of(name: str, steps: int = 40) -> object:
    fields: dict[str, int] = {"steps": steps, "batch_size": 12, "width": 16}
    kind = BASELINES[name].config_type
    if "inner_steps" in kind.model_fields and name != "fast_datafree":
        fields["inner_steps"] = steps // 2
    if "student_steps" in kind.model_fields:
        fields["student_steps"] = 2
    return kind.model_validate(fields)


@pytest.mark.parametrize("name", BASELINES)
def test_it_learns_and_keeps_clips_inside_the_range(name: str, context: Context) -> None:
    source = BASELINES[name](context, config_of(name))  # type: ignore[arg-type]
    batches = [source.step(i) for i in range(source.steps)]
    kept = [b for b in batches if b.keep]
    assert kept
    floor, ceiling = torch.from_numpy(context.spec.floor), torch.from_numpy(context.spec.ceiling)
    for batch in kept:
        x = batch.mels_B1MT[:, 0]
        assert x.shape == (12, 16, 40)
        assert (x >= floor[:, None] - 1e-4).all()
        assert (x <= ceiling[:, None] + 1e-4).all()
    if name == "zskt":
        assert all(torch.isfinite(torch.as_tensor(b.metrics["loss"])) for b in batches)
        return
    key = FALLS.get(name, "batch_norm")
    first = sum(float(b.metrics[key]) for b in batches[:3])
    # The end of the first batch where a method starts afresh, else the last steps.
    end = source.steps // 2 if name in ("cmi", "deep_inversion") else source.steps
    assert sum(float(b.metrics[key]) for b in batches[end - 3 : end]) < first


@pytest.mark.parametrize("name", BASELINES)
def test_a_seed_repeats_and_a_state_goes_on(name: str, context: Context) -> None:
    config = config_of(name, 10)
    a = BASELINES[name](context, config)  # type: ignore[arg-type]
    b = BASELINES[name](context, config)  # type: ignore[arg-type]
    a.step(0)
    b.load_state(copy.deepcopy(a.state()))
    assert torch.allclose(a.step(1).mels_B1MT, b.step(1).mels_B1MT, atol=1e-5)


def test_the_losses_are_those_of_the_papers(context: Context) -> None:
    even, one = torch.zeros(4, K), torch.eye(K)[[0, 0, 0, 0]] * 50
    assert balance_loss(even).item() == pytest.approx(-torch.tensor(float(K)).log().item())
    assert balance_loss(one).item() == pytest.approx(0, abs=1e-5)
    assert divergence(one, one).item() == pytest.approx(0, abs=1e-6)
    assert divergence(one, even).item() == pytest.approx(torch.tensor(float(K)).log().item())
    opposite = torch.eye(K)[[1, 1, 1, 1]] * 500
    assert jensen_shannon(one * 10, opposite, 1).item() == pytest.approx(0.6931, abs=1e-3)
    watch = PublishedBatchNorm(context.teacher)  # type: ignore[arg-type]
    x = torch.randn(6, 1, 16, 40)
    with watch:
        context.teacher.hidden(x)
    name, layer = watch.layers[0]
    mean, var = watch._observed[0]
    watch._observed = {0: (mean, var)}
    assert layer.running_mean is not None
    assert layer.running_var is not None
    wanted = (mean - layer.running_mean).norm() + (var - layer.running_var).norm()
    assert watch.loss().item() == pytest.approx(wanted.item()), name
