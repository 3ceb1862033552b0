"""How an engine is built: every value with its unit and its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from frami_edge_export.errors import ExportError

PRECISIONS: Final = ("fp32", "fp16", "int8")
TYPINGS: Final = ("auto", "strong", "weak")
COMPATS: Final = ("none", "version", "ampere+")


@dataclass(frozen=True)
class Seconds:
    """Shortest, usual and longest audio of one call of the trunk."""

    low: float
    usual: float
    high: float

    def __post_init__(self) -> None:
        """Check the order."""
        values = (self.low, self.usual, self.high)
        rising = 0 <= self.low <= self.usual <= self.high and self.high > 0
        if not all(map(math.isfinite, values)) or not rising or self.high > 3600:
            raise ExportError(
                f"--seconds {self.low:g}:{self.usual:g}:{self.high:g} must rise from 0 to at most "
                "3600.",
                fix="Write shortest:usual:longest, such as --seconds 0.1:1:10.",
            )

    @classmethod
    def parse(cls, text: str) -> Seconds:
        """``MIN:OPT:MAX`` in seconds; one number stands for all three.

        Raises:
            ExportError: It is not of this form, or does not rise.
        """
        parts = text.split(":")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 3
        if len(numbers) != 3:
            raise ExportError(
                f"--seconds {text!r} is not MIN:OPT:MAX.",
                fix="Write shortest:usual:longest, such as --seconds 0.1:1:10.",
            )
        return cls(*numbers)


@dataclass(frozen=True)
class EngineOptions:
    """What to build and how.

    Raises:
        ExportError: A value is out of range.
    """

    seconds: Seconds | None = None
    """Of one call. None: what the runtime ever asks for, one frame to its longest run."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """Streams in one call: least, usual, most."""
    precisions: tuple[str, ...] = PRECISIONS
    """fp32 is the reference that the others are timed against."""
    workspace_mb: int = 256
    """MiB of scratch memory that a tactic may use; students need a fraction of it."""
    typing: str = "auto"
    """``strong``; ``auto`` retries ``weak`` where a TensorRT before 10.12 refuses strong typing."""
    compat: str = "none"
    """``version``: loads in newer releases of the same major; ``ampere+``: on every desktop GPU
    from Ampere on, not on Jetson. Both cost speed, and both are for other programs:
    frami-edge-runtime runs an engine only on the release and architecture that built it."""
    tf32: bool = False
    """Lets fp32 layers round to 10 bits; off, so that the fp32 engine is a true reference."""
    detailed: bool = True
    """Keeps layer types in the engine: without them nobody can say what runs in int8."""
    min_agreement: float = 0.95
    """Share of test mels on which an engine must name the class of its ONNX file. Made-up mels lie
    closer to the borders between classes than sounds do: on them an int8 ONNX file of 32 dB names
    the class of fp32 on 94 to 98 %."""
    bench_s: float = 2.0
    """Seconds of measuring in all."""

    def __post_init__(self) -> None:
        """Check every field."""
        self._one_of("typing", self.typing, TYPINGS)
        self._one_of("compat", self.compat, COMPATS)
        for precision in self.precisions:
            self._one_of("precisions", precision, PRECISIONS)
        low, usual, high = self.batch
        if not self.precisions or not low == 1 <= usual <= high <= 1024:
            raise ExportError(
                f"batch {low}:{usual}:{high} must rise from 1 to at most 1024, and at least one "
                "precision must be built.",
                fix="Leave both out to use the defaults.",
            )
        if not 0 <= self.min_agreement <= 1:
            raise ExportError(
                f"min_agreement {self.min_agreement:g} must lie between 0 and 1.",
                fix="Leave it out to use the default.",
            )
        if not 1 <= self.workspace_mb <= 1 << 16 or not 0 < self.bench_s <= 600:
            raise ExportError(
                f"workspace_mb {self.workspace_mb} must lie in 1..65536 and bench_s "
                f"{self.bench_s:g} in 0..600.",
                fix="Leave both out to use the defaults.",
            )

    def _one_of(self, name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ExportError(
                f"EngineOptions.{name} {value!r} is unknown.", fix=f"Use {', '.join(allowed)}."
            )
