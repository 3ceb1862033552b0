"""Pass or miss, for the figures that the benchmarks promise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One figure against its limit."""

    figure: str
    """What was measured."""
    value: float
    limit: float
    unit: str = ""
    at_most: bool = False
    """Whether the limit is an upper one."""

    @property
    def passed(self) -> bool:
        """NaN, a figure that could not be measured, does not pass."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        """One line."""
        word = "pass" if self.passed else "MISS"
        sign = "<=" if self.at_most else ">="
        value, limit = f"{self.value:.3g}{self.unit}", f"{sign} {self.limit:g}{self.unit}"
        return f"{word}  {self.figure}: {value} (bar {limit})"

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        sign = "<=" if self.at_most else ">="
        return {
            "figure": self.figure,
            "value": self.value,
            "bar": f"{sign} {self.limit:g}{self.unit}",
            "passed": self.passed,
        }


def judge(bars: Sequence[Bar], *, strict: bool) -> int:
    """Print each bar; the exit code is 3 where one is missed and ``strict`` asks for it."""
    for bar in bars:
        print(bar)
    if all(bar.passed for bar in bars):
        return 0
    print("A bar is missed. A busy machine is one reason: repeat on quiet cores.", file=sys.stderr)
    return 3 if strict else 0
