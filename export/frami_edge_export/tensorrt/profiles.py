"""Seconds of audio to the shapes that an engine must accept.

Shape legend: B batch, M mel bands, T mel frames.
"""

from __future__ import annotations

from dataclasses import dataclass

from frami_edge_export.tensorrt.options import Seconds
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.trunk import LONGEST_RUN

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Profile:
    """Least, usual and largest shape (B, 1, M, T) of the input."""

    low: Shape
    usual: Shape
    high: Shape

    def as_dict(self) -> dict[str, Shape]:
        """As `EngineCard.profile` has it."""
        return {"min": self.low, "opt": self.usual, "max": self.high}


def mel_frames(info: ModelInfo, seconds: float) -> int:
    """T of one call on so many seconds of audio, with the context that a clip gets around it.

    At least the receptive field: shorter clips are all context.
    """
    frames = max(1, info.mel.frames(round(seconds * info.mel.sample_rate)))
    return frames + info.receptive_field - 1


def longest_run(info: ModelInfo) -> int:
    """T of the longest call that the runtime's streams ever make."""
    return info.receptive_field + (LONGEST_RUN - 1) * info.stride


def profile_for(
    info: ModelInfo, seconds: Seconds | None = None, batch: tuple[int, int, int] = (1, 1, 8)
) -> Profile:
    """The profile that holds these seconds, and every call that a stream makes.

    The least T is one receptive field whatever ``seconds`` says, because a stream ends with runs
    of a single trunk frame; the largest is at least two trunk frames, which the runtime probes.

    Args:
        info: Of the model.
        seconds: Of audio in one call; None: from one trunk frame to the runtime's longest run, made
            for 1 s.
        batch: Clips or streams in one call.
    """
    field = info.receptive_field
    if seconds is None:
        high = longest_run(info)
        usual = min(mel_frames(info, 1.0), high)
    else:
        high = max(mel_frames(info, seconds.high), field + info.stride)
        usual = min(mel_frames(info, seconds.usual), high)
    bands = info.mel.n_mels
    return Profile(
        (batch[0], 1, bands, field), (batch[1], 1, bands, usual), (batch[2], 1, bands, high)
    )
