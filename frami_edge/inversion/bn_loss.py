"""BatchNorm-statistics loss: synthetic clips should excite the teacher as its training data did.

Shape legend: B batch, C channels.
Source: H. Yin et al., *Dreaming to Distill* (DeepInversion), CVPR 2020, eq. 4; the relative form
is ours.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frami_edge.distributed import Rows, shared_layer_moments
from frami_edge.errors import TeacherError
from frami_edge.moments import channel_moments


def live_batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """BatchNorm layers, 1-D and 2-D, that still hold statistics of their training data."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
    ]


class BatchNormStatistics:
    """While entered, watches the input of every BatchNorm of a teacher; `loss` compares it.

    The hooks are removed on leaving, whatever happened inside.

    Raises:
        TeacherError: The teacher has no live BatchNorm (folded, frozen or another norm).
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = live_batch_norms(model)
        if not self.layers:
            raise TeacherError(
                "The teacher has no BatchNorm with running statistics: they were folded into the "
                "weights, or it uses another norm.",
                fix="Give the checkpoint from before folding, or switch the term off with "
                "--set bank.inversion.batch_norm=0 (expect a poorer bank).",
            )
        self._handles: list[Any] = []
        self._observed: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> BatchNormStatistics:
        """Attach the hooks."""
        self._observed.clear()
        for i, (_, layer) in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(self._hook(i)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, index: int) -> Any:
        def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._observed[index] = channel_moments(inputs[0])

        return observe

    def loss(self, rows: Rows | None = None) -> Tensor:
        """Mean over layers of ‖Δμ‖² / Σ(μ² + σ²) + ‖Δσ²‖² / ‖σ²‖².

        Δ is batch minus running statistics. Each layer's error is relative to that layer's own
        scale, so that wide or loud layers do not swamp the class term (a plain sum of norms does).

        Args:
            rows: What of a batch this process has seen; the loss is that of the whole batch.

        Returns:
            Scalar; below about 0.05 the bank's activations look like the training data's.
        """
        errors = []
        moments = list(self._observed.values())
        if rows:
            moments = shared_layer_moments(moments, rows)
        for i, (mean_C, var_C) in zip(self._observed, moments, strict=True):
            layer = self.layers[i][1]
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mu_C, sigma2_C = layer.running_mean.float(), layer.running_var.float()
            shift = (mean_C - mu_C).square().sum() / (mu_C.square() + sigma2_C).sum()
            spread = (var_C - sigma2_C).square().sum() / sigma2_C.square().sum()
            errors.append(shift + spread)
        return torch.stack(errors).mean()
