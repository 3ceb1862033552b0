"""Choose the int8 graph by measuring: flavour, first convolution, layers that must stay float.

Shape legend: N samples, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from frami_edge_export.latency import interleaved_latency
from frami_edge_export.options import ExportOptions
from frami_edge_export.quantise import FLAVOURS, Flavour, Quantiser
from frami_edge_export.scoring import Array64, Comparison, Head, run_trunk, sqnr_db
from frami_edge_export.sessions import cpu_session
from frami_edge_runtime.modelfile import TRUNK_INPUT

Array = npt.NDArray[np.float32]
_LAYER_SAMPLES = 32


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
        holdout_N1MT: Mels that set no range, with their context.
        head: Pooling and head.
        trunk_1s: (1, 1, M, T), what is timed.
        options: Gates and budgets.
    """

    def __init__(
        self,
        trunk: onnx.ModelProto,
        quantiser: Quantiser,
        holdout_N1MT: Array,
        head: Head,
        trunk_1s: Array,
        options: ExportOptions,
    ) -> None:
        self._quantiser, self._head, self._options = quantiser, head, options
        self._holdout, self._trunk_1s = holdout_N1MT, trunk_1s
        self._few = holdout_N1MT[:_LAYER_SAMPLES]
        session = cpu_session(trunk)
        self._reference_BK: Array64 = head(run_trunk(session, holdout_N1MT))
        self._reference_frames = run_trunk(session, self._few)
        self._tried: list[dict[str, Any]] = []

    def run(self) -> Int8Result:
        """Fastest flavour that passes; then the first convolution; float layers, if need be."""
        first = frozenset(self._quantiser.layers[:1])
        rivals = [self._build(flavour, first) for flavour in FLAVOURS]
        times = self._time(rivals)
        order = sorted(range(len(rivals)), key=lambda i: (not self._passes(rivals[i]), times[i]))
        chosen = rivals[order[0]]
        listed = ", ".join(
            f"{c.flavour.name} {t:.3f} ms" for c, t in zip(rivals, times, strict=True)
        )
        passing = sum(self._passes(c) for c in rivals)
        why = "fastest" if passing != 1 else "the only one to pass the agreement gate"
        reason = f"{chosen.flavour.name} is {why} on this CPU ({listed})"
        chosen, reason = self._try_first_conv(chosen, reason)
        layers = self._layer_sqnr(chosen.flavour)
        fallback: tuple[str, ...] = ()
        if not self._passes(chosen):
            chosen, fallback, reason = self._fall_back(chosen, layers, reason)
        return Int8Result(chosen, tuple(self._tried), fallback, layers, reason)

    def settle(self, flavour: Flavour) -> tuple[Candidate, tuple[str, ...]]:
        """One flavour with its first convolution float, and the layers that had to follow it."""
        chosen = self._build(flavour, self._quantiser.layers[:1])
        if self._passes(chosen):
            return chosen, ()
        layers = self._layer_sqnr(flavour)
        best, fallback, _ = self._fall_back(chosen, layers, "")
        return best, fallback

    def _passes(self, candidate: Candidate) -> bool:
        return candidate.comparison.agreement >= self._options.min_agreement

    def _build(self, flavour: Flavour, float_layers: Iterable[str]) -> Candidate:
        kept = frozenset(float_layers)
        model = self._quantiser.graph(flavour, kept)
        logits_BK = self._head(run_trunk(cpu_session(model), self._holdout))
        comparison = Comparison.of(self._reference_BK, logits_BK)
        candidate = Candidate(flavour, kept, model, comparison, logits_BK)
        self._tried.append(
            {
                "flavour": flavour.name,
                "float_layers": sorted(kept),
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

    def _try_first_conv(self, chosen: Candidate, reason: str) -> tuple[Candidate, str]:
        rival = self._build(chosen.flavour, ())
        before, after = self._time([chosen, rival])
        better = (
            after <= before * self._options.first_conv_gain
            and rival.comparison.agreement >= chosen.comparison.agreement
        )
        if better:
            return rival, f"{reason}; the first convolution is int8: {before / after:.2f}x faster"
        return chosen, f"{reason}; the first convolution stays float"

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
            candidate = self._build(chosen.flavour, chosen.float_layers | set(fallback))
            if candidate.comparison.agreement > best.comparison.agreement:
                best, best_layers = candidate, fallback
            if self._passes(candidate):
                names = ", ".join(fallback)
                return candidate, fallback, f"{reason}; back to float by SQNR: {names}"
        return best, best_layers, f"{reason}; no choice of float layers passes the agreement gate"
