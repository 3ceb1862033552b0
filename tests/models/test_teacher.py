from __future__ import annotations

import pytest
import torch

from frami_edge.config import TeacherArch
from frami_edge.data.store import collate
from frami_edge.models import ResNetTeacher
from frami_edge_runtime.melspec import MelSpec

LENGTHS = [1, 2, 3, 4, 5, 7, 13, 40, 41]


@pytest.mark.parametrize("padding", [0.0, 9.0])
def test_a_masked_batch_is_each_clip_alone(teacher: ResNetTeacher, padding: float) -> None:
    mels = [torch.randn(teacher.n_mels, t) for t in LENGTHS]
    x, n = collate(mels, range(len(mels)), pad_value=padding)
    batch = teacher.hidden(x, n)
    for i, mel in enumerate(mels):
        alone = teacher.hidden(mel[None, None])
        frames = alone.frames_BCT.shape[2]
        torch.testing.assert_close(
            batch.frames_BCT[i, :, :frames], alone.frames_BCT[0], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(batch.pooled_BD[i], alone.pooled_BD[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.logits_BK[i], alone.logits_BK[0], atol=1e-5, rtol=1e-5)


def test_without_lengths_the_padding_counts(teacher: ResNetTeacher) -> None:
    x, n = collate([torch.randn(16, 10), torch.randn(16, 40)], [0, 1], pad_value=0.0)
    assert (teacher(x)[0] - teacher(x, n)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("frames", LENGTHS)
def test_one_frame_feature_per_stride(teacher: ResNetTeacher, frames: int) -> None:
    hidden = teacher.hidden(torch.randn(2, 1, 16, frames))
    expected = -(-frames // teacher.frame_stride)
    assert hidden.frames_BCT.shape == (2, teacher.channels, expected)
    assert hidden.pooled_BD.shape == (2, 2 * teacher.channels)
    assert hidden.logits_BK.shape == (2, 5)


def test_frame_features_are_centred_where_they_say() -> None:
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 8, 8), blocks=1), 16, 3).eval()
    x = torch.randn(1, 1, 16, 240, requires_grad=True)
    index = 30
    model.hidden(x).frames_BCT[0, :, index].abs().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    reached = x.grad.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0]
    centre = float(reached.min() + reached.max()) / 2
    assert abs(centre - (index * model.frame_stride + model.frame_offset)) <= model.frame_stride / 2


def test_the_head_is_what_comes_after_the_pooling(teacher: ResNetTeacher) -> None:
    hidden = teacher.hidden(torch.randn(3, 1, 16, 24))
    torch.testing.assert_close(teacher.head(hidden.pooled_BD), hidden.logits_BK)


def test_dropout_is_off_outside_training(spec: MelSpec) -> None:
    model = ResNetTeacher(TeacherArch(channels=(8, 8), blocks=1, dropout=0.5), spec.n_mels, 3)
    x = torch.randn(4, 1, spec.n_mels, 20)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
