"""A batch shared out by rows: each process computes its own, losses are those of the whole batch.

The batch of a step is drawn on every process from the same seed, so it is the same clips in the
same order however many processes there are. Shape legend: B rows of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from frami_edge.distributed.world import world
from frami_edge.errors import ConfigError


class Rows:
    """The rows of a batch that this process computes; all of them where it is alone.

    Args:
        count: B.

    Raises:
        ConfigError: There are more processes than rows.
    """

    def __init__(self, count: int) -> None:
        self.world, self.count = world(), count
        n, rank = self.world.size, self.world.rank
        if count < n:
            raise ConfigError(
                f"{n} processes cannot share a batch of {count} clips.",
                fix="Use fewer processes or a larger batch_size.",
            )
        few, more = divmod(count, n)
        self.sizes = [few + (r < more) for r in range(n)]
        self.start = sum(self.sizes[:rank])
        self.size = self.sizes[rank]

    @property
    def share(self) -> float:
        """Of the batch."""
        return self.size / self.count

    def take(self, x_B: Tensor) -> Tensor:
        """The own rows of a tensor that holds all."""
        return x_B if self.world.size == 1 else x_B[self.start : self.start + self.size]

    def spread(self, own: Tensor) -> Tensor:
        """The own rows in their place, 0 in all others: for what draws by the row of the batch."""
        if self.world.size == 1:
            return own
        before = own.new_zeros(self.start, *own.shape[1:])
        after = own.new_zeros(self.count - self.start - self.size, *own.shape[1:])
        return torch.cat([before, own, after])

    def gather(self, own: Tensor) -> Tensor:
        """All rows, on every process.

        The gradient of a process's own rows comes back, not the sum over processes: each of them
        computes the same loss from the gathered rows, so `sum_gradients` makes it whole.
        """
        if self.world.size == 1:
            return own
        gathered: Tensor = _Gather.apply(own, self)
        return gathered

    def mean(self, own: Tensor) -> Tensor:
        """The mean over the whole batch of means over the own rows; without a gradient."""
        if self.world.size == 1:
            return own
        total = own.detach() * self.share
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        longest = max(rows.sizes)
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: rows.size] = own
        parts = [torch.empty_like(padded) for _ in rows.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, rows.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows = ctx.rows
        return gradients[0][rows.start : rows.start + rows.size], None


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up what every process found, in one message; nothing where this process is alone."""
    if world().size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    for gradient, whole in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(whole.view_as(gradient))
