"""Every loss is its formula, by hand arithmetic where that is short."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frami_edge import losses as L
from frami_edge.config import DistillConfig
from frami_edge.device import Compute
from frami_edge.errors import TeacherError
from frami_edge.models import Hidden
from frami_edge.sources import NO_LABEL, requests

K = 5


def test_the_adversarial_term_counts_agreeing_clips_only():
    teacher = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)  # agrees, disagrees
    loss = L.adversarial_loss(teacher, student)
    p, q = teacher.log_softmax(1)[0], student.detach().log_softmax(1)[0]
    assert float(loss.detach()) == pytest.approx(-float((p.exp() * (p - q)).sum()) / 2, rel=1e-5)
    loss.backward()
    assert student.grad[0].abs().sum() > 0
    assert student.grad[1].abs().sum() == 0


# --- BatchNorm statistics


def exact_moments(x):
    var_C, mean_C = torch.var_mean(x.double(), [d for d in range(x.ndim) if d != 1], correction=0)
    return mean_C, var_C


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 7), (4, 5, 7, 9), (1, 5, 3, 2)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_moments_and_their_gradient(shape, offset):
    torch.manual_seed(0)
    x = torch.randn(shape) + offset
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for mean_C, var_C in (L.channel_moments(mine), exact_moments(theirs)):
        weights = torch.arange(1, len(mean_C) + 1)
        ((weights * mean_C).sum() + (weights * var_C.square()).sum()).backward()
    for a, b in zip(L.channel_moments(x), exact_moments(x), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-3, atol=2e-4)


def net_2d():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    )


def net_1d():
    head = (nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4))
    return nn.Sequential(nn.Flatten(1, 2), nn.Conv1d(16, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), *head)


def batch_norm_loss(model, x):
    statistics = L.BatchNormStatistics(model)
    with statistics:
        model(x)
    return float(statistics.loss().detach())


@pytest.mark.parametrize("make", [net_2d, net_1d])
def test_matching_data_has_no_loss_and_other_data_has(make):
    torch.manual_seed(0)
    x = torch.randn(512, 1, 16, 20)
    model = make()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.momentum = None  # running statistics are exactly those of x
    with torch.no_grad():
        model.train()(x)
    model.eval()
    assert len(L.live_batch_norms(model)) == 2
    assert batch_norm_loss(model, x) < 1e-4
    assert batch_norm_loss(model, x + 3) > 0.05
    losses = [batch_norm_loss(model, scale * x) for scale in (1.1, 2, 4)]
    assert losses == sorted(losses)
    assert losses[-1] > 0.05


def test_the_batch_norm_loss_is_the_formula_relative_to_the_layer():
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    mu, var = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 1.0])
    mean_C, var_C = x.mean(0), x.var(0, correction=0)
    wanted = (mean_C - mu).square().sum() / (mu.square() + var).sum()
    wanted = wanted + (var_C - var).square().sum() / var.square().sum()
    for scale in (1.0, 100.0):
        norm = nn.BatchNorm1d(3).eval()
        norm.running_mean, norm.running_var = scale * mu, scale**2 * var
        found = batch_norm_loss(nn.Sequential(norm), scale * x)
        assert found == pytest.approx(float(wanted), rel=1e-4)


def test_the_hooks_are_removed_and_the_gradient_reaches_the_clips(teacher):
    def hooks():
        return sum(len(m._forward_pre_hooks) for m in teacher.modules())

    statistics, x = L.BatchNormStatistics(teacher), torch.randn(8, 1, 16, 20, requires_grad=True)
    with statistics:
        assert hooks() == len(L.live_batch_norms(teacher))
        teacher(x)
    assert hooks() == 0
    statistics.loss().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(RuntimeError), statistics:
        teacher(torch.zeros(1, 2, 16, 20))
    assert hooks() == 0


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False), nn.Identity()]
)
def test_a_teacher_without_live_batch_norm_is_refused(norm):
    with pytest.raises(TeacherError, match="no BatchNorm") as caught:
        L.BatchNormStatistics(nn.Sequential(nn.Conv2d(1, 4, 3), norm))
    assert "batch_norm=0" in caught.value.fix


def test_the_published_batch_norm_loss_mixes_earlier_moments(teacher):
    first, second = torch.randn(6, 1, 16, 24), 2 * torch.randn(6, 1, 16, 24)
    mixing = L.PublishedBatchNorm(teacher, momentum=0.9)

    def moments(x):
        with L.PublishedBatchNorm(teacher) as plain:
            teacher.hidden(x)
        return list(plain.observed.values())

    def wanted(found):
        total = 0.0
        for layer, (mean, var) in zip(mixing.layers, found, strict=True):
            total += float((mean - layer.running_mean).norm() + (var - layer.running_var).norm())
        return total

    with mixing:
        teacher.hidden(first)
    assert mixing.loss().item() == pytest.approx(wanted(moments(first)), rel=1e-5)
    mixing.remember()
    with mixing:
        teacher.hidden(second)
    mixed = [
        (0.1 * m + 0.9 * om, 0.1 * v + 0.9 * ov)
        for (m, v), (om, ov) in zip(moments(second), moments(first), strict=True)
    ]
    assert mixing.loss().item() == pytest.approx(wanted(mixed), rel=1e-4)
    assert mixing.instance_means(6).shape == (6, sum(m.num_features for m in mixing.layers))


# --- The contrastive loss


def hidden(seed, n=12, channels=6):
    rng = torch.Generator().manual_seed(seed)
    frames = torch.randn(n, channels, 9, generator=rng)
    return Hidden(frames, torch.randn(n, 2 * channels, generator=rng), torch.zeros(n, 3))


def contrast(memory=64):
    torch.manual_seed(0)
    return L.FeatureInvariantContrast(6, 12, embedding=8, memory=memory)


def test_the_contrastive_loss_is_infonce_over_batch_and_memory():
    loss, a, b = contrast(), hidden(0), hidden(1)
    loss.remember(loss.embed(hidden(2)))
    value, keys = loss(query=a, key=b)
    every = torch.cat([loss.embed(b), loss.embed(hidden(2))])
    wanted = -((loss.embed(a) @ every.T) / 0.1).log_softmax(1).diagonal().mean()
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(keys, loss.embed(b))
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(12))
    assert value.requires_grad
    assert not keys.requires_grad


def test_an_empty_memory_is_no_negative():
    """Rows that were never written must not count: their similarity would be 0 to everything."""
    h = hidden(0)
    small, large = (float(contrast(size)(query=h, key=h)[0].detach()) for size in (8, 4096))
    assert small == pytest.approx(large)


def test_the_memory_wraps_over_the_oldest_and_is_part_of_the_state():
    loss, again = contrast(memory=5), contrast(memory=5)
    keys = torch.arange(1, 10.0)[:, None].expand(9, 16)
    loss.remember(keys[:3])
    assert loss.memory[:, 0].tolist() == [1, 2, 3, 0, 0]
    again.load_state_dict(loss.state_dict())
    again.remember(keys[3:7])
    assert again.memory[:, 0].tolist() == [6, 7, 3, 4, 5]
    again.remember(keys)
    assert sorted(again.memory[:, 0].tolist()) == [5, 6, 7, 8, 9]


# --- Distillation


def test_the_logits_loss_is_the_formula():
    s, t, tau = torch.randn(6, 4), torch.randn(6, 4), 3.0
    p, q = (t / tau).log_softmax(1), (s / tau).log_softmax(1)
    wanted = tau**2 * (p.exp() * (p - q)).sum(1).mean()
    torch.testing.assert_close(L.logits_loss(s, t, tau), wanted)
    assert float(L.logits_loss(t + 5, t, tau)) == pytest.approx(0, abs=1e-6)


def test_frames_are_interpolated_and_held_at_the_ends():
    h = torch.tensor([0.0, 10.0, 20.0, 40.0]).expand(2, 3, 4)
    read = L.align_frames(h, torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.25, 3.0, 9.0]))
    assert read.shape == (2, 3, 7)
    assert read[0, 0].tolist() == [0, 0, 5, 10, 25, 40, 40]
    one = torch.full((1, 2, 1), 3.0)
    assert L.align_frames(one, torch.tensor([0.0, 0.4, 7.0])).tolist() == [[[3.0] * 3] * 2]
    h = torch.randn(1, 2, 4, requires_grad=True)
    L.align_frames(h, torch.tensor([0.5, 1.5])).sum().backward()
    assert h.grad[0, 0].tolist() == [0.5, 1.0, 0.5, 0.0]


class Sizes(nn.Module):
    """What `L.DistillationLoss` reads of both sides."""

    frame_stride, frame_offset, stride, head = 4, 0.0, 4, None

    def __init__(self, channels, **changes):
        super().__init__()
        self.channels = channels
        for name, value in changes.items():
            setattr(self, name, value)

    @property
    def pooled_size(self):
        return 2 * self.channels

    def frame_centres(self, frames, device=None):
        return torch.arange(frames) * float(self.stride)


def hidden_loss(student, teacher, scale):
    cpu = Compute(torch.device("cpu"), torch.float32, "a test")
    return L.DistillationLoss(student, teacher, scale, DistillConfig(), cpu)


def test_frames_of_another_rate_are_compared_in_mel_time():
    ramp = torch.arange(12.0)[None, None, :].expand(1, 3, 12)
    teacher = Sizes(3, frame_stride=2, frame_offset=1.0)
    loss = hidden_loss(Sizes(3), teacher, L.FeatureScale(torch.ones(3), torch.ones(6)))
    at = torch.arange(1, 5) * 4.0  # mel frames of the student's frames 1..4
    mine = torch.cat([torch.zeros(1), (at - 1) / 2])[None, None, :].expand(1, 3, 5)
    empty = torch.zeros(1, 6)
    target = Hidden(ramp, empty, empty)
    same, late = (Hidden(x, empty, empty) for x in (mine, mine.roll(1, 2)))
    assert float(loss.before(same, target).detach()) == pytest.approx(0, abs=1e-10)
    assert float(loss.before(late, target).detach()) > 0.1


def test_errors_are_relative_to_the_variance():
    scale = L.FeatureScale(torch.tensor([1.0, 100.0]), torch.ones(4))
    loss = hidden_loss(Sizes(2), Sizes(2), scale)
    pooled, logits = torch.zeros(1, 4), torch.zeros(1, 2)
    off = Hidden(torch.tensor([1.0, 10.0])[None, :, None].expand(1, 2, 3), pooled, logits)
    zero = Hidden(torch.zeros(1, 2, 3), pooled, logits)
    assert float(loss.before(off, zero).detach()) == pytest.approx(1.0)


# --- Published baselines


def test_balance_is_the_negative_entropy_of_the_mean_prediction():
    assert L.balance_loss(torch.zeros(4, K)).item() == pytest.approx(-math.log(K))
    assert L.balance_loss(torch.eye(K)[[0, 0, 0]] * 50).item() == pytest.approx(0, abs=1e-5)
    assert L.balance_loss(torch.eye(K) * 50).item() == pytest.approx(-math.log(K), abs=1e-5)


def test_jensen_shannon_is_symmetric_and_bounded():
    a, b = torch.randn(6, K), torch.randn(6, K)
    torch.testing.assert_close(L.jensen_shannon(a, b, 3), L.jensen_shannon(b, a, 3))
    p, q = (a / 3).softmax(1), (b / 3).softmax(1)
    m = (p + q) / 2
    wanted = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    torch.testing.assert_close(L.jensen_shannon(a, b, 3), wanted)
    apart = torch.eye(K)[[0]] * 300, torch.eye(K)[[1]] * 300
    assert L.jensen_shannon(*apart, 1).item() == pytest.approx(math.log(2), abs=1e-4)


def test_total_variation_of_a_ramp_over_bands():
    x = torch.arange(3.0)[None, None, :, None].expand(1, 1, 3, 4)
    # 8 differences of 1 along bands, none along time, 6 of 1 on each diagonal.
    assert L.total_variation(x).item() == pytest.approx(8**0.5 + 2 * 6**0.5)


def test_the_contrast_is_a_mean_over_the_batch_and_one_over_the_memory():
    q, k = F.normalize(torch.randn(7, 4), dim=1), F.normalize(torch.randn(7, 4), dim=1)
    log_p = (q @ k.T / 0.1).log_softmax(1).diagonal()
    torch.testing.assert_close(L.split_contrast(q, k, 3, 0.1), -log_p[:3].mean() - log_p[3:].mean())
    alone = (q[:3] @ k[:3].T / 0.1).log_softmax(1).diagonal().mean()
    torch.testing.assert_close(L.split_contrast(q[:3], k[:3], 3, 0.1), -alone)


# --- Detectors


def test_detectors_are_copied_around_their_boundary():
    torch.manual_seed(0)
    teacher = torch.randn(400, 3) - torch.tensor([8.0, 8.0, 0.0])  # two rare classes, one common
    boundary = L.detection_boundary(teacher, 0.93)
    share = (teacher > boundary).float().mean(0)
    torch.testing.assert_close(share[:2], torch.full((2,), 0.07), atol=0.01, rtol=0)
    assert boundary[2] == 0, "a class that is often detected keeps probability 0.5"
    assert L.detection_boundary(teacher, 1.0).tolist() == [0, 0, 0]

    copy = L.detectors_loss(teacher, teacher, 2.0, boundary)
    assert float(copy) == pytest.approx(0, abs=1e-6)
    rare, no = teacher[:, :2], teacher[:, :2].mean(0).expand(400, 2)
    costs = [float(L.detectors_loss(no, rare, 2.0, b)) for b in (boundary[:2], torch.zeros(2))]
    assert costs[0] > 5 * costs[1], "the same 'no' to every clip must cost more"


def test_requests_move_their_detectors_alone():
    labels = torch.arange(60) % 3
    wanted, stored = requests(labels, 3, 0.3, 0.2, torch.Generator().manual_seed(0))
    near = stored == NO_LABEL
    assert 0 < near.sum() < 40
    own = wanted.gather(1, labels[:, None])[:, 0]
    assert (own[~near] == 1).all()
    assert ((own[near] > 0) & (own[near] < 0.5)).all()
    assert 60 < (~wanted.isnan()).sum() < 80, "some clips have a second class"
    logits = torch.zeros(60, 3, requires_grad=True)
    L.class_loss(logits, labels, wanted).backward()
    assert torch.equal(logits.grad != 0, ~wanted.isnan())
    assert (logits.grad[wanted == 1] < 0).all()
    assert (logits.grad.gather(1, labels[:, None])[near] > 0).all(), "they shall stay below 0.5"


def test_detectors_decide_by_set_and_one_of_k_by_the_best():
    a = torch.tensor([[2.0, -1.0, 1.0], [-3.0, -1.0, -2.0]])
    b = torch.tensor([[1.0, -9.0, 3.0], [-1.0, -2.0, -3.0]])
    assert L.same_decision(a, b, "sigmoid").tolist() == [True, True]
    assert L.same_decision(a, b, "softmax").tolist() == [False, False]
    label = torch.tensor([2, NO_LABEL])
    assert L.has_class(a, label, "sigmoid").tolist() == [True, False]
    assert L.has_class(a, label, "softmax").tolist() == [False, False]
    student = torch.zeros(2, 3, requires_grad=True)
    L.adversarial_loss(a, student, "sigmoid").backward()
    assert student.grad[0].eq(0).all(), "it did not decide alike yet"
    assert student.grad[1].ne(0).all()
