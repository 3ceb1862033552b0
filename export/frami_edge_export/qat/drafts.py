"""The fine-tuned int8 files of one export, beside those of plain calibration: each is judged.

Shape legend: N samples, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx

from frami_edge_export.calibration import CalibrationSet
from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.graph import described, json_bytes
from frami_edge_export.int8 import Candidate, calibration_table, int8_artifact, int8_info
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Comparison, Head, cpu_session, run_trunk
from frami_edge_export.qat.finetune import Progress, Target, qat_finetune
from frami_edge_export.qat.options import QatOptions
from frami_edge_export.qat.state import QatState
from frami_edge_export.quantise import Quantiser
from frami_edge_export.report import Calibration, Gate
from frami_edge_runtime.modelfile import ModelInfo

TABLE = "calib.qat.json"
"""The trained ranges, as ``calib.json`` holds the measured ones."""


def add_qat(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head_bytes: bytes,
    head: Head,
    info: ModelInfo,
    sample: CalibrationSet,
    used: Calibration,
    targets: Mapping[str, Target],
    *,
    name: str,
    options: ExportOptions,
    qat: QatOptions,
    progress: Progress | None = None,
    kept: QatState | None = None,
) -> dict[str, Any]:
    """Fine-tune for all targets at once and add one file for each to the bundle.

    Nothing but the state is written here: an interrupted fine-tuning leaves no other file.

    Args:
        bundle: Gets the files, their gates and ``calib.qat.json``.
        trunk: The fp32 graph.
        head_bytes: The head's ONNX file.
        head: Pooling and head.
        info: Of the fp32 file.
        sample: Calibration mels, which are trained on, and the hold-out, which only judges.
        used: The calibration's record.
        targets: Flavour and float layers of each file by artefact name, such as ``int8.qat.cpu``:
            those that the plain int8 files were given, so that the two can be compared.
        name: Prefix of the files.
        options: Gates.
        qat: Steps and rates.
        progress: Called after every step.
        kept: The state of a fine-tuning that goes on.

    Returns:
        The record for the report: options, seconds, loss at the start and the end, and what each
        target would be without fine-tuning.
    """
    quantiser = Quantiser(trunk, sample.ranges)
    tuned = qat_finetune(
        trunk, quantiser, head, sample.ranges, list(targets.values()), qat, progress, kept
    )
    reference_BK = head(run_trunk(cpu_session(trunk), sample.holdout))
    table = calibration_table(trunk, tuned.quantiser, used)
    table = {**table, "method": "fine-tuned", "fine_tuning": qat.to_dict()}
    bundle.files[TABLE] = json_bytes(table)

    def candidate(source: Quantiser, target: Target) -> Candidate:
        model = source.graph(target.flavour, target.float_layers)
        logits_BK = head(run_trunk(cpu_session(model), sample.holdout))
        comparison = Comparison.of(reference_BK, logits_BK)
        return Candidate(target.flavour, target.float_layers, model, comparison, logits_BK)

    before: dict[str, Any] = {}
    for which, target in targets.items():
        made = candidate(tuned.quantiser, target)
        plain = candidate(quantiser, target).comparison
        before[which] = {"agreement": plain.agreement, "sqnr_db": plain.sqnr_db}
        said = int8_info(info, made, used, table)
        said = said.replace(
            quantisation={**(said.quantisation or {}), "fine_tuning": qat.to_dict()}
        )
        purpose = "TensorRT" if target.flavour.symmetric else ""
        artifact = int8_artifact(which, f"{name}.{which}.onnx", made, purpose)
        agreement = made.comparison.agreement
        gate = Gate.at_least(f"{which} agreement with fp32", agreement, options.min_agreement)
        data = described(made.model, said, head_bytes)
        bundle.add(Draft.of(artifact, data, made.model), dataclasses.replace(gate, artifact=which))
    return {**tuned.record(qat), "without": before}
