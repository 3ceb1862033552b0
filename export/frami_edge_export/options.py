"""Every number that an export can be tuned by, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass, fields

from frami_edge_export.errors import ExportError


@dataclass(frozen=True)
class ExportOptions:
    """How to export, and what must hold.

    Raises:
        ExportError: A value is out of range.
    """

    min_agreement: float = 0.98
    """Share of held-out synthetic mels on which int8 must name the same class as fp32."""
    max_drop: float = 0.02
    """Accuracy, as a share, that int8 may lose to fp32; only where ``evaluate`` is given."""
    parity_tolerance: float = 1e-5
    """Largest |torch - ONNX| per unit of the largest |value|, and absolute below 1."""
    max_calibration: int = 256
    """Samples that set the ranges; min-max over more gains nothing and only widens them."""
    max_holdout: int = 1024
    """Samples that judge the result; never part of the ranges."""
    holdout_fraction: float = 0.25
    """Share kept out of the ranges where the set is small."""
    max_range_ratio: float = 1.5
    """How far a typical layer's spread on the calibration set may be from its BatchNorm statistics,
    either way (`calibration_gate`). Seen on four students: at most 1.15 for their banks, real and
    procedural clips and smooth noise, 1.6 to 2.2 for uniform noise."""
    max_range_shift: float = 1.0
    """How many of its standard deviations a layer's mean may be off, averaged over channels."""
    first_layers_gain: float = 0.95
    """More or fewer than one of the first convolutions stay float only where that takes at most
    this share of the time."""
    level_db: float = 12.0
    """int8 is also judged on the hold-out louder and softer by up to this, for the report: ranges
    set on narrow levels would show there."""
    chunk_s: float = 0.1
    """Seconds of new audio in a streaming chunk, for the second latency figure."""
    bench_budget_s: float = 1.0
    """Seconds of measuring per comparison."""
    bench_rounds: int = 300
    """At most so many interleaved rounds per comparison."""
    seed: int = 0
    """Splits the calibration set and draws the parity inputs."""

    def __post_init__(self) -> None:
        """Check every range."""
        for name in ("min_agreement", "max_drop", "holdout_fraction", "first_layers_gain"):
            self._require(name, 0.0 <= getattr(self, name) <= 1.0, "lie between 0 and 1")
        for name in (
            "parity_tolerance",
            "max_range_shift",
            "level_db",
            "chunk_s",
            "bench_budget_s",
        ):
            self._require(name, getattr(self, name) > 0, "be positive")
        for name in ("max_calibration", "max_holdout", "bench_rounds"):
            self._require(name, getattr(self, name) >= 1, "be at least 1")
        self._require("max_range_ratio", self.max_range_ratio > 1, "exceed 1")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ExportError(
                f"ExportOptions.{name} must {rule}, not {getattr(self, name)!r}.",
                fix="Leave it out to use the default.",
            )

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, for the report."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
