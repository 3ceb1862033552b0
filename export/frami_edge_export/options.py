"""The gates and budgets of an export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from frami_edge_export.errors import ExportError

TARGETS: Final = ("x86", "arm", "jetson-gpu")


@dataclass(frozen=True)
class ExportOptions:
    """Gates, sizes and measuring budgets of `export_student`.

    Raises:
        ExportError: A value is out of range.
    """

    target: str = "x86"
    """Device that ``int8.cpu`` and the recommendation are for, one of `TARGETS`."""
    min_agreement: float = 0.98
    """Share of held-out synthetic mels on which int8 must predict the class of fp32."""
    max_drop: float = 0.02
    """Accuracy (0 to 1) that int8 may lose against fp32; applies where ``evaluate`` is given."""
    parity_tolerance: float = 1e-5
    """Largest |torch - ONNX| per unit of the largest |value|, and absolute below 1."""
    max_calibration: int = 256
    """Samples that set the ranges; more of them only widen min-max ranges."""
    max_holdout: int = 1024
    """Samples that judge the result; they never set a range."""
    holdout_fraction: float = 0.25
    """Share of a small set that is held out."""
    max_range_ratio: float = 1.5
    """Allowed factor between a typical layer's spread on the calibration set and its BatchNorm
    statistics, either way. Four students gave at most 1.15 on their banks, on real and procedural
    clips and on smooth noise, and 1.6 to 2.2 on uniform noise."""
    max_range_shift: float = 1.0
    """Allowed shift of a layer's mean, in its standard deviations, averaged over channels."""
    level_db: float = 12.0
    """int8 is also compared on the hold-out with gains up to this, for the report."""
    chunk_s: float = 0.1
    """Seconds of new audio in a streaming chunk, for the second latency figure."""
    bench_budget_s: float = 2.0
    """Seconds of measuring per comparison; loading the models and close calls take more."""
    bench_rounds: int = 300
    """Largest number of interleaved rounds per comparison; close calls take more."""
    false_alarms_per_hour: float = 0.2
    """Expected false alarms per hour, all labels together, for which thresholds are set."""
    seed: int = 0
    """Splits the calibration set and draws the parity inputs."""

    def __post_init__(self) -> None:
        """Check every range."""
        shares = ("min_agreement", "max_drop", "holdout_fraction")
        counts = ("max_calibration", "max_holdout", "bench_rounds")
        if self.target not in TARGETS:
            raise ExportError(
                f"ExportOptions.target {self.target!r} is unknown.",
                fix=f"Use one of {', '.join(TARGETS)}.",
            )
        for name, value in self.to_dict().items():
            if isinstance(value, str):
                continue
            if name in shares:
                holds, rule = 0 <= value <= 1, "be between 0 and 1"
            elif name in counts:
                holds, rule = value >= 1, "be at least 1"
            elif name == "max_range_ratio":
                holds, rule = value > 1, "exceed 1"
            else:
                holds, rule = value > 0 or name == "seed", "be positive"
            if not holds:
                raise ExportError(
                    f"ExportOptions.{name} must {rule}, not {value!r}.",
                    fix="Leave it out to use the default.",
                )

    def to_dict(self) -> dict[str, str | float | int]:
        """Plain values, for the report."""
        return asdict(self)
