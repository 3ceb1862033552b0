"""The distillation terms: logits, and the hidden states before and after the statistics pooling.

Shape legend: B batch, C channels, T frames, D = 2C pooled statistics, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.models.hidden import Hidden, TeacherLike
from frami_edge.models.student import ReusedHead, Student


def logits_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """``τ² KL(softmax(z_t / τ) ‖ softmax(z_s / τ))``, mean over the batch.

    Source: G. Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015; τ² keeps the
    size of the gradient when τ changes.
    """
    s = (student_BK.float() / temperature).log_softmax(1)
    t = (teacher_BK.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(s, t, log_target=True, reduction="batchmean")


def align_frames(h_BCT: Tensor, positions: Tensor) -> Tensor:
    """Frame features at fractional frame positions, linearly interpolated and held at the ends.

    Args:
        h_BCT: Frame features of the teacher.
        positions: (T',) where to read, in frames of ``h_BCT``.

    Returns:
        (B, C, T').
    """
    position = positions.clamp(0, h_BCT.shape[2] - 1)
    low = position.floor().long().clamp_max(max(0, h_BCT.shape[2] - 2))
    high = (low + 1).clamp_max(h_BCT.shape[2] - 1)
    part = (position - low).to(h_BCT.dtype)
    return h_BCT[:, :, low] * (1 - part) + h_BCT[:, :, high] * part


@dataclass
class FeatureScale:
    """Variances of the teacher's hidden states over the bank: each feature counts alike.

    Attributes:
        frames_C: Of each channel of the frame features.
        pooled_D: Of each pooled statistic.
    """

    frames_C: Tensor
    pooled_D: Tensor

    @classmethod
    def measure(cls, hidden: Hidden) -> FeatureScale:
        """From one large batch; small variances are raised, so that dead features stay harmless."""
        frames_C = hidden.frames_BCT.float().var(dim=(0, 2))
        pooled_D = hidden.pooled_BD.float().var(dim=0)
        return cls(
            frames_C.clamp_min(0.05 * frames_C.mean()), pooled_D.clamp_min(0.05 * pooled_D.mean())
        )


class HiddenMatch(nn.Module):
    """Match the student's hidden states to the teacher's, before and after the pooling.

    ``L_before = mean (P_f h_s - h_t)² / var(h_t)``, frame by frame at the same mel frame, and
    ``L_after = mean (P s_s - s_t)² / var(s_t)``, where P is the projector that leads into the
    reused head. The frame projector P_f is the identity where the student has the teacher's C; it
    is thrown away after training in any case.
    Source: our reading of Z. Kang et al., *FRAMI*, ICASSP 2023: "the hidden states before and
    after the statistics pooling layer are reused".
    """

    scale_C: Tensor
    scale_D: Tensor

    def __init__(self, student: Student, teacher: TeacherLike, scale: FeatureScale) -> None:
        super().__init__()
        c_s, c_t = student.channels, teacher.channels
        self.frame_projector: nn.Module = nn.Identity() if c_s == c_t else nn.Conv1d(c_s, c_t, 1)
        # Without the teacher's head there is no projector to lend: a plain one stands in.
        self.pooled_projector: nn.Module | None = None
        if not isinstance(student.head, ReusedHead):
            self.pooled_projector = nn.Linear(2 * c_s, teacher.pooled_size)
        self.stride, self.offset = teacher.frame_stride, teacher.frame_offset
        self.register_buffer("scale_C", scale.frames_C)
        self.register_buffer("scale_D", scale.pooled_D)

    def before(self, student: Student, s: Hidden, t: Hidden) -> Tensor:
        """The frame-feature term; the student's frames are compared where they are centred."""
        centres = student.frame_centres(s.frames_BCT.shape[2], s.frames_BCT.device)
        target = align_frames(t.frames_BCT.float(), (centres - self.offset) / self.stride)
        error = (self.frame_projector(s.frames_BCT.float()) - target).square()
        return torch.mean(error / self.scale_C[None, :, None])

    def after(self, student: Student, s: Hidden, t: Hidden) -> Tensor:
        """The pooled-statistics term."""
        head = student.head
        projector = head.projector if isinstance(head, ReusedHead) else self.pooled_projector
        assert projector is not None
        error = (projector(s.pooled_BD) - t.pooled_BD.float()).square()
        return torch.mean(error / self.scale_D)
