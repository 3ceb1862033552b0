from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from frami_edge.config import STUDENT_PRESETS, StudentArch
from frami_edge.data.store import collate
from frami_edge.models import ResNetTeacher, ReusedHead, StudentNet, macs, macs_per_second
from frami_edge_runtime.melspec import MelSpec

LENGTHS = [1, 2, 3, 4, 5, 7, 13, 40, 41]


def test_a_masked_batch_is_each_clip_alone(student: StudentNet) -> None:
    mels = [torch.randn(student.n_mels, t) for t in LENGTHS]
    x, n = collate(mels, range(len(mels)), pad_value=0.0)
    batch = student.hidden(x, n)
    for i, mel in enumerate(mels):
        alone = student.hidden(mel[None, None])
        torch.testing.assert_close(batch.pooled_BD[i], alone.pooled_BD[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.logits_BK[i], alone.logits_BK[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", [(3, 3, 3, 3), (3, 3, 1, 3), (3, 3, 3, 1), (3, 3, 1, 1)])
@pytest.mark.parametrize("chunks", [[1] * 60, [7, 1, 30, 2, 20], [60]])
def test_chunks_with_a_carry_are_the_whole(kernels: tuple[int, ...], chunks: list[int]) -> None:
    torch.manual_seed(0)
    arch = StudentArch(channels=(8, 8, 12, 12), time_kernels=kernels, out_channels=8)
    model = StudentNet(arch, 16, 3).eval()
    x = torch.randn(1, 1, 16, 60)
    whole = model.hidden(x).frames_BCT
    left, right = model.context
    field, stride = model.receptive_field, model.stride
    carry, out = torch.zeros(1, 1, 16, left), []
    pieces = [*x.split(chunks, dim=3), torch.zeros(1, 1, 16, right)]  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for piece in pieces:
            carry = torch.cat([carry, piece], dim=3)
            n = max(0, (carry.shape[3] - field) // stride + 1)
            if n:
                out.append(model.trunk(carry[..., : field + (n - 1) * stride]))
                carry = carry[..., n * stride :]
            assert carry.shape[3] < field, "the carry must stay bounded"
    torch.testing.assert_close(torch.cat(out, dim=2), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("frames", LENGTHS)
def test_the_context_gives_every_length_its_frames(student: StudentNet, frames: int) -> None:
    x = torch.randn(1, 1, 16, frames)
    left, right = student.context
    assert left + right == student.receptive_field - 1
    hidden = student.hidden(x)
    expected = -(-frames // student.stride)
    assert hidden.frames_BCT.shape[2] == expected
    assert int(student.frame_lengths(torch.tensor([frames]))) == expected
    torch.testing.assert_close(hidden.frames_BCT, student.trunk(F.pad(x, (left, right))))


def test_a_frame_sees_its_field_around_its_centre_and_no_more(student: StudentNet) -> None:
    x = torch.randn(1, 1, 16, 60, requires_grad=True)
    index = 5
    student.hidden(x).frames_BCT[0, :, index].sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    reached = x.grad.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0]
    left, right = student.context
    centre = int(student.frame_centres(index + 1)[index])
    assert int(reached.min()) >= centre - left
    assert int(reached.max()) <= centre + right
    assert int(reached.max() - reached.min()) + 1 == student.receptive_field


def test_the_presets_have_the_fields_that_the_docs_promise() -> None:
    assert StudentNet(StudentArch(), 64, 10).receptive_field == 31
    short = StudentArch(time_kernels=(3, 3, 3, 1, 1))
    assert StudentNet(short, 64, 10).receptive_field == 15
    sizes = [
        sum(p.numel() for p in StudentNet(arch, 64, 10).parameters())
        for arch in STUDENT_PRESETS.values()
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] > 8_000
    assert sizes[-1] < 400_000


def test_the_collapsed_head_is_projector_and_head(student: StudentNet) -> None:
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


def test_the_reused_head_is_frozen_and_a_copy(student: StudentNet, teacher: ResNetTeacher) -> None:
    fresh = ReusedHead(8, teacher.head)
    assert not any(p.requires_grad for p in fresh.head.parameters())
    assert all(p.requires_grad for p in fresh.projector.parameters())
    with torch.no_grad():
        fresh.head.weight.zero_()
    assert teacher.head.weight.abs().sum() > 0


def test_a_projector_between_equal_sizes_starts_as_the_identity(teacher: ResNetTeacher) -> None:
    head = ReusedHead(teacher.channels, teacher.head)
    s_BD = torch.randn(4, 2 * teacher.channels)
    torch.testing.assert_close(head(s_BD), teacher.head(s_BD))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"channels": (8, 8), "time_kernels": (3,)}, "same length"),
        ({"channels": (8,), "time_kernels": (3,)}, "two layers"),
        ({"channels": (8, 8), "time_kernels": (3, 5)}, "1 and 3"),
        ({"channels": (8, 8, 8), "time_kernels": (3, 1, 3)}, "start with 3, 3"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict[str, tuple[int, ...]], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        StudentArch(**fields)


def test_costs_are_counted_from_what_runs(student: StudentNet, spec: MelSpec) -> None:
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
