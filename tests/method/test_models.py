"""Pooling, the built-in teacher, the student that streams, the reused head, and costs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frami_edge.config import StudentArch, TeacherArch
from frami_edge.models import (
    POOL_EPS,
    ResNetTeacher,
    ReusedHead,
    StatsPool,
    StudentNet,
    macs,
    macs_per_second,
    only_answers,
)
from frami_edge_runtime.modelfile import Pooling

LENGTHS = [1, 2, 3, 4, 5, 7, 13, 40, 41]


def test_pooling_is_mean_and_population_deviation():
    h = torch.randn(3, 4, 9)
    x = h.numpy().astype(np.float64)
    wanted = np.concatenate([x.mean(2), np.sqrt(x.var(2) + POOL_EPS)], axis=1)
    np.testing.assert_allclose(StatsPool()(h).numpy(), wanted, atol=1e-6)
    assert StatsPool()(h.bfloat16()).dtype == torch.float32
    assert Pooling().eps == POOL_EPS, "the runtime adds the same"


def test_a_loud_steady_sound_keeps_its_small_variance():
    """The one-pass formula would lose it: 1000² + 0.01² rounds to 1000² in float32."""
    h = 1000 + 0.05 * torch.sign(torch.randn(1, 1, 1000))
    wanted = float((h.double().var(correction=0) + POOL_EPS).sqrt())
    assert abs(float(StatsPool()(h)[0, 1]) - wanted) < 1e-3


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_padded_batch_gives_what_each_clip_gives_alone(name, request):
    model = request.getfixturevalue(name)
    clips = [torch.randn(model.n_mels, t) for t in LENGTHS]
    x = torch.stack([F.pad(clip, (0, 41 - clip.shape[1])) for clip in clips])[:, None]
    if name == "teacher":
        for i, t in enumerate(LENGTHS):
            x[i, ..., t:] = 9.0  # the teacher masks its padding; the student's must be 0
    batch = model.hidden(x, torch.tensor(LENGTHS))
    for i, clip in enumerate(clips):
        alone = model.hidden(clip[None, None])
        n = alone.frames_BCT.shape[2]
        for mine, theirs in (
            (batch.frames_BCT[i, :, :n], alone.frames_BCT[0]),
            (batch.pooled_BD[i], alone.pooled_BD[0]),
            (batch.logits_BK[i], alone.logits_BK[0]),
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_folded_teacher_answers_alike_and_is_a_copy(teacher):
    x, lengths = torch.randn(3, 1, teacher.n_mels, 30), torch.tensor([30, 17, 3])
    folded = only_answers(teacher)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for mine, theirs in zip(
        vars(folded.hidden(x, lengths)).values(),
        vars(teacher.hidden(x, lengths)).values(),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in teacher.modules())


def test_the_teachers_frame_features_are_centred_where_they_say():
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 8, 8), blocks=1), 16, 3).eval()
    x = torch.randn(1, 1, 16, 240, requires_grad=True)
    index = 30
    model.hidden(x).frames_BCT[0, :, index].abs().sum().backward()
    reached = x.grad.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0]
    centre = float(reached.min() + reached.max()) / 2
    assert abs(centre - (index * model.frame_stride + model.frame_offset)) <= model.frame_stride / 2
    assert int(reached.max() - reached.min()) + 1 == model.receptive_field


@pytest.mark.parametrize(
    ("size", "parameters"), [("nano", 17_082), ("small", 51_178), ("base", 103_706)]
)
def test_a_size_has_a_name(size, parameters):
    student = StudentNet(StudentArch(channels=size), 40, 10)
    assert sum(p.numel() for p in student.parameters()) == parameters
    assert StudentArch.model_validate(student.arch.model_dump()) == student.arch
    with pytest.raises(ValueError, match="one of nano, small, base"):
        StudentArch(channels="huge")


@pytest.mark.parametrize(
    ("kernels", "chunks"), [((3, 3, 3, 3), [1] * 60), ((3, 3, 1, 3), [7, 1, 30, 2, 20])]
)
def test_chunks_with_a_carry_are_the_whole(kernels, chunks):
    torch.manual_seed(0)
    arch = StudentArch(channels=(8, 8, 12, 12), time_kernels=kernels, out_channels=8)
    model = StudentNet(arch, 16, 3).eval()
    x = torch.randn(1, 1, 16, 60)
    whole = model.hidden(x).frames_BCT
    left, right = model.context
    field, stride = model.receptive_field, model.stride
    carry, out = torch.zeros(1, 1, 16, left), []
    pieces = [*x.split(chunks, dim=3), torch.zeros(1, 1, 16, right)]
    with torch.no_grad():
        for piece in pieces:
            carry = torch.cat([carry, piece], dim=3)
            n = max(0, (carry.shape[3] - field) // stride + 1)
            if n:
                out.append(model.trunk(carry[..., : field + (n - 1) * stride]))
                carry = carry[..., n * stride :]
            assert carry.shape[3] < field, "the carry must stay bounded"
    torch.testing.assert_close(torch.cat(out, dim=2), whole, atol=1e-6, rtol=1e-6)


def test_the_context_gives_every_length_its_frames(student):
    left, right = student.context
    assert left + right == student.receptive_field - 1
    for frames in LENGTHS:
        x = torch.randn(1, 1, 16, frames)
        hidden, expected = student.hidden(x), -(-frames // student.stride)
        assert hidden.frames_BCT.shape[2] == expected
        assert int(student.frame_lengths(torch.tensor([frames]))) == expected
        torch.testing.assert_close(hidden.frames_BCT, student.trunk(F.pad(x, (left, right))))


def test_the_collapsed_head_is_projector_and_head(student):
    assert isinstance(student.head, ReusedHead)
    s_BD = 3 * torch.randn(64, 2 * student.channels)
    weight, bias = student.collapsed_head()
    torch.testing.assert_close(
        F.linear(s_BD, weight, bias), student.head(s_BD), atol=1e-5, rtol=1e-5
    )
    shipped = student.collapse()
    assert isinstance(shipped.head, torch.nn.Linear)
    x = torch.randn(4, 1, 16, 33)
    torch.testing.assert_close(shipped(x), student(x), atol=1e-5, rtol=1e-5)
    assert isinstance(student.head, ReusedHead), "the original must stay as it was"


def test_costs_are_counted_from_what_runs(student, spec):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
        torch.nn.Conv2d(4, 4, 3, padding=1, groups=4),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 7),
    )
    assert macs(net, spec, 100) == 8 * 50 * (4 * 9 + 4 * 9) + 4 * 7
    shipped = student.collapse()
    difference = macs(shipped, spec, 400) - macs(shipped, spec, 300)
    assert macs_per_second(shipped, spec) == pytest.approx(difference, rel=0.02)
    assert not any(m._forward_hooks for m in shipped.modules())
