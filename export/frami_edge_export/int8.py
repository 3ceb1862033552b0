"""The int8 files of one export, all from one calibration table. No stopwatch chooses anything.

The layers that stay float are judged on mels that set no range.

Shape legend: N samples, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx

from frami_edge_export.calibration import CalibrationSet, at_other_levels
from frami_edge_export.graph import OnnxStudent, serialised, sha256
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import (
    Array,
    Array64,
    Comparison,
    cpu_session,
    run_trunk,
    sqnr_db,
)
from frami_edge_export.quantise import (
    FLAVOUR_OF,
    METHOD,
    OP_TYPES,
    PORTABLE,
    TENSORRT,
    BiasCorrector,
    Flavour,
    Quantiser,
)
from frami_edge_export.report import Artifact, Calibration, Draft, Gate

_LAYER_SAMPLES: Final = 32
_FEW_LAYERS: Final = 20
"""A correction takes as many passes as there are layers, and a fallback as many corrections. More
layers than these are corrected once, and at most half of them return to float."""


@dataclass(frozen=True)
class Candidate:
    """One int8 graph and its answers on the hold-out."""

    flavour: Flavour
    float_layers: frozenset[str]
    model: onnx.ModelProto
    comparison: Comparison
    """Against fp32."""
    logits_NK: Array64
    biases: Mapping[str, Array] = field(default_factory=dict)
    """New biases by layer, which take back the shift of each channel's mean (`BiasCorrector`)."""


@dataclass(frozen=True)
class Int8Result:
    """The chosen graph, and how it was chosen."""

    chosen: Candidate
    fallback: tuple[str, ...]
    """Layers that went back to float to pass the agreement gate, in that order."""
    layers: tuple[dict[str, Any], ...]
    """SQNR of the frames where only this layer is int8, worst first; may be empty."""
    reason: str


