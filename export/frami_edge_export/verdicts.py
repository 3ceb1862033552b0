"""Which file to put on the device: from measurements only, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from frami_edge_export.report import Artifact, Gate


def judge(
    artifacts: Sequence[Artifact], gates: Sequence[Gate]
) -> tuple[tuple[Artifact, ...], str, str]:
    """Give every artefact its verdict.

    An int8 file is recommended only where all gates passed and it was slower than fp32 neither on
    1 s of audio nor on a streaming chunk.

    Returns:
        The artefacts with verdicts, the recommended file's name ("" where none), the reason.
    """
    failed = [gate for gate in gates if not gate.passed]
    broken = [gate for gate in failed if "int8" not in gate.name]
    fp32 = next(a for a in artifacts if a.name == "fp32")
    judged = [_judge(a, fp32, failed, broken) for a in artifacts]
    int8 = next((a for a in judged if a.name == "int8.cpu"), None)
    if broken:
        return tuple(judged), "", f"Nothing is recommended: {_gates(broken)}."
    if int8 is not None and int8.verdict.startswith("recommended"):
        return tuple(judged), int8.path, f"int8 passed its gates: {_gains(int8, fp32)}."
    reason = "fp32 is the only streaming file." if int8 is None else f"int8.cpu: {int8.verdict}."
    judged = [replace(a, verdict="recommended") if a.name == "fp32" else a for a in judged]
    return tuple(judged), fp32.path, reason


def _judge(
    artifact: Artifact, fp32: Artifact, failed: Sequence[Gate], broken: Sequence[Gate]
) -> Artifact:
    if broken:
        verdict = f"not recommended: {_gates(broken)}"
    elif artifact.name == "fp32":
        verdict = "the reference"
    elif artifact.kind == "classifier":
        verdict = "for your own runtime: mel in, logits out"
    elif failed:
        verdict = f"not recommended: {_gates(failed)}"
    elif slower := _slower(artifact):
        verdict = f"not recommended: slower than fp32 {slower}"
    else:
        verdict = f"recommended: {_gains(artifact, fp32)}"
    return replace(artifact, verdict=verdict)


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
