"""What an export found: one record an artefact, one a gate, and a recommendation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA: Final = 1


@dataclass(frozen=True)
class Artifact:
    """One file, measured. None stands for: not measured, or not applicable."""

    name: str
    """``fp32``, ``model``, ``int8.cpu``, ``int8.trt`` or ``int8.portable``."""
    path: str
    """File name, in the folder of the report."""
    kind: str
    """``streaming`` (trunk and head, for frami-edge-runtime) or ``classifier`` (mel to logits)."""
    precision: str
    """``fp32`` or ``int8``."""
    bytes: int
    p50_ms: float | None = None
    """Median latency of the graph on 1 s of audio, one thread, batch 1."""
    p95_ms: float | None = None
    max_abs_difference: float | None = None
    """Largest |difference| of the logits: fp32 against torch, int8 against fp32 on the hold-out."""
    agreement: float | None = None
    """Share of inputs on which the strongest class is the reference's."""
    sqnr_db: float | None = None
    """Signal to quantisation noise of the logits on the hold-out, dB; None without noise."""
    accuracy: float | None = None
    """As the caller's ``evaluate`` gives it."""
    lint: str = ""
    """Of the rules of TensorRT's parser: ``clean``, ``n findings``, or "" where none apply."""
    verdict: str = ""
    """One sentence, from measurements only."""
    chunk_p50_ms: float | None = None
    """Median latency on a streaming chunk with its carried context."""
    speedup: float | None = None
    """fp32's median over this one's, from the same interleaved rounds, on 1 s of audio."""
    chunk_speedup: float | None = None
    """Likewise, on the streaming chunk."""
    sha256: str = ""
    purpose: str = ""
    """What the file is for where that is not this CPU, such as ``TensorRT``."""
    findings: tuple[dict[str, str], ...] = ()
    """What the lint found: rule, node, message and fix of each."""


@dataclass(frozen=True)
class Gate:
    """One thing that must hold."""

    name: str
    value: float
    limit: float
    passed: bool
    better: str = "lower"
    """``lower``: value <= limit passes; ``higher``: value >= limit passes."""
    artifact: str = ""
    """The one artefact that it concerns; "" for a gate without which no file can be trusted."""

    @classmethod
    def at_most(cls, name: str, value: float, limit: float) -> Gate:
        """Passes where value <= limit."""
        return cls(name, value, limit, bool(value <= limit), "lower")

    @classmethod
    def at_least(cls, name: str, value: float, limit: float) -> Gate:
        """Passes where value >= limit."""
        return cls(name, value, limit, bool(value >= limit), "higher")


@dataclass(frozen=True)
class Calibration:
    """Which samples set the int8 ranges."""

    source: str
    """Where the caller had them from, such as ``bank``."""
    samples: int
    """That set the ranges; the hold-out comes on top."""
    holdout: int
    sha256: str
    """Of the clamped samples that set the ranges, float32, in order."""
    clamped: float
    """Share of values that lay outside the front end's floor and ceiling."""


@dataclass(frozen=True)
class ExportReport:
    """Everything that was written and measured; `to_dict` is ``export_report.json``."""

    name: str
    artifacts: tuple[Artifact, ...]
    recommended: str
    """File name of the artefact to put on the device."""
    reason: str
    """Why this one."""
    calibration: Calibration | None
    gates: tuple[Gate, ...]
    quantisation: dict[str, Any] | None = None
    """Flavour, candidates tried, layers left float and why; None for fp32 only."""
    fine_tuning: dict[str, Any] | None = None
    """Steps, losses, and what the fine-tuned files would be without it; None where not asked."""
    layers: tuple[dict[str, Any], ...] = ()
    """SQNR of each int8 convolution on its own, worst first."""
    bench: dict[str, Any] = field(default_factory=dict)
    """How latency was measured."""
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a reader should know before using a file."""
    stale: tuple[str, ...] = ()
    """Files of an earlier export that lie in the same folder."""

    @property
    def ok(self) -> bool:
        """Every gate passed."""
        return all(gate.passed for gate in self.gates)

    def artifact(self, name: str) -> Artifact:
        """By name.

        Raises:
            KeyError: There is none of that name.
        """
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"schema": SCHEMA, "ok": self.ok, **dataclasses.asdict(self)}
