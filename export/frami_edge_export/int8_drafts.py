"""The int8 files of one export: all from one calibration table, each judged on its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from frami_edge_export.bias_correction import BiasCorrector
from frami_edge_export.calibration import CalibrationSet, at_other_levels
from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.files import json_bytes
from frami_edge_export.int8_search import Candidate, Int8Result, Int8Search
from frami_edge_export.metadata import described
from frami_edge_export.options import ExportOptions
from frami_edge_export.quantise import PORTABLE, TENSORRT, Quantiser
from frami_edge_export.records import (
    calibration_record,
    calibration_table,
    int8_artifact,
    int8_info,
)
from frami_edge_export.report import Calibration, Gate
from frami_edge_export.scoring import Comparison, Head
from frami_edge_runtime.modelfile import ModelInfo


@dataclass(frozen=True)
class Int8Files:
    """How the int8 files of one export came about."""

    found: Int8Result
    tensorrt: Candidate
    """Of ``int8.trt``."""
    calibration: Calibration
    table: dict[str, Any]
    """``calib.json``."""
    levels: Comparison
    """Of ``int8.cpu`` with fp32 on the hold-out at other levels (`ExportOptions.level_db`)."""


def add_int8(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head_bytes: bytes,
    head: Head,
    info: ModelInfo,
    sample: CalibrationSet,
    source: str,
    *,
    trunk_1s: npt.NDArray[np.float32],
    name: str,
    portable: bool,
    options: ExportOptions,
) -> Int8Files:
    """Add ``int8.cpu``, ``int8.trt`` and, if asked for, ``int8.portable`` to the bundle.

    Args:
        bundle: Gets the files, their gates, ``calib.json`` and what a reader must know.
        trunk: The fp32 graph.
        head_bytes: The head's ONNX file, as every streaming file carries it.
        head: Pooling and head, to judge by logits.
        info: Of the fp32 file.
        sample: Calibration mels and hold-out.
        source: What the samples are, for the report.
        trunk_1s: (1, 1, M, T) mel of 1 s with its context, what is timed.
        name: Prefix of the files.
        portable: Make ``int8.portable`` too.
        options: Gates and budgets.
    """
    quantiser = Quantiser(trunk, sample.ranges)
    corrector = BiasCorrector(trunk, quantiser, sample.ranges)
    search = Int8Search(trunk, quantiser, corrector, sample.holdout, head, trunk_1s, options)
    found = search.run()
    used = calibration_record(sample, source)
    table = calibration_table(trunk, quantiser, used)
    bundle.files["calib.json"] = json_bytes(table)

    def add(which: str, made: Candidate, fallen: tuple[str, ...], purpose: str = "") -> None:
        data = described(made.model, int8_info(info, made, used, table), head_bytes)
        artifact = int8_artifact(which, f"{name}.{which}.onnx", made, purpose)
        agreement = made.comparison.agreement
        gate = Gate.at_least(f"{which} agreement with fp32", agreement, options.min_agreement)
        bundle.add(Draft.of(artifact, data, made.model), dataclasses.replace(gate, artifact=which))
        if fallen:
            bundle.notes.append(
                f"{which}: {', '.join(fallen)} went back to float to reach an agreement of "
                f"{options.min_agreement:.0%}."
            )

    add("int8.cpu", found.chosen, found.fallback)
    tensorrt, fallen = search.settle(TENSORRT, quantiser.stem)
    add("int8.trt", tensorrt, fallen, "TensorRT")
    together = Comparison.of(found.chosen.logits_BK, tensorrt.logits_BK).agreement
    bundle.notes.append(f"int8.trt names the same class as int8.cpu on {together:.2%}.")
    if portable:
        add("int8.portable", *search.settle(PORTABLE, len(found.chosen.float_layers)))
    context = (info.context.left, info.context.right)
    other = at_other_levels(sample.holdout, info.mel, context, options.level_db, options.seed)
    levels = search.judge(found.chosen, other)
    if levels.agreement < options.min_agreement:
        bundle.notes.append(
            f"int8.cpu agrees with fp32 on {levels.agreement:.2%} only where sounds are up to "
            f"{options.level_db:g} dB louder or softer than the calibration set."
        )
    return Int8Files(found, tensorrt, used, table, levels)
