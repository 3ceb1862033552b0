"""The student: a trunk that streams exactly, statistics pooling and an affine head.

Shape legend: B batch, M mel bands, T frames, C channels, D = 2C pooled statistics, K classes.

No layer of the trunk pads along time and none mixes the whole clip before the pooling, so a frame
feature depends on ``receptive_field`` mel frames only: a stream that carries ``receptive_field -
stride`` of them gives the offline answer. The clip as a whole gets ``context`` frames of 0 (the
training mean) before its start and after its end: a stream starts with them and is flushed with
them. So onsets and short clips count in full, and a clip of any length has a frame feature; see
docs/LOG.md for what that is worth.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.models.config import StudentArch
from frami_edge.models.hidden import Hidden
from frami_edge.models.pooling import StatsPool
from frami_edge.models.trunks.depthwise import build_trunk


class ReusedHead(nn.Module):
    """The teacher's own head behind an affine projector of the pooled statistics.

    ``z = W_t (P s + p) + b_t``: both maps are affine, so that at export they are one matrix
    ``W_t P`` with bias ``W_t p + b_t``: reuse costs nothing on the device.
    Source: D. Chen et al., *Knowledge Distillation with the Reused Teacher Classifier*, CVPR 2022;
    the projector stands after the pooling, because a standard deviation does not commute with it.

    Args:
        channels: C of the student's frame features.
        teacher_head: The teacher's affine head, (K, 2 C_t); copied and frozen.
    """

    def __init__(self, channels: int, teacher_head: nn.Linear) -> None:
        super().__init__()
        self.head = copy.deepcopy(teacher_head).requires_grad_(False)
        self.projector = nn.Linear(2 * channels, teacher_head.in_features)
        if self.projector.in_features == self.projector.out_features:
            nn.init.eye_(self.projector.weight)
            nn.init.zeros_(self.projector.bias)

    def forward(self, s_BD: Tensor) -> Tensor:
        """Pooled statistics of the student (B, 2C) to logits (B, K)."""
        logits: Tensor = self.head(self.projector(s_BD))
        return logits

    def collapse(self) -> nn.Linear:
        """The same map as one layer, computed in float64."""
        w, b = self.head.weight.double(), self.head.bias.double()
        one = nn.Linear(self.projector.in_features, self.head.out_features)
        with torch.no_grad():
            one.weight.copy_((w @ self.projector.weight.double()).float())
            one.bias.copy_((w @ self.projector.bias.double() + b).float())
        return one.to(self.head.weight.device)


class Student(nn.Module):
    """Normalised log-mels (B, 1, M, T) to logits (B, K).

    Args:
        arch: Widths and kernels.
        n_mels: Mel bands (M).
        n_classes: Classes (K).
        teacher_head: Reuse this head behind an affine projector; own head where None.
    """

    def __init__(
        self, arch: StudentArch, n_mels: int, n_classes: int, teacher_head: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.arch, self.n_mels, self.n_classes = arch, n_mels, n_classes
        self.trunk, self.receptive_field, self.stride = build_trunk(arch)
        self.channels = arch.out_channels
        self.pool = StatsPool()
        self.head: nn.Module
        if teacher_head is None:
            self.head = nn.Linear(2 * self.channels, n_classes)
        else:
            self.head = ReusedHead(self.channels, teacher_head)

    @property
    def pool_eps(self) -> float:
        """Added to the variance in the pooling."""
        return self.pool.eps

    @property
    def context(self) -> tuple[int, int]:
        """Mel frames of 0 before the start and after the end of a clip."""
        left = (self.receptive_field - 1) // 2
        return left, self.receptive_field - 1 - left

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Frame features that clips of so many mel frames give."""
        return (lengths_B - 1) // self.stride + 1

    def frame_centres(self, frames: int, device: torch.device | None = None) -> Tensor:
        """(frames,) mel frame at which each frame feature is centred."""
        return torch.arange(frames, device=device) * float(self.stride)

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features (B, C, ceil(T / stride)), pooled statistics (B, D) and logits (B, K).

        A padded batch must be padded with 0, the value of the context: then each clip is as if
        alone.
        """
        frames_BCT = self.trunk(F.pad(x_B1MT, self.context))
        n_B = None if lengths_B is None else self.frame_lengths(lengths_B)
        pooled_BD = self.pool(frames_BCT, n_B)
        return Hidden(frames_BCT, pooled_BD, self.head(pooled_BD))

    def forward(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        return self.hidden(x_B1MT, lengths_B).logits_BK

    def collapsed_head(self) -> tuple[Tensor, Tensor]:
        """Weight (K, 2C) and bias (K,) of the whole map from pooled statistics to logits."""
        head = self.head.collapse() if isinstance(self.head, ReusedHead) else self.head
        assert isinstance(head, nn.Linear)
        return head.weight.detach(), head.bias.detach()

    def collapse(self) -> Student:
        """A copy that ships: the reused head and its projector are one matrix."""
        copied = copy.deepcopy(self)
        if isinstance(copied.head, ReusedHead):
            copied.head = copied.head.collapse()
        return copied
