"""Is this calibration set plausible? BatchNorm remembers what every layer saw in training.

Shape legend: N samples, M mel bands, T mel frames, C channels of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from frami_edge_export.errors import CalibrationError
from frami_edge_export.options import ExportOptions
from frami_edge_export.report import Gate
from frami_edge_export.scoring import BATCH

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class LayerRange:
    """What one BatchNorm layer sees on the calibration set, in units of its running statistics."""

    name: str
    shift: float
    """Mean over channels of |mean - running mean| / running standard deviation."""
    spread: float
    """Geometric mean over channels of standard deviation / running standard deviation."""

    @property
    def ratio(self) -> float:
        """How far the spread is off, either way; at least 1."""
        return max(self.spread, 1 / self.spread)


class _Moments:
    """Sums per channel in float64, over any number of batches."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach().double()
        axes = [i for i in range(x.ndim) if i != 1]
        self.count += x.numel() // x.shape[1]
        self.total = self.total + x.sum(dim=axes)
        self.squares = self.squares + x.square().sum(dim=axes)


def calibration_ranges(
    trunk: nn.Module, mels_N1MT: npt.NDArray[np.float32]
) -> tuple[LayerRange, ...]:
    """Compare every layer's input with its BatchNorm statistics.

    Args:
        trunk: Of the torch student, in evaluation mode on the CPU; hooks are removed on return.
        mels_N1MT: The clamped calibration set, with its context.

    Returns:
        One record a live BatchNorm layer, in order; empty where there is none.
    """
    layers = {
        name: module
        for name, module in trunk.named_modules()
        if isinstance(module, _BATCH_NORMS) and module.running_mean is not None
    }
    moments = {name: _Moments() for name in layers}
    handles = []
    try:
        for name, module in layers.items():
            handles.append(module.register_forward_pre_hook(moments[name]))
        with torch.inference_mode():
            for i in range(0, len(mels_N1MT), BATCH):
                trunk(torch.from_numpy(mels_N1MT[i : i + BATCH]))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_compare(name, layers[name], moments[name]) for name in layers)


def _compare(name: str, layer: nn.Module, moments: _Moments) -> LayerRange:
    assert isinstance(layer, _BATCH_NORMS)
    assert isinstance(layer.running_mean, Tensor)
    assert isinstance(layer.running_var, Tensor)
    mean_C = torch.as_tensor(moments.total) / moments.count
    var_C = (torch.as_tensor(moments.squares) / moments.count - mean_C.square()).clamp_min(0)
    # eps, as BatchNorm itself adds it: a dead channel has no spread to compare.
    expected_C = (layer.running_var.double() + layer.eps).sqrt()
    shift = ((mean_C - layer.running_mean.double()).abs() / expected_C).mean()
    spread = ((var_C + layer.eps).sqrt() / expected_C).log().mean().exp()
    return LayerRange(name, float(shift), float(spread))


def calibration_gates(layers: Sequence[LayerRange], options: ExportOptions) -> tuple[Gate, ...]:
    """The typical layer must be neither too wide, too narrow nor elsewhere.

    Raises:
        CalibrationError: It is: ranges from such a set would ruin the student.
    """
    if not layers:
        return ()
    # The median, because mixing and augmentation put single layers off without harm to the ranges.
    ratio = math.exp(float(np.median([math.log(layer.ratio) for layer in layers])))
    shift = float(np.median([layer.shift for layer in layers]))
    gates = (
        Gate.at_most("calibration spread against BatchNorm", ratio, options.max_range_ratio),
        Gate.at_most("calibration shift against BatchNorm", shift, options.max_range_shift),
    )
    if not all(gate.passed for gate in gates):
        worst = max(layers, key=lambda layer: math.log(layer.ratio) + layer.shift)
        raise CalibrationError(
            f"The calibration set does not look like what the student was trained on: its layers "
            f"spread {ratio:.1f}x off (at most {options.max_range_ratio:g}) and are shifted by "
            f"{shift:.1f} standard deviations (at most {options.max_range_shift:g}); worst is "
            f"{worst.name}.",
            fix="Calibrate on the student's own bank of synthetic mels, normalised by its MelSpec; "
            "random numbers will not do.",
        )
    return gates
