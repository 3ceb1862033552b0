"""What the exporter needs of a student: structure here, facts about its origin beside it.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from frami_edge_runtime.melspec import MelSpec


class ExportableStudent(Protocol):
    """Any student of this form: a trunk, statistics pooling, an affine head.

    Plain attributes will do; they are only read.
    """

    @property
    def trunk(self) -> nn.Module:
        """(B, 1, M, T) normalised log-mel -> frames (B, C, T'), no padding along time."""

    @property
    def receptive_field(self) -> int:
        """Mel frames that one trunk frame sees."""

    @property
    def stride(self) -> int:
        """Mel frames between trunk frames: T' = (T - receptive_field) // stride + 1."""

    @property
    def context(self) -> tuple[int, int]:
        """Mel frames of 0 before the start and after the end of a clip, receptive_field - 1 in all.

        So T >= 1 mel frames give (T - 1) // stride + 1 trunk frames.
        """

    @property
    def channels(self) -> int:
        """C."""

    @property
    def pool_eps(self) -> float:
        """Pooling is [mean; sqrt(max(var, 0) + eps)] with the population variance over T'."""

    def collapsed_head(self) -> tuple[Tensor, Tensor]:
        """Weight (K, 2C) and bias (K,) of the affine map from pooled statistics to logits."""


def missing_parts(student: Any) -> list[str]:
    """What a student lacks of `ExportableStudent`.

    Not `isinstance` with a runtime protocol: from Python 3.12 on it looks past `__getattr__`, and
    so past every submodule of an `nn.Module`.
    """
    parts = ("trunk", "receptive_field", "stride", "context", "channels", "pool_eps")
    return [name for name in (*parts, "collapsed_head") if not hasattr(student, name)]


@dataclass(frozen=True)
class StudentFacts:
    """What the file must say and the module does not know."""

    mel: MelSpec
    """The front end that the student was trained on."""
    labels: tuple[str, ...]
    """(K,) class names, in the order of the logits."""
    teacher_sha256: str | None = None
    """Of the teacher's weights."""
    student_sha256: str | None = None
    """Of the student's weights."""
    licence: str = ""
