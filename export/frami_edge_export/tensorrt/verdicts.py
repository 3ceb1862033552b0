"""Which engine to use: the fastest that agrees with its ONNX file, measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from frami_edge_export.tensorrt.report import EngineArtifact

TIE = 1.03
"""Within 3 % two medians are the same: the more precise engine wins, for it costs nothing."""
_MOST_PRECISE_FIRST = ("fp32", "fp16", "int8")


def judge(
    engines: Sequence[EngineArtifact],
) -> tuple[tuple[EngineArtifact, ...], str, str]:
    """Give every engine its verdict.

    Returns:
        The engines with verdicts, the recommended file's name ("" where none passed), the reason.
    """
    fit = [e for e in engines if e.passed]
    if not fit:
        verdict = "not recommended: it does not answer as its ONNX file does"
        judged = tuple(dataclasses.replace(e, verdict=verdict) for e in engines)
        return judged, "", "No engine answers as its ONNX file does: use the ONNX files."
    fastest = min(e.p50_ms for e in fit)
    level = [e for e in fit if e.p50_ms <= fastest * TIE]
    best = min(level, key=lambda e: _MOST_PRECISE_FIRST.index(e.precision))
    judged = tuple(dataclasses.replace(e, verdict=_verdict(e, best)) for e in engines)
    return judged, best.path, f"{best.name} answers as its ONNX file does and is fastest here."


def _verdict(engine: EngineArtifact, best: EngineArtifact) -> str:
    if engine is best:
        return "recommended"
    if not engine.passed:
        return "not recommended: it does not answer as its ONNX file does"
    ratio = engine.p50_ms / best.p50_ms
    if ratio <= TIE:
        return f"as fast as {best.name}, and less precise"
    return f"{ratio:.2f}x the time of {best.name}"
