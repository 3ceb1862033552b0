"""What a listening program tells its display."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Reason = Literal["end", "duration", "once", "interrupted"]


@dataclass(frozen=True)
class Start:
    """Known before the first audio."""

    model: str
    labels: tuple[str, ...]
    model_rate: int
    """Hz."""
    backend: str
    backend_reason: str
    source: str
    sample_rate: int
    """Hz, of the source."""
    window_s: float | None
    forget_s: float | None
    hop_s: float
    events: dict[str, Any]
    """The `EventSpec`, as given."""
    notes: tuple[str, ...]
    version: str

    @property
    def mode(self) -> str:
        """How results are made, for people."""
        if self.window_s is None:
            return f"half of the weight on the last {self.forget_s:g} s, every {self.hop_s:.2f} s"
        return f"windows of {self.window_s:.2f} s every {self.hop_s:.2f} s"

    def to_dict(self) -> dict[str, Any]:
        """As a record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Heard:
    """A result with its level."""

    t0: float
    t1: float
    level_db: float
    """RMS since the result before, in dB of full scale."""
    top: tuple[tuple[str, float], ...]
    """Labels and scores, best first."""
    gap: int
    """Samples lost since the result before."""

    def to_dict(self) -> dict[str, Any]:
        """As a record: the best one has its own fields."""
        label, score = self.top[0]
        return {
            "t0": self.t0,
            "t1": self.t1,
            "label": label,
            "score": round(score, 6),
            "top": {name: round(value, 6) for name, value in self.top},
            "level_db": round(self.level_db, 1),
            "gap": self.gap,
        }


@dataclass(frozen=True)
class Gap:
    """Samples that were lost."""

    t: float
    """Where, in seconds of the sample clock."""
    lost: int
    """Samples."""
    lost_s: float

    def to_dict(self) -> dict[str, Any]:
        """As a record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Summary:
    """What it came to."""

    reason: Reason
    """Why it ended."""
    audio_s: float
    """By the sample clock, with what was lost."""
    results: int
    events: dict[str, int]
    """Events that began, by label."""
    lost: int
    """Samples."""
    lost_s: float
    gaps: int
    wall_s: float
    busy_s: float
    """Within the model and its stream."""
    max_lag_s: float
    """The most audio that ever waited for the model; 0 for files."""

    def to_dict(self) -> dict[str, Any]:
        """As a record."""
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """For people."""
        counted = ", ".join(f"{printable(name)} {n}" for name, n in sorted(self.events.items()))
        text = f"{self.audio_s:.1f} s heard in {self.wall_s:.1f} s"
        if self.busy_s > 0:
            text += f" ({self.audio_s / self.busy_s:.0f} times real time in the model)"
        text += f": {self.results} results, {sum(self.events.values())} events"
        text += f" ({counted})" if counted else ""
        if self.lost:
            share = 100 * self.lost_s / self.audio_s
            text += f"; lost {self.lost_s:.2f} s ({share:.1f} %) in {self.gaps} gaps"
        return text + ("; interrupted" if self.reason == "interrupted" else "")


def printable(text: str) -> str:
    """Without control characters: a model file must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
