"""Which file to put on the device: from measurements only, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from frami_edge_export.report import Artifact, Gate

PURPOSES: Final = {
    "classifier": "for your own runtime: mel in, logits out",
    "waveform": "for your own runtime: samples in, logits out",
}
"""Verdict of files that are no rival of the streaming ones, by their kind."""
AS_FAST: Final = 0.95
"""Two timings of one graph differ by as much: below this a choice by speed would be one by luck."""


def judge(
    artifacts: Sequence[Artifact], gates: Sequence[Gate]
) -> tuple[tuple[Artifact, ...], str, str]:
    """Give every artefact its verdict.

    A file is recommended only where all gates passed that concern it and it was slower than fp32
    neither on 1 s of audio nor on a streaming chunk; of several such files, the fastest one, and
    of those within 5 % of its speed the one whose logits are nearest to fp32.

    Returns:
        The artefacts with verdicts, the recommended file's name ("" where none), the reason.
    """
    broken = [gate for gate in gates if not gate.passed and not gate.artifact]
    fp32 = next(a for a in artifacts if a.name == "fp32")
    if broken:
        verdict = f"not recommended: {_gates(broken)}"
        judged = tuple(replace(a, verdict=verdict) for a in artifacts)
        return judged, "", f"Nothing is recommended: {_gates(broken)}."
    faults = {a.name: _faults(a, gates) for a in artifacts}
    # What is for TensorRT alone was not timed here, and is no choice for this CPU.
    streaming = [a for a in artifacts if a.kind == "streaming" and a.name != "fp32"]
    rivals = [a for a in streaming if not _untimed(a)]
    fit = [a for a in rivals if not faults[a.name]]
    fastest = max(map(_speed, fit), default=1.0)
    alike = [a for a in fit if _speed(a) >= AS_FAST * fastest]
    best = max(alike, key=lambda a: a.sqnr_db or 0.0, default=None)
    judged = tuple(replace(a, verdict=_verdict(a, fp32, best, faults[a.name])) for a in artifacts)
    if best is not None:
        return judged, best.path, f"{best.name} passed its gates: {_gains(best, fp32)}."
    reasons = [f"{a.name}: not recommended: {faults[a.name]}." for a in rivals[:1]]
    return judged, fp32.path, " ".join(reasons) or "fp32 is the only streaming file."


def _verdict(a: Artifact, fp32: Artifact, best: Artifact | None, fault: str) -> str:
    if a.name == "fp32":
        return "recommended" if best is None else "the reference"
    if a.kind in PURPOSES:
        return f"not recommended: {fault}" if fault else PURPOSES[a.kind]
    if _untimed(a) and not fault:
        return f"for {a.purpose}; not timed on this CPU"
    if a is best:
        return f"recommended: {_gains(a, fp32)}"
    if fault:
        verdict = f"not recommended: {fault}"
    else:
        better = "is faster" if best is None or _speed(best) > _speed(a) else "is nearer to fp32"
        verdict = f"good, but {best.name if best else 'fp32'} {better}: {_gains(a, fp32)}"
    if not a.purpose:
        return verdict
    if a.lint not in ("", "clean"):
        return f"not for {a.purpose}: {a.lint} of the lint; on this CPU {verdict}"
    return f"for {a.purpose}; on this CPU {verdict}"


def _faults(a: Artifact, gates: Sequence[Gate]) -> str:
    """Why this file is not recommended; "" where nothing speaks against it."""
    if failed := [gate for gate in gates if not gate.passed and gate.artifact == a.name]:
        return _gates(failed)
    slower = _slower(a)
    return f"slower than fp32 {slower}" if slower and a.kind == "streaming" else ""


def _untimed(a: Artifact) -> bool:
    return bool(a.purpose) and a.speedup is None


def _speed(a: Artifact) -> float:
    """Of 1 s and of a chunk alike; 1 where nothing was measured."""
    return (a.speedup or 1.0) * (a.chunk_speedup or 1.0)


def _slower(artifact: Artifact) -> str:
    parts = []
    for speedup, what in ((artifact.speedup, "1 s"), (artifact.chunk_speedup, "a chunk")):
        if speedup is not None and speedup < 1:
            parts.append(f"on {what} of audio ({1 / speedup:.2f}x the time)")
    return " and ".join(parts)


def _gains(artifact: Artifact, fp32: Artifact) -> str:
    smaller = f"{fp32.bytes / artifact.bytes:.1f}x smaller"
    if artifact.speedup is None or artifact.chunk_speedup is None:
        return smaller
    return (
        f"{artifact.speedup:.2f}x faster on 1 s of audio, {artifact.chunk_speedup:.2f}x on a "
        f"streaming chunk, {smaller}"
    )


def _gates(gates: Sequence[Gate]) -> str:
    said = {"lower": "above", "higher": "below"}
    return "; ".join(
        f"{g.name} is {g.value:.4g}, {said[g.better]} its limit {g.limit:.4g}" for g in gates
    )
