from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError
from frami_edge.losses import BatchNormStatistics, live_batch_norms
from frami_edge.models import ResNetTeacher


def net_2d() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    )


def net_1d() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(1, 2), nn.Conv1d(16, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(4), nn.BatchNorm1d(4),
    )  # fmt: skip


def trained_on(model: nn.Module, x: Tensor) -> nn.Module:
    """Running statistics are exactly those of `x`."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def loss_of(model: nn.Module, x: Tensor) -> float:
    watch = BatchNormStatistics(model)
    with watch:
        model(x)
    return float(watch.loss().detach())


@pytest.mark.parametrize("make", [net_2d, net_1d])
def test_matching_data_has_no_loss_and_other_data_has(make: type) -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 1, 16, 20)
    model = trained_on(make(), x)
    assert len(live_batch_norms(model)) == 2
    assert loss_of(model, x) < 1e-4
    assert loss_of(model, x + 3) > 0.05
    assert loss_of(model, 4 * x) > 0.05
    assert loss_of(model, 4 * x) > loss_of(model, 2 * x) > loss_of(model, 1.1 * x)


def test_the_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    mu, var = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 1.0])
    norm.running_mean, norm.running_var = mu, var
    x = torch.randn(40, 3)
    mean_C, var_C = x.mean(0), x.var(0, correction=0)
    expected = (mean_C - mu).square().sum() / (mu.square() + var).sum()
    expected = expected + (var_C - var).square().sum() / var.square().sum()
    assert loss_of(model, x) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_does_not_depend_on_the_scale_of_a_layer() -> None:
    torch.manual_seed(0)
    small, loud = nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3).eval()
    x = torch.randn(50, 3) + 0.5
    loud.running_mean, loud.running_var = torch.zeros(3), torch.full((3,), 100.0**2)
    assert loss_of(nn.Sequential(small), x) == pytest.approx(
        loss_of(nn.Sequential(loud), 100 * x), rel=1e-4
    )


def test_it_leads_back_to_the_clips(teacher: ResNetTeacher) -> None:
    x = torch.randn(8, 1, 16, 20, requires_grad=True)
    watch = BatchNormStatistics(teacher)
    with watch:
        teacher(x)
    watch.loss().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) for m in model.modules())


def test_the_hooks_are_removed_whatever_happens(teacher: ResNetTeacher) -> None:
    watch = BatchNormStatistics(teacher)
    with watch:
        assert hooks(teacher) == len(live_batch_norms(teacher))
    assert hooks(teacher) == 0
    with pytest.raises(RuntimeError, match="inside"), watch:
        raise RuntimeError("inside")
    assert hooks(teacher) == 0
    with pytest.raises(RuntimeError), watch:
        teacher(torch.zeros(1, 2, 16, 20))
    assert hooks(teacher) == 0


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_a_teacher_without_live_batch_norm_is_refused(model: nn.Module) -> None:
    with pytest.raises(TeacherError, match="no BatchNorm") as caught:
        BatchNormStatistics(model)
    assert "batch_norm=0" in caught.value.fix