class Int8Search:
    """Builds and judges int8 graphs of one trunk.

    Args:
        student: The fp32 student.
        sample: Calibration mels and hold-out, with their context.
        options: Gates.
    """

    def __init__(
        self, student: OnnxStudent, sample: CalibrationSet, options: ExportOptions
    ) -> None:
        trunk, self._head = student.trunk, student.head
        mel = student.info.mel
        limits = float(mel.floor.min()), float(mel.ceiling.max())
        self.quantiser = Quantiser(trunk, sample.ranges, limits)
        self.tried: list[dict[str, Any]] = []
        """Every candidate: flavour, float layers, bias correction, agreement, sqnr_db."""
        self._corrector = BiasCorrector(trunk, self.quantiser, sample.ranges)
        self._options = options
        self._holdout, self._few = sample.holdout, sample.holdout[:_LAYER_SAMPLES]
        self._fp32 = cpu_session(trunk)
        self._reference_NK: Array64 = self._head(run_trunk(self._fp32, self._holdout))

    def settle(self, flavour: Flavour, *, layers: bool = False) -> Int8Result:
        """The graph of a flavour: its first layers float, and those that the gate needs float.

        Args:
            flavour: Types and places.
            layers: Measure each layer even where the gate passes without.
        """
        count = self.quantiser.stem
        chosen = self._correct(self._build(flavour, self.quantiser.layers[:count]))
        rows = self._layer_sqnr(flavour) if layers or not self._passes(chosen) else ()
        chosen, fallback, fallen = self._fall_back(chosen, rows)
        which = "convolution stays" if count == 1 else f"{count} convolutions stay"
        reason = f"{flavour.name}; the first {which} float{fallen}"
        if chosen.biases:
            reason += "; biases are corrected for the shift of each channel's mean"
        return Int8Result(chosen, fallback, rows, reason)

    def judge(self, candidate: Candidate, mels_N1MT: Array) -> Comparison:
        """Compare a graph with fp32 on other mels, with their context."""
        expected_NK = self._head(run_trunk(self._fp32, mels_N1MT))
        return Comparison.of(
            expected_NK, self._logits(candidate.flavour, candidate.model, mels_N1MT)
        )

    def _logits(self, flavour: Flavour, model: onnx.ModelProto, mels_N1MT: Array) -> Array64:
        return self._head(run_trunk(cpu_session(model, exact=flavour.inputs_only), mels_N1MT))

    def _passes(self, candidate: Candidate) -> bool:
        return candidate.comparison.agreement >= self._options.min_agreement

    def _build(
        self,
        flavour: Flavour,
        float_layers: Iterable[str],
        biases: Mapping[str, Array] | None = None,
    ) -> Candidate:
        kept = frozenset(float_layers)
        biases = {layer: b for layer, b in (biases or {}).items() if layer not in kept}
        model = self.quantiser.graph(flavour, kept, biases)
        logits_NK = self._logits(flavour, model, self._holdout)
        comparison = Comparison.of(self._reference_NK, logits_NK)
        self.tried.append(
            {
                "flavour": flavour.name,
                "float_layers": sorted(kept),
                "bias_correction": bool(biases),
                "agreement": comparison.agreement,
                "sqnr_db": comparison.sqnr_db,
            }
        )
        return Candidate(flavour, kept, model, comparison, logits_NK, biases)

    def _correct(self, candidate: Candidate) -> Candidate:
        """With corrected biases, where that answers the hold-out better."""
        flavour, kept = candidate.flavour, candidate.float_layers
        rival = self._build(flavour, kept, self._corrector.biases(flavour, kept))
        before, after = candidate.comparison, rival.comparison
        if after.agreement < before.agreement and not self._passes(candidate):
            return candidate
        return rival if _quality(after) > _quality(before) else candidate

    def _with_float(self, chosen: Candidate, float_layers: frozenset[str]) -> Candidate:
        """The graph with other layers float, its biases corrected anew where that takes seconds."""
        biases = chosen.biases
        if biases and len(self.quantiser.layers) <= _FEW_LAYERS:
            biases = self._corrector.biases(chosen.flavour, float_layers)
        return self._build(chosen.flavour, float_layers, biases)

    def _layer_sqnr(self, flavour: Flavour) -> tuple[dict[str, Any], ...]:
        """SQNR of the frames with one layer int8 and all others float, worst first."""
        expected, rows = run_trunk(self._fp32, self._few), []
        plain = replace(flavour, aligned=False)
        for layer in self.quantiser.layers:
            model = self.quantiser.graph(plain, set(self.quantiser.layers) - {layer})
            frames = run_trunk(cpu_session(model, exact=flavour.inputs_only), self._few)
            rows.append({"layer": layer, "sqnr_db": sqnr_db(expected, frames)})
        return tuple(sorted(rows, key=lambda row: (row["sqnr_db"] is None, row["sqnr_db"] or 0.0)))

    def _fall_back(
        self, chosen: Candidate, layers: tuple[dict[str, Any], ...]
    ) -> tuple[Candidate, tuple[str, ...], str]:
        """The worst layers in float, one after the other, until the agreement gate passes.

        Layers that the gate can do without then return to int8, the least sensitive first.
        """
        if self._passes(chosen):
            return chosen, (), ""
        fallback: list[str] = []
        count = len(self.quantiser.layers)
        most = count - 1 if count <= _FEW_LAYERS else count // 2
        for row in layers:
            if row["layer"] in chosen.float_layers:
                continue
            fallback.append(row["layer"])
            if len(chosen.float_layers) + len(fallback) > most:
                break
            candidate = self._with_float(chosen, chosen.float_layers | set(fallback))
            if self._passes(candidate):
                for layer in reversed(fallback[:-1]):
                    rival = self._with_float(chosen, candidate.float_layers - {layer})
                    if self._passes(rival):
                        candidate = rival
                        fallback.remove(layer)
                reason = f"; back to float by SQNR: {', '.join(fallback)}"
                return candidate, tuple(fallback), reason
        reason = "; no choice of float layers passes the agreement gate, and none was made"
        return chosen, (), reason


def _quality(comparison: Comparison) -> float:
    return np.inf if comparison.sqnr_db is None else comparison.sqnr_db


@dataclass(frozen=True)
class Int8Files:
    """The int8 files of one export, and how they were made."""

    drafts: list[Draft]
    calibration: Calibration
    table: dict[str, Any]
    """``calib.json``: the ranges, keyed by model, samples and options."""
    quantisation: dict[str, Any]
    """How ``int8.cpu`` was made, and its answers at other levels than those of the set."""
    layers: tuple[dict[str, Any], ...]
    notes: list[str] = field(default_factory=list)


