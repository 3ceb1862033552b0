"""How an int8 student is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass, fields

from frami_edge_export.errors import ExportError


@dataclass(frozen=True)
class QatOptions:
    """How to fine-tune.

    Raises:
        ExportError: A value is out of range.
    """

    steps: int = 200
    """Batches; the last step is what is exported, never the best on anything."""
    batch: int = 16
    """Clips in a step."""
    lr: float = 1e-4
    """Of Adam at most; falls to 0 along a cosine."""
    range_lr: float = 1e-2
    """Of the logarithm of every activation's range; 0 keeps the calibration's ranges."""
    frame_weight: float = 0.5
    """w_f."""
    pooled_weight: float = 0.5
    """w_s."""
    logit_weight: float = 1.0
    """w_z."""
    seed: int = 0
    """Order of the clips; equal seeds on one machine give equal files."""

    def __post_init__(self) -> None:
        """Check every range."""
        for name, holds, rule in (
            ("steps", self.steps >= 1, "be at least 1"),
            ("batch", self.batch >= 1, "be at least 1"),
            ("lr", 0 < self.lr <= 1, "lie between 0 and 1"),
            ("range_lr", 0 <= self.range_lr <= 1, "lie between 0 and 1"),
            ("frame_weight", self.frame_weight >= 0, "not be negative"),
            ("pooled_weight", self.pooled_weight >= 0, "not be negative"),
            ("logit_weight", self.logit_weight >= 0, "not be negative"),
        ):
            if not holds:
                raise ExportError(
                    f"QatOptions.{name} must {rule}, not {getattr(self, name)!r}.",
                    fix="Leave it out to use the default.",
                )

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, for the report."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
