"""The student and its loss terms as one module, which DistributedDataParallel can wrap.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frami_edge.device import Choice, autocast
from frami_edge.distillation.config import DistillConfig
from frami_edge.distillation.losses import HiddenMatch, logits_loss
from frami_edge.distributed import world
from frami_edge.models.hidden import Hidden
from frami_edge.models.student import Student


class Terms(nn.Module):
    """The terms of a distillation whose weight is not 0, each a mean over the clips given.

    Args:
        student: Trained.
        match: The terms of the hidden states.
        config: Weights and temperature.
        choice: Device and precision.
        student_autocast: Whether the student runs at low precision too.
    """

    def __init__(
        self,
        student: Student,
        match: HiddenMatch,
        config: DistillConfig,
        choice: Choice,
        student_autocast: bool,
    ) -> None:
        super().__init__()
        self.student, self.match, self.config = student, match, config
        self.choice, self.student_autocast = choice, student_autocast
        weights = {
            "logits": config.logits,
            "before": config.before_pooling,
            "after": config.after_pooling,
        }
        named = tuple(name for name, weight in weights.items() if weight)
        self.names = named
        self.uses_all = len(named) == len(weights)

    def forward(self, x_B1MT: Tensor, t: Hidden) -> tuple[Tensor, Tensor]:
        """The weighted terms in the order of `names`, and the student's logits (B, K)."""
        c, student = self.config, self.student
        kind, dtype = self.choice.device.type, self.choice.dtype
        with autocast(self.choice), torch.autocast(kind, dtype, self.student_autocast):
            s = student.hidden(x_B1MT)
        terms = []
        if c.logits:
            terms.append(c.logits * logits_loss(s.logits_BK, t.logits_BK, c.temperature))
        if c.before_pooling:
            terms.append(c.before_pooling * self.match.before(student, s, t))
        if c.after_pooling:
            terms.append(c.after_pooling * self.match.after(student, s, t))
        return torch.stack(terms), s.logits_BK


def over_processes(terms: Terms) -> nn.Module:
    """Average the gradients of all processes; the module itself where there is one."""
    if world().size == 1:
        return terms
    with warnings.catch_warnings():
        # Torch 2.14 has a new name for `broadcast_buffers`, which 2.11 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            terms,
            # The statistics of `SharedBatchNorm2d` are the same everywhere.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=not terms.uses_all,
        )
