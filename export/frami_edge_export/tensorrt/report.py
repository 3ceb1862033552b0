"""What a build found: one record an engine, and which to use."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from frami_edge_runtime.enginefile import EngineCard

SCHEMA = 1


@dataclass(frozen=True)
class EngineArtifact:
    """One engine, built and measured on this device. None stands for: not applicable."""

    name: str
    """Such as ``fp16.engine``."""
    path: str
    """File name; its sidecar is ``path + ".json"``."""
    precision: str
    bytes: int
    card: EngineCard
    """As written into the sidecar."""
    typing: str
    """``strong`` or ``weak``."""
    build_s: float
    timing_cache: str
    """``new``, ``reused`` or ``rejected``."""
    p50_ms: float
    """Median of a call on 1 s of audio, copies to and from the GPU included."""
    p95_ms: float
    chunk_p50_ms: float
    """Median of a call that gives one trunk frame, the smallest streaming step."""
    max_abs_difference: float
    """Largest |engine - its ONNX file| of the logits."""
    agreement: float
    """Share of test mels on which it names the class of its ONNX file."""
    sqnr_db: float | None
    """Logits against its ONNX file, dB; None without any difference."""
    passed: bool
    """Parity holds."""
    speedup: float | None = None
    """The fp32 engine's median over this one's, from the same interleaved rounds."""
    agreement_fp32: float | None = None
    """Share of test mels on which it names the class of the fp32 ONNX file."""
    verdict: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; of the card only what is not in the sidecar's model text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        card = values.pop("card")
        return {
            **values,
            "notes": list(self.notes),
            "kind": "engine",
            "sha256": card.engine_sha256,
            "onnx": card.onnx_name,
            "layers": None if card.layers is None else dict(card.layers),
            "profile": {key: list(shape) for key, shape in card.profile.items()},
        }


@dataclass(frozen=True)
class EngineReport:
    """Everything that was built here; `to_dict` is ``engine_report.json``."""

    name: str
    engines: tuple[EngineArtifact, ...]
    recommended: str
    """File name; empty where none passed."""
    reason: str
    device: dict[str, Any]
    failures: dict[str, str] = field(default_factory=dict)
    """By precision: why an engine could not be built, while others could."""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Every engine that was asked for was built and passed."""
        return not self.failures and all(engine.passed for engine in self.engines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "name": self.name,
            "engines": [engine.to_dict() for engine in self.engines],
            "recommended": self.recommended,
            "reason": self.reason,
            "device": dict(self.device),
            "failures": dict(self.failures),
            "notes": list(self.notes),
        }
