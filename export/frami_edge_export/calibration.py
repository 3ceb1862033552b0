"""The calibration set of an int8 export: checked, clamped, split, and compared with BatchNorm.

Also `classify_mels`, a model file on many log-mels at once.

Shape legend: N samples, B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from frami_edge_export.errors import CalibrationError, ExportError
from frami_edge_export.graph import sha256
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import BATCH, Array, with_context
from frami_edge_export.report import Gate
from frami_edge_runtime.backends import OrtModel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.pooling import mean_std

BATCH_FRAMES: Final = 4096
"""Mel frames per run, at least one clip: bounds memory."""
MIN_SAMPLES: Final = 16
MAX_CLAMPED: Final = 0.5
"""A larger share outside the physical range is another front end or normalisation."""


def classify_mels(
    path: str | os.PathLike[str] | bytes,
    mels: Sequence[npt.NDArray[np.floating]],
    *,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """Logits of a streaming model file for clips of any lengths.

    Context around the clip, trunk, statistics in float64, head: the definition of
    frami-edge-runtime. Clips of one length share runs.

    Args:
        path: The ``.onnx`` file, or its bytes.
        mels: (M, T_i) normalised log-mels, T_i >= 1.
        threads: CPU threads.

    Returns:
        (N, K) float32, in the order given.

    Raises:
        ModelFileError: The file is no such model.
        ExportError: A mel is not (M, T) of this model's front end, or not finite.
    """
    model = OrtModel(path, threads=threads)
    info = model.info
    around = ((0, 0), (info.context.left, info.context.right))
    by_length: dict[int, list[int]] = {}
    for i, mel in enumerate(mels):
        shaped = mel.ndim == 2 and mel.shape[0] == info.mel.n_mels and mel.shape[1] >= 1
        if not shaped or not np.isfinite(mel).all():
            raise ExportError(
                f"Mel {i} of shape {mel.shape} is not a finite ({info.mel.n_mels}, T), T >= 1.",
                fix="Compute it with the model's own MelSpec from finite samples.",
            )
        by_length.setdefault(mel.shape[1], []).append(i)
    logits_NK = np.empty((len(mels), len(info.labels)), np.float32)
    for length, indices in by_length.items():
        step = max(1, BATCH_FRAMES // (length + info.receptive_field))
        for start in range(0, len(indices), step):
            some = indices[start : start + step]
            x_BMT = np.stack(
                [np.pad(mels[i], around, constant_values=info.context.value) for i in some]
            )
            frames_BCT = model.frames(x_BMT[:, None].astype(np.float32))
            pooled_BD = mean_std(frames_BCT, info.pooling.eps)
            logits_NK[some] = model.logits(pooled_BD.astype(np.float32))
    return logits_NK


@dataclass(frozen=True)
class CalibrationSet:
    """Two parts of one set, (N, 1, M, T) each with the clip's context; the second sets no range."""

    ranges: Array
    holdout: Array
    clamped: float
    """Share of values that were outside the physical range."""
    digest: str
    """SHA-256 of ``ranges``."""


def prepare_calibration(
    samples: npt.NDArray[np.floating] | None,
    mel: MelSpec,
    context: tuple[int, int],
    options: ExportOptions,
) -> CalibrationSet:
    """Check, clamp and split the set; every clip gets its context, so that ranges include it.

    Clamping to the front end's floor and ceiling is worth 9 dB of SQNR on inverted mels, whose
    outliers no microphone can produce and which would stretch every range.

    Args:
        samples: (N, 1, M, T) normalised log-mels.
        mel: The front end.
        context: The student's context, in mel frames.
        options: Sizes of the parts, and the seed of the split.

    Raises:
        CalibrationError: The set cannot be log-mels of this front end.
    """
    x = _checked(samples, mel)
    low, high = mel.floor[None, None, :, None], mel.ceiling[None, None, :, None]
    slack = np.float32(1e-3)
    clamped = float(((x < low - slack) | (x > high + slack)).mean())
    if clamped > MAX_CLAMPED:
        raise CalibrationError(
            f"{clamped:.0%} of the calibration values are outside what the front end can give "
            f"({float(mel.floor.min()):.2f} to {float(mel.ceiling.max()):.2f} normalised).",
            fix="Pass normalised log-mels of this MelSpec: (log(mel) - mean) / std.",
        )
    x = np.clip(x, low, high)
    order = np.random.default_rng(options.seed).permutation(len(x))
    count = min(options.max_calibration, len(x) - max(1, int(len(x) * options.holdout_fraction)))
    ranges = with_context(x[order[:count]], context)
    holdout = with_context(x[order[count : count + options.max_holdout]], context)
    return CalibrationSet(ranges, holdout, clamped, sha256(ranges.tobytes()))


