"""The int8 files of one export: all from one calibration table, each judged on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from frami_edge_export.bench import interleaved_latency
from frami_edge_export.calibration import CalibrationSet, at_other_levels
from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.graph import described, json_bytes, serialised, sha256
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Array64, Comparison, Head, cpu_session, run_trunk, sqnr_db
from frami_edge_export.quantise import (
    FLAVOURS,
    METHOD,
    OP_TYPES,
    PORTABLE,
    TENSORRT,
    BiasCorrector,
    Flavour,
    Quantiser,
)
from frami_edge_export.report import Artifact, Calibration, Gate
from frami_edge_runtime.modelfile import TRUNK_INPUT, ModelInfo

# --- Choose the int8 graph by measuring: flavour, first layers, layers that must stay float
# Shape legend: N samples, M mel bands, T mel frames, K classes.

Array = npt.NDArray[np.float32]
_LAYER_SAMPLES = 32
_MAX_FIRST = 4
"""So many first layers may stay float for speed: they hold few of the weights."""


@dataclass(frozen=True)
class Candidate:
    """One int8 graph and how it did on the hold-out."""

    flavour: Flavour
    float_layers: frozenset[str]
    model: onnx.ModelProto
    comparison: Comparison
    """With fp32."""
    logits_BK: Array64
    """On the hold-out."""
    corrected: bool = False
    """Its biases take back the shift of each channel's mean (`bias_correction`)."""


@dataclass(frozen=True)
class Int8Result:
    """The chosen graph, and how it was chosen."""

    chosen: Candidate
    tried: tuple[dict[str, Any], ...]
    """Every candidate: flavour, layers left float, p50_ms where timed, agreement, sqnr_db."""
    fallback: tuple[str, ...]
    """Layers that went back to float to pass the agreement gate, in that order."""
    layers: tuple[dict[str, Any], ...]
    """SQNR of the frames where only this layer is int8, worst first."""
    reason: str


