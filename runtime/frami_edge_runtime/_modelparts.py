"""The small records inside a model file's description, and how any of its values is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from frami_edge_runtime._strict_json import EXPORT_AGAIN
from frami_edge_runtime.errors import ModelFileError

METADATA_KEY: Final = "frami.model"
MAX_FRAMES: Final = 1 << 20
MAX_CONTEXT_VALUE: Final = 1e4


@dataclass(frozen=True)
class Pooling:
    """Statistics pooling over time: [mean; sqrt(max(var, 0) + eps)], population variance."""

    kind: str = "mean_std"
    """Only ``mean_std`` is known."""
    eps: float = 1e-5
    """Added to the variance, under the root."""

    def __post_init__(self) -> None:
        """Check both fields."""
        if self.kind != "mean_std":
            raise ModelFileError(
                f"pooling.kind {self.kind!r} is unknown; this runtime knows 'mean_std'.",
                fix="Upgrade frami-edge-runtime, or export again.",
            )
        if not is_number(self.eps) or not 0 < self.eps < 1:
            raise ModelFileError(
                f"pooling.eps must lie between 0 and 1, not {self.eps!r}.", fix=EXPORT_AGAIN
            )


@dataclass(frozen=True)
class Context:
    """Mel frames of one value around a clip; streams start with them and are flushed with them."""

    left: int
    """Mel frames before the start."""
    right: int
    """Mel frames after the end: the look-ahead of a stream."""
    value: float = 0.0
    """In normalised units: 0 is the training mean."""

    def __post_init__(self) -> None:
        """Check the types; `ModelInfo` checks the sizes."""
        for name in ("left", "right"):
            value = getattr(self, name)
            integer = isinstance(value, int) and not isinstance(value, bool)
            wanted = f"an integer of 0..{MAX_FRAMES}"
            require(integer and 0 <= value <= MAX_FRAMES, f"context.{name}", wanted, value)
        usable = is_number(self.value) and abs(self.value) <= MAX_CONTEXT_VALUE
        require(usable, "context.value", f"a number within +-{MAX_CONTEXT_VALUE:g}", self.value)

    @classmethod
    def around(cls, receptive_field: int) -> Context:
        """The usual one: trunk frame j is centred at mel frame j * stride."""
        left = (receptive_field - 1) // 2
        return cls(left, receptive_field - 1 - left)


def require(condition: bool, key: str, expected: str, value: Any) -> None:
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise ModelFileError(
            f"{METADATA_KEY}: {key} must be {expected}, not {shown}.", fix=EXPORT_AGAIN
        )


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
