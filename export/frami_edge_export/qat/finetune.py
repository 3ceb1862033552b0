"""Quantisation-aware fine-tuning without data: the int8 student learns to say what it said in fp32.

Self-distillation on the bank: no teacher, no label, no recording; `QatLoss` has the formula.
Pooling and head stay float and fixed. BatchNorm was folded when the fp32 graph was made: these are
the exported weights.

Shape legend: N clips, M mel bands, T mel frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from frami_edge_export.errors import ExportError
from frami_edge_export.parity import BATCH, Head, cpu_session, run_trunk
from frami_edge_export.qat.loss import QatLoss
from frami_edge_export.qat.options import QatOptions
from frami_edge_export.qat.requantise import GivenRanges, float_weights, with_weights
from frami_edge_export.qat.state import EVERY, QatState, key_of
from frami_edge_export.qat.torch_graph import TorchTrunk
from frami_edge_export.quantise import Flavour, Quantiser

Array = npt.NDArray[np.float32]
Progress = Callable[[int, float], None]
"""Step from 1, and its loss."""


@dataclass(frozen=True)
class Target:
    """One int8 graph that will be written: training rounds as it does."""

    flavour: Flavour
    float_layers: frozenset[str]


@dataclass(frozen=True)
class QatResult:
    """Fine-tuned weights and ranges."""

    quantiser: Quantiser
    """Gives int8 graphs of the fine-tuned trunk, in any flavour."""
    trunk: onnx.ModelProto
    """The fp32 graph with the fine-tuned weights; a means to int8, not a file to ship."""
    losses: tuple[float, ...]
    """One a step."""
    seconds: float

    def record(self, options: QatOptions) -> dict[str, Any]:
        """For the report: options, time, mean loss of the first and the last tenth."""
        tenth = max(1, len(self.losses) // 10)
        return {
            **options.to_dict(),
            "seconds": round(self.seconds, 3),
            "loss_first": float(np.mean(self.losses[:tenth])),
            "loss_last": float(np.mean(self.losses[-tenth:])),
        }


def qat_finetune(
    trunk: onnx.ModelProto,
    quantiser: Quantiser,
    head: Head,
    mels_N1MT: Array,
    targets: Sequence[Target],
    options: QatOptions,
    progress: Progress | None = None,
    kept: QatState | None = None,
) -> QatResult:
    """Fine-tune a trunk for the grids of the graphs that will be written.

    Args:
        trunk: The fp32 graph; not changed.
        quantiser: Of that graph, with its calibration table.
        head: Pooling and head.
        mels_N1MT: Clamped synthetic mels with their context: the calibration set, never what judges
            the result.
        targets: Graphs to train for, in turn, on shared weights and ranges.
        options: Steps, rates and weights.
        progress: Called after every step.
        kept: Where the state is saved now and then, from which the same call goes on; also saved
            where `progress` raises KeyboardInterrupt.

    Raises:
        ExportError: No target, no mels, or the loss is not finite.
        GraphError: The trunk has an operator that cannot be trained.
    """
    if not targets or len(mels_N1MT) == 0:
        raise ExportError(
            "Fine-tuning with fake quantisation needs an int8 graph and synthetic mels.",
            fix="Add --int8 and a bank, or leave out --qat.",
        )
    started = time.perf_counter()
    weights = {n: torch.from_numpy(v).requires_grad_() for n, v in float_weights(trunk).items()}
    learned = options.range_lr > 0
    widths = {n: torch.zeros(()).requires_grad_(learned) for n in quantiser.ranges}
    rivals = [
        TorchTrunk(quantiser.graph(t.flavour, t.float_layers), weights, widths) for t in targets
    ]
    session = cpu_session(trunk)
    loss_of = QatLoss(head, run_trunk(session, mels_N1MT[: 4 * BATCH]), options)
    optimiser = torch.optim.Adam(
        [
            {"params": list(weights.values()), "lr": options.lr},
            {"params": list(widths.values()) if learned else [], "lr": options.range_lr},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, options.steps))
    state = _Training(weights, widths, optimiser, schedule)
    key = ""
    if kept is not None:
        aims = [[t.flavour.name, sorted(t.float_layers)] for t in targets]
        facts = [aims, options.to_dict(), quantiser.ranges, torch.__version__]
        key = key_of([trunk.SerializeToString(deterministic=True), mels_N1MT.tobytes()], facts)
        state.load(kept.load(key))
    losses = state.losses
    for step, index in enumerate(_batches(len(mels_N1MT), options)):
        if step < len(losses):
            continue
        x = mels_N1MT[index]
        loss = loss_of(rivals[step % len(rivals)](torch.from_numpy(x)), run_trunk(session, x))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ExportError(
                f"The loss of step {step + 1} of --qat is not finite.", fix="Use a lower rate."
            )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        losses.append(value)
        if kept is not None and (step + 1) % EVERY == 0:
            kept.save(key, state.saved())
        try:
            if progress is not None:
                progress(step + 1, losses[-1])
        except KeyboardInterrupt:
            if kept is not None:
                kept.save(key, state.saved())
            raise
    tuned = with_weights(trunk, {n: w.detach().numpy().copy() for n, w in weights.items()})
    ranges = {
        name: (low * factor, high * factor)
        for name, (low, high) in quantiser.ranges.items()
        for factor in [math.exp(float(widths[name].detach()))]
    }
    seconds = time.perf_counter() - started
    return QatResult(GivenRanges(tuned, ranges), tuned, tuple(losses), seconds)


@dataclass
class _Training:
    """Everything that a step changes."""

    weights: dict[str, Tensor]
    widths: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)

    def saved(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "weights": {n: w.detach() for n, w in self.weights.items()},
            "widths": {n: w.detach() for n, w in self.widths.items()},
            "optimiser": self.optimiser.state_dict(),
            "last_step": self.schedule.last_epoch,
            "losses": list(self.losses),
        }

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from `saved`; nothing for None."""
        if state is None:
            return
        with torch.no_grad():
            for name, own in (("weights", self.weights), ("widths", self.widths)):
                for key, value in state[name].items():
                    own[key].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.last_epoch = state["last_step"]
        self.losses = list(state["losses"])


def _rate(step: int, steps: int) -> float:
    """A tenth of the steps up, for Adam's first ones are as large as any; then a cosine down."""
    up = min(1.0, (step + 1) / max(1, steps // 10))
    return up * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batches(count: int, options: QatOptions) -> Iterator[npt.NDArray[np.int64]]:
    """``options.steps`` batches of indices, every clip once before any is seen again."""
    rng = np.random.default_rng(options.seed)
    size = min(options.batch, count)
    order = rng.permutation(count)
    for _ in range(options.steps):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:size]
        order = order[size:]