class Int8Search:
    """Builds and judges int8 graphs of one trunk.

    Args:
        trunk: The fp32 graph.
        quantiser: With the calibration table.
        corrector: Of the same trunk and calibration mels.
        holdout_N1MT: Mels that set no range, with their context.
        head: Pooling and head.
        trunk_1s: (1, 1, M, T), what is timed.
        options: Gates and budgets.
    """

    def __init__(
        self,
        trunk: onnx.ModelProto,
        quantiser: Quantiser,
        corrector: BiasCorrector,
        holdout_N1MT: Array,
        head: Head,
        trunk_1s: Array,
        options: ExportOptions,
    ) -> None:
        self._quantiser, self._head, self._options = quantiser, head, options
        self._corrector = corrector
        self._holdout, self._trunk_1s = holdout_N1MT, trunk_1s
        self._few = holdout_N1MT[:_LAYER_SAMPLES]
        self._fp32 = cpu_session(trunk)
        self._reference_BK: Array64 = head(run_trunk(self._fp32, holdout_N1MT))
        self._reference_frames = run_trunk(self._fp32, self._few)
        self._tried: list[dict[str, Any]] = []

    def run(self) -> Int8Result:
        """Fastest flavour that passes; then how many first layers; float layers, if need be."""
        rivals = [self._build(flavour, self._first(1)) for flavour in FLAVOURS]
        times = self._time(rivals)
        # A tie goes to the first flavour: noise must not change the file from run to run.
        handicap = [self._options.first_layers_gain, *[1.0] * (len(rivals) - 1)]
        chosen = min(
            zip(rivals, times, handicap, strict=True),
            key=lambda one: (not self._passes(one[0]), one[1] * one[2]),
        )[0]
        listed = ", ".join(
            f"{c.flavour.name} {t:.3f} ms" for c, t in zip(rivals, times, strict=True)
        )
        passing = sum(self._passes(c) for c in rivals)
        why = "is the only one to pass the agreement gate" if passing == 1 else "is fastest"
        if passing != 1 and chosen is rivals[0] and min(times) < times[0]:
            why = f"is fastest within {1 - self._options.first_layers_gain:.0%}"
        reason = f"{chosen.flavour.name} {why} on this CPU ({listed})"
        chosen, reason = self._choose_first_layers(chosen, reason)
        chosen = self._correct(chosen)
        layers = self._layer_sqnr(chosen.flavour)
        fallback: tuple[str, ...] = ()
        if not self._passes(chosen):
            chosen, fallback, reason = self._fall_back(chosen, layers, reason)
        if chosen.corrected:
            reason = f"{reason}; biases are corrected for the shift of each channel's mean"
        return Int8Result(chosen, tuple(self._tried), fallback, layers, reason)

    def settle(self, flavour: Flavour, first: int) -> tuple[Candidate, tuple[str, ...]]:
        """One flavour with so many first layers float, and the layers that had to follow them."""
        chosen = self._correct(self._build(flavour, self._first(first)))
        if self._passes(chosen):
            return chosen, ()
        best, fallback, _ = self._fall_back(chosen, self._layer_sqnr(flavour), "")
        return best, fallback

    def judge(self, candidate: Candidate, mels_N1MT: Array) -> Comparison:
        """A graph against fp32 on other mels, with their context."""
        logits_BK = self._head(run_trunk(cpu_session(candidate.model), mels_N1MT))
        return Comparison.of(self._head(run_trunk(self._fp32, mels_N1MT)), logits_BK)

    def _passes(self, candidate: Candidate) -> bool:
        return candidate.comparison.agreement >= self._options.min_agreement

    def _correct(self, candidate: Candidate) -> Candidate:
        """With corrected biases, where the hold-out is answered better for it."""
        rival = self._build(candidate.flavour, candidate.float_layers, corrected=True)
        before, after = candidate.comparison, rival.comparison
        if after.agreement < before.agreement and before.agreement < self._options.min_agreement:
            return candidate
        return rival if _quality(after) > _quality(before) else candidate

    def _build(
        self, flavour: Flavour, float_layers: Iterable[str], corrected: bool = False
    ) -> Candidate:
        kept = frozenset(float_layers)
        biases = self._corrector.biases(flavour, kept) if corrected else None
        model = self._quantiser.graph(flavour, kept, biases)
        logits_BK = self._head(run_trunk(cpu_session(model), self._holdout))
        comparison = Comparison.of(self._reference_BK, logits_BK)
        candidate = Candidate(flavour, kept, model, comparison, logits_BK, corrected)
        self._tried.append(
            {
                "flavour": flavour.name,
                "float_layers": sorted(kept),
                "bias_correction": corrected,
                "p50_ms": None,
                "agreement": candidate.comparison.agreement,
                "sqnr_db": candidate.comparison.sqnr_db,
            }
        )
        return candidate

    def _time(self, candidates: list[Candidate]) -> list[float]:
        sessions = {str(i): cpu_session(c.model) for i, c in enumerate(candidates)}
        latency = interleaved_latency(
            sessions,
            {name: {TRUNK_INPUT: self._trunk_1s} for name in sessions},
            budget_s=self._options.bench_budget_s,
            max_rounds=self._options.bench_rounds,
        )
        times = [latency[str(i)].p50_ms for i in range(len(candidates))]
        for candidate, p50_ms in zip(candidates, times, strict=True):
            for row in self._tried:
                key = (row["flavour"], row["float_layers"])
                if key == (candidate.flavour.name, sorted(candidate.float_layers)):
                    row["p50_ms"] = p50_ms
        return times

    def _first(self, count: int) -> frozenset[str]:
        return frozenset(self._quantiser.layers[:count])

    def _choose_first_layers(self, chosen: Candidate, reason: str) -> tuple[Candidate, str]:
        """Where the graph goes from float to int8.

        The first maps are the largest and their convolutions the cheapest: converting them to int8
        can cost more than int8 gains on them, and each layer more that stays float adds only
        agreement.
        """
        most = min(_MAX_FIRST, len(self._quantiser.layers) - 1)
        counts = [n for n in range(most + 1) if n != 1]
        rivals = [chosen, *(self._build(chosen.flavour, self._first(n)) for n in counts)]
        times = self._time(rivals)
        best = 0
        for i, rival in enumerate(rivals[1:], start=1):
            if rival.comparison.agreement < chosen.comparison.agreement and not (
                self._passes(rival) and rival.float_layers
            ):
                continue
            if times[i] <= times[best] * self._options.first_layers_gain:
                best = i
        count = len(rivals[best].float_layers)
        if best == 0:
            return chosen, f"{reason}; the first convolution stays float"
        which = "no convolution stays" if count == 0 else f"the first {count} convolutions stay"
        gain = times[0] / times[best]
        return rivals[best], f"{reason}; {which} float: {gain:.2f}x faster than with one"

    def _layer_sqnr(self, flavour: Flavour) -> tuple[dict[str, Any], ...]:
        rows = []
        for layer in self._quantiser.layers:
            model = self._quantiser.graph(flavour, set(self._quantiser.layers) - {layer})
            frames = run_trunk(cpu_session(model), self._few)
            rows.append({"layer": layer, "sqnr_db": sqnr_db(self._reference_frames, frames)})
        return tuple(sorted(rows, key=lambda row: (row["sqnr_db"] is None, row["sqnr_db"] or 0.0)))

    def _fall_back(
        self, chosen: Candidate, layers: tuple[dict[str, Any], ...], reason: str
    ) -> tuple[Candidate, tuple[str, ...], str]:
        best = chosen
        fallback: tuple[str, ...] = ()
        best_layers = fallback
        for row in layers[:-1]:
            if row["layer"] in chosen.float_layers:
                continue
            fallback = (*fallback, row["layer"])
            if len(chosen.float_layers) + len(fallback) == len(self._quantiser.layers):
                break
            kept = chosen.float_layers | set(fallback)
            candidate = self._build(chosen.flavour, kept, chosen.corrected)
            if candidate.comparison.agreement > best.comparison.agreement:
                best, best_layers = candidate, fallback
            if self._passes(candidate):
                candidate, fallback = self._prune(candidate, fallback)
                names = ", ".join(fallback)
                return candidate, fallback, f"{reason}; back to float by SQNR: {names}"
        return best, best_layers, f"{reason}; no choice of float layers passes the agreement gate"

    def _prune(
        self, candidate: Candidate, fallback: tuple[str, ...]
    ) -> tuple[Candidate, tuple[str, ...]]:
        """Back to int8 with every layer that the gate can do without, the least sensitive first."""
        for layer in reversed(fallback[:-1]):
            kept = candidate.float_layers - {layer}
            rival = self._build(candidate.flavour, kept, candidate.corrected)
            if self._passes(rival):
                candidate = rival
                fallback = tuple(name for name in fallback if name != layer)
        return candidate, fallback


def _quality(comparison: Comparison) -> float:
    return np.inf if comparison.sqnr_db is None else comparison.sqnr_db


# --- What is recorded about a quantisation: in the report, in the model file and in ``calib.json


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


# --- The int8 files of one export: all from one calibration table, each judged on its own


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
