"""What is recorded about a quantisation: in the report, in the model file and in ``calib.json``."""

from __future__ import annotations

from typing import Any

import onnx

from frami_edge_export.calibration import CalibrationSet
from frami_edge_export.files import sha256
from frami_edge_export.int8_search import Candidate, Int8Result
from frami_edge_export.metadata import serialised
from frami_edge_export.quantise import METHOD, OP_TYPES, Quantiser
from frami_edge_export.report import Artifact, Calibration
from frami_edge_export.scoring import Comparison
from frami_edge_runtime.modelfile import ModelInfo


def calibration_record(sample: CalibrationSet, source: str) -> Calibration:
    """Which samples were used."""
    return Calibration(
        source, len(sample.ranges), len(sample.holdout), sample.digest, sample.clamped
    )


def calibration_table(
    trunk: onnx.ModelProto, quantiser: Quantiser, used: Calibration
) -> dict[str, Any]:
    """``calib.json``: the ranges, keyed by model, samples and options."""
    key = {
        "model_sha256": sha256(serialised(trunk)),
        "samples_sha256": used.sha256,
        "method": METHOD,
        "op_types": OP_TYPES,
    }
    return {
        "schema": 1,
        **key,
        "source": used.source,
        "samples": used.samples,
        "ranges": {tensor: list(pair) for tensor, pair in quantiser.ranges.items()},
    }


def int8_info(
    info: ModelInfo, made: Candidate, used: Calibration, table: dict[str, Any]
) -> ModelInfo:
    """The int8 file's description; tables stay out of it, their hashes are in."""
    return info.replace(
        precision="int8",
        quantisation={
            "scheme": "static Q/DQ, per-channel weights",
            "flavour": made.flavour.name,
            "float_layers": sorted(made.float_layers),
            "bias_correction": made.corrected,
        },
        calibration={
            "source": used.source,
            "samples": used.samples,
            "sha256": used.sha256,
            "method": METHOD,
            "model_sha256": table["model_sha256"],
        },
    )


def int8_artifact(name: str, path: str, made: Candidate, purpose: str) -> Artifact:
    """The artefact before it is timed and written."""
    c = made.comparison
    return Artifact(
        name=name,
        path=path,
        kind="streaming",
        precision="int8",
        bytes=0,
        max_abs_difference=c.max_abs_difference,
        agreement=c.agreement,
        sqnr_db=c.sqnr_db,
        purpose=purpose,
    )


def quantisation_record(found: Int8Result, levels: Comparison, level_db: float) -> dict[str, Any]:
    """How the int8 graph was chosen, and how it does at other levels than those of the set."""
    return {
        "flavour": found.chosen.flavour.name,
        "float_layers": sorted(found.chosen.float_layers),
        "bias_correction": found.chosen.corrected,
        "fallback": list(found.fallback),
        "levels": {
            "level_db": level_db,
            "agreement": levels.agreement,
            "sqnr_db": levels.sqnr_db,
        },
        "tried": list(found.tried),
        "reason": found.reason,
    }