def int8_files(
    student: OnnxStudent,
    sample: CalibrationSet,
    source: str,
    portable: bool,
    options: ExportOptions,
) -> Int8Files:
    """Make ``int8.cpu``, ``int8.trt`` and, where asked for, ``int8.portable``.

    Args:
        student: The fp32 student.
        sample: Calibration mels and hold-out.
        source: Origin of the samples, for the report.
        portable: Make ``int8.portable`` too.
        options: Target and gates.
    """
    search = Int8Search(student, sample, options)
    flavours = {"int8.cpu": FLAVOUR_OF[options.target], "int8.trt": TENSORRT}
    if portable:
        flavours["int8.portable"] = PORTABLE
    results = {
        which: search.settle(flavour, layers=which == "int8.cpu")
        for which, flavour in flavours.items()
    }
    found = results["int8.cpu"]
    model_sha256 = sha256(serialised(student.trunk))
    used = Calibration(
        source, len(sample.ranges), len(sample.holdout), sample.digest, sample.clamped
    )
    table = {
        "schema": 1,
        "model_sha256": model_sha256,
        "samples_sha256": used.sha256,
        "method": METHOD,
        "op_types": OP_TYPES,
        "source": used.source,
        "samples": used.samples,
        "ranges": {tensor: list(pair) for tensor, pair in search.quantiser.ranges.items()},
    }
    info = student.info
    context = (info.context.left, info.context.right)
    other = at_other_levels(sample.holdout, info.mel, context, options.level_db, options.seed)
    levels = search.judge(found.chosen, other)
    return Int8Files(
        drafts=[
            _draft(which, result.chosen, student, used, model_sha256, options)
            for which, result in results.items()
        ],
        calibration=used,
        table=table,
        quantisation={
            "flavour": found.chosen.flavour.name,
            "float_layers": sorted(found.chosen.float_layers),
            "bias_correction": bool(found.chosen.biases),
            "fallback": list(found.fallback),
            "levels": {
                "level_db": options.level_db,
                "agreement": levels.agreement,
                "sqnr_db": levels.sqnr_db,
            },
            "tried": search.tried,
            "reason": found.reason,
        },
        layers=found.layers,
        notes=_notes(results, levels, options),
    )


def _draft(
    which: str,
    made: Candidate,
    student: OnnxStudent,
    used: Calibration,
    model_sha256: str,
    options: ExportOptions,
) -> Draft:
    info = student.info.replace(
        precision="int8",
        quantisation={
            "scheme": "static Q/DQ, per-channel weights",
            "flavour": made.flavour.name,
            "float_layers": sorted(made.float_layers),
            "bias_correction": bool(made.biases),
        },
        calibration={
            "source": used.source,
            "samples": used.samples,
            "sha256": used.sha256,
            "method": METHOD,
            "model_sha256": model_sha256,
        },
    )
    artifact = Artifact(
        name=which,
        path=f"{student.name}.{which}.onnx",
        kind="streaming",
        precision="int8",
        max_abs_difference=made.comparison.max_abs_difference,
        agreement=made.comparison.agreement,
        sqnr_db=made.comparison.sqnr_db,
        purpose="TensorRT" if which == "int8.trt" else "",
    )
    gate = Gate.at_least(
        f"{which} agreement with fp32", made.comparison.agreement, options.min_agreement, which
    )
    data = student.described(made.model, info, exact=made.flavour.inputs_only)
    return Draft(artifact, data, made.model, (gate,))


def _notes(results: dict[str, Int8Result], levels: Comparison, options: ExportOptions) -> list[str]:
    notes = [
        f"{which}: {', '.join(result.fallback)} went back to float to reach an agreement of "
        f"{options.min_agreement:.0%}."
        for which, result in results.items()
        if result.fallback
    ]
    chosen, tensorrt = results["int8.cpu"].chosen, results["int8.trt"].chosen
    together = Comparison.of(chosen.logits_NK, tensorrt.logits_NK).agreement
    notes.append(f"int8.trt predicts the same class as int8.cpu on {together:.2%}.")
    if levels.agreement < options.min_agreement:
        notes.append(
            f"int8.cpu agrees with fp32 on {levels.agreement:.2%} only where sounds are up to "
            f"{options.level_db:g} dB louder or softer than the calibration set."
        )
    return notes
