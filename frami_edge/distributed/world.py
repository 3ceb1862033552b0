"""Which process this is, of how many, and the one group they form."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from frami_edge.errors import ConfigError, RunError

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
