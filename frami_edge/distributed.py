"""Several processes, one result: what a run needs to know of the others, and how rows are shared.

Without torchrun every function here is the identity, and a run is what it was.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frami_edge.errors import ConfigError, RunError

# --- Which process this is, of how many, and the one group they form

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another: rank 0 draws pictures while the others wait."""
_LOST = ("gloo", "nccl", "connection", "socket", "timed out", "store", "broken pipe")


class LostProcessError(RunError):
    """Another process of the run has gone; it has said why, or was killed."""


@dataclass(frozen=True)
class World:
    """The processes that work on one run.

    Attributes:
        rank: Which of them this one is.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0


def world() -> World:
    """The processes of this run; one where nobody started more."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def launched() -> bool:
    """Whether torchrun started this process along with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def rank_device(requested: str) -> str:
    """The device of this process: on GPUs its own one, by LOCAL_RANK.

    Raises:
        ConfigError: One GPU was named for several processes, or there are too few of them.
    """
    if not launched() or requested == "cpu":
        return requested
    if requested.startswith("cuda:"):
        raise ConfigError(
            f"--device {requested} would give one GPU to every process of torchrun.",
            fix="Use --device cuda: each process takes the GPU of its local rank.",
        )
    if requested == "auto" and not torch.cuda.is_available():
        return "cpu"
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if requested in ("auto", "cuda") and local >= count > 0:
        raise ConfigError(
            f"torchrun started more processes here than there are GPUs ({count}).",
            fix=f"Use --nproc-per-node {count}, or --device cpu.",
        )
    return f"cuda:{local}" if requested in ("auto", "cuda") else requested


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Form the group that torchrun describes in the environment; tensors choose gloo or nccl.

    Args:
        device: As `rank_device` gives it.

    Raises:
        RunError: The others cannot be reached.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"The processes of torchrun did not find each other: {_first_line(error)}.",
            fix="Check --nnodes, --rdzv-endpoint and the network between the nodes.",
        ) from error
    yield world()
    # Not after an error: with a lost process this could wait for it.
    dist.destroy_process_group()


@contextmanager
def lost_processes() -> Iterator[None]:
    """Say in a sentence that another process of the run has gone.

    Raises:
        LostProcessError: In place of what gloo or nccl raise when a process that they need is
            gone.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if world().size > 1:
            error.add_note("If nobody asked for it, another process of this run ended first.")
        raise
    except RuntimeError as error:
        if world().size == 1 or not _is_lost(error):
            raise
        # Torchrun is about to send it; the manifest must be written first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise LostProcessError(
            "Another process of this run has ended, so this one cannot go on.",
            fix="See what it said, or what ended it (memory?); then start again with --resume, "
            "with as many processes as you like.",
        ) from error


def broadcast(value: T) -> T:
    """What rank 0 has, on every rank; plain values and tensors on the CPU."""
    if world().size == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    received: T = box[0]
    return received


def any_process(yes: bool) -> bool:
    """Whether any process says yes; every process has to ask."""
    if world().size == 1:
        return yes
    said = torch.tensor(int(yes))
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return bool(said)


def _is_lost(error: RuntimeError) -> bool:
    """Torch has a type for some of it only; gloo's own errors are known by their words."""
    words = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in words for word in _LOST)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


# --- A batch shared out by rows: each process computes its own, losses are those of the whole ba
# The batch of a step is drawn on every process from the same seed, so it is the same clips in the
# same order however many processes there are. Shape legend: B rows of the whole batch.


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


# --- Mean and variance by channel, as BatchNorm takes them
# Shape legend: B batch, C channels.


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and population variance (C,) of (B, C) or (B, C, ...), in float32.

    On a CPU by the kernel of BatchNorm itself, which takes a tenth of the time of `torch.var_mean`
    over all axes but one.
    """
    x = x.float()
    if x.device.type == "cpu":
        mean_C, var_C = _Moments.apply(x)
        return mean_C, var_C
    var_C, mean_C = torch.var_mean(x, dim=[d for d in range(x.ndim) if d != 1], correction=0)
    return mean_C, var_C


class _Moments(torch.autograd.Function):
    """d mean / dx = 1 / n, d var / dx = 2 (x - mean) / n, with n values of each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        _, mean_C, invstd_C = torch.native_batch_norm(x, None, None, None, None, True, 0.0, 0.0)
        ctx.save_for_backward(x, mean_C)
        # The kernel calls the inverse of 0 zero.
        return mean_C, torch.where(invstd_C == 0, 0.0, invstd_C.pow(-2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean_C = ctx.saved_tensors
        of_mean_C, of_var_C = gradients
        n = x.numel() // x.shape[1]
        slope_C = 2 / n * of_var_C
        offset_C = of_mean_C / n - slope_C * mean_C
        view = (1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(offset_C.view(view), slope_C.view(view), x)


# --- BatchNorm over the clips of every process, on any device
# `torch.nn.SyncBatchNorm` refuses the CPU, and a student trained with statistics of a part of the
# batch is another student. Shape legend: B batch, C channels.


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


# --- Several processes, one result: what a run needs to know of the others, and how rows are sha

__all__ = [
    "Rows",
    "World",
    "any_process",
    "broadcast",
    "rank_device",
    "share_batch_norms",
    "shared_layer_moments",
    "sum_gradients",
    "world",
]
