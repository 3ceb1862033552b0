"""BatchNorm over the clips of every process, on any device.

`torch.nn.SyncBatchNorm` refuses the CPU, and a student trained with statistics of a part of the
batch is another student. Shape legend: B batch, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frami_edge.distributed.rows import Rows
from frami_edge.distributed.world import world
from frami_edge.moments import channel_moments


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all processes together.

    Alone, and in evaluation, it is `nn.BatchNorm2d` itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not self.training or world().size == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            mean_C, var_C, count = shared_moments(input)
            self.num_batches_tracked += 1
            # The same factor as nn.BatchNorm2d, unbiased as there.
            weight = self.momentum
            if weight is None:
                weight = 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean_C, weight)
            self.running_var.lerp_(var_C * (count / (count - 1)), weight)
        normalised: Tensor = _Normalise.apply(
            input, self.weight, self.bias, mean_C, var_C, count, self.eps
        )
        return normalised


def share_batch_norms(model: nn.Module) -> None:
    """Replace every 2-D BatchNorm of a network, its tensors staying; nothing alone."""
    if world().size == 1:
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.weight, shared.bias = child.weight, child.bias
                shared.running_mean, shared.running_var = child.running_mean, child.running_var
                shared.num_batches_tracked = child.num_batches_tracked
                shared.train(child.training)
                setattr(module, name, shared)


def shared_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and population variance (C,) of all processes' tensors, and how many values (()).

    The parts are joined by their means and squared deviations, without the cancellation of a
    difference of sums (T. Chan et al., 1979).
    """
    mean_C, var_C = channel_moments(x)
    count = torch.full_like(mean_C[:1], x.numel() // x.shape[1])
    own = torch.cat([mean_C, var_C, count])
    parts = [torch.empty_like(own) for _ in range(world().size)]
    dist.all_gather(parts, own)
    return join_moments(torch.stack(parts))


def shared_layer_moments(
    moments: list[tuple[Tensor, Tensor]], rows: Rows
) -> list[tuple[Tensor, Tensor]]:
    """(mean, population variance) of layers over all rows of a batch, from those over the own rows.

    One message for all layers; the gradient comes back as `Rows.gather` says.
    """
    if rows.world.size == 1:
        return moments
    own = torch.cat([torch.cat(pair) for pair in moments])
    share = own.new_tensor(rows.sizes)[:, None]
    everyone_RS = Rows(rows.world.size).gather(own[None])
    joined = []
    for part_RS in everyone_RS.split([2 * len(mean) for mean, _ in moments], dim=1):
        mean_C, var_C, _ = join_moments(torch.cat([part_RS, share], dim=1))
        joined.append((mean_C, var_C))
    return joined


def join_moments(parts_RS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of parts, each a row [mean (C), variance (C), count], to those of the whole."""
    c = (parts_RS.shape[1] - 1) // 2
    mean_RC, var_RC, count_R1 = parts_RS.split([c, c, 1], dim=1)
    total = count_R1.sum()
    weight_R1 = count_R1 / total
    mean_C = (weight_R1 * mean_RC).sum(0)
    var_C = (weight_R1 * (var_RC + (mean_RC - mean_C).square())).sum(0)
    return mean_C, var_C, total


class _Normalise(torch.autograd.Function):
    """``y = w (x - μ) / sqrt(σ² + ε) + b`` with the gradient through the shared μ and σ²."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        var_C: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_C, mean_C, var_C, count)
        ctx.eps = eps
        return nn.functional.batch_norm(x, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, var_C, count = ctx.saved_tensors
        invstd_C = (var_C + ctx.eps).rsqrt()
        # As if μ and σ² were constants, by torch's own kernel; what goes through them is added.
        dx, dw_C, db_C = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight_C, mean_C, var_C, mean_C, invstd_C, False, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        sums_2C = torch.stack([db_C.float(), dw_C.float()])
        dist.all_reduce(sums_2C)
        db_all, dw_all = sums_2C
        scale_C = weight_C.float() * invstd_C / count
        slope_C = scale_C * invstd_C * dw_all
        offset_C = scale_C * db_all - slope_C * mean_C
        view = (1, -1, *[1] * (x.ndim - 2))
        through = torch.addcmul(offset_C.view(view), slope_C.view(view), x.float())
        return dx.sub_(through), dw_C, db_C, None, None, None, None