def at_other_levels(
    mels_N1MT: Array, mel: MelSpec, context: tuple[int, int], gain_db: float, seed: int
) -> Array:
    """The same clips louder or softer, each by its own gain between -gain_db and +gain_db.

    A gain shifts a log-mel; the result is clamped to the front end's floor and ceiling.

    Args:
        mels_N1MT: (N, 1, M, T) normalised log-mels with their context, which stays as it is.
        mel: The front end.
        context: The student's context, in mel frames.
        gain_db: Largest gain, dB of the waveform.
        seed: Draws the gains.
    """
    per_db = mel.power * math.log(10) / 20 * mel.log_scale / np.asarray(mel.std)
    gains_N = np.random.default_rng(seed).uniform(-gain_db, gain_db, len(mels_N1MT))
    shift_N1M1 = (gains_N[:, None] * np.broadcast_to(per_db, mel.n_mels))[:, None, :, None]
    low, high = mel.floor[None, None, :, None], mel.ceiling[None, None, :, None]
    left, right = context
    clip = slice(left, mels_N1MT.shape[3] - right)
    shifted = mels_N1MT.copy()
    shifted[..., clip] = np.clip(mels_N1MT[..., clip] + shift_N1M1, low, high)
    return shifted


def _checked(samples: npt.NDArray[np.floating] | None, mel: MelSpec) -> Array:
    if samples is None:
        raise CalibrationError(
            "int8 needs a calibration set, and none was given.",
            fix="Pass synthetic mels of the bank, or export without int8.",
        )
    x = np.asarray(samples)
    shaped = x.ndim == 4 and x.shape[1:3] == (1, mel.n_mels) and x.shape[3] > 0
    if not shaped or not np.issubdtype(x.dtype, np.floating):
        raise CalibrationError(
            f"The calibration set is {x.dtype} of shape {x.shape}, not float (N, 1, {mel.n_mels}, "
            "T).",
            fix="Pass normalised log-mels of the student's own MelSpec, with a channel axis.",
        )
    if len(x) < MIN_SAMPLES or not np.isfinite(x).all():
        raise CalibrationError(
            f"The calibration set has {len(x)} samples; at least {MIN_SAMPLES} are needed, all of "
            "them finite.",
            fix="Take more samples of the bank, or make it again.",
        )
    return x.astype(np.float32)


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class LayerRange:
    """Statistics of one BatchNorm layer's input on the calibration set, in units of its own."""

    name: str
    shift: float
    """Mean over channels of |mean - running mean| / running standard deviation."""
    spread: float
    """Geometric mean over channels of standard deviation / running standard deviation."""

    @property
    def ratio(self) -> float:
        """How far the spread is off, either way; at least 1."""
        return max(self.spread, 1 / self.spread)


def calibration_ranges(trunk: nn.Module, mels_N1MT: Array) -> tuple[LayerRange, ...]:
    """Compare every layer's input with its BatchNorm statistics.

    Args:
        trunk: The torch trunk, in evaluation mode on the CPU; hooks are removed on return.
        mels_N1MT: The clamped calibration set, with its context.

    Returns:
        One record per live BatchNorm layer, in order; empty where there is none.
    """
    layers = {
        name: module
        for name, module in trunk.named_modules()
        if isinstance(module, _BATCH_NORMS) and module.running_mean is not None
    }
    sums: dict[nn.Module, Tensor] = {}

    def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach().double()
        axes = [i for i in range(x.ndim) if i != 1]
        count = torch.full((x.shape[1],), x.numel() / x.shape[1], dtype=torch.float64)
        now_3C = torch.stack([count, x.sum(dim=axes), x.square().sum(dim=axes)])
        sums[module] = sums[module] + now_3C if module in sums else now_3C

    handles = [layer.register_forward_pre_hook(add) for layer in layers.values()]
    try:
        with torch.inference_mode():
            for i in range(0, len(mels_N1MT), BATCH):
                trunk(torch.from_numpy(mels_N1MT[i : i + BATCH]))
    finally:
        for handle in handles:
            handle.remove()
    ranges = []
    for name, layer in layers.items():
        assert isinstance(layer.running_mean, Tensor)
        assert isinstance(layer.running_var, Tensor)
        count_C, total_C, squares_C = sums[layer]
        mean_C = total_C / count_C
        var_C = (squares_C / count_C - mean_C.square()).clamp_min(0)
        # eps, as BatchNorm itself adds it: a dead channel has no spread to compare.
        expected_C = (layer.running_var.double() + layer.eps).sqrt()
        shift = ((mean_C - layer.running_mean.double()).abs() / expected_C).mean()
        spread = ((var_C + layer.eps).sqrt() / expected_C).log().mean().exp()
        ranges.append(LayerRange(name, float(shift), float(spread)))
    return tuple(ranges)


def calibration_gates(layers: Sequence[LayerRange], options: ExportOptions) -> tuple[Gate, ...]:
    """Gates on the typical layer's spread and shift; they pass.

    Raises:
        CalibrationError: One fails: ranges from such a set would ruin the student.
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
