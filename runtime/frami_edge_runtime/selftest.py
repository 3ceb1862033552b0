"""Golden vectors: does this machine compute what the exporter computed?

Every model file carries some log-mel values and the logits of one fixed clip. The clip is computed
in integers, so that it is the same on every machine.

Shape legend: M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.backends import ON_GPU, Backend
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import EXPORT_AGAIN
from frami_edge_runtime.stream import Stream

MEL_TOLERANCE: Final = 1e-4
"""Normalised log-mel: FFTs differ by some 1e-6 between CPUs, a wrong window or filter by 1e-1."""
TOLERANCE: Final = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-3}
"""Logits on a CPU. int8 gets ten times fp32's: a log-mel that differs in its last bits moves a few
inputs by one step, while a saturating kernel moves logits by 0.1 and more."""
_VALUES: Final = 128
_SILENT: Final = 8  # an eighth of the clip is digital silence


def golden_clip(mel: MelSpec, frames: int) -> npt.NDArray[np.int16]:
    """A rising triangle wave, noise and digital silence, (N,) int16 of ``frames`` mel frames."""
    size = mel.span + (frames - 1) * mel.hop_length
    n = np.arange(size, dtype=np.uint32)
    rise = np.uint32(20_000 * 65_536 // size // 2)  # to 20,000 / 65,536 of the sample rate
    phase = (np.uint32(500) * n + ((rise * n) >> np.uint32(16)) * n) & np.uint32(0xFFFF)
    wave = np.abs(phase.astype(np.int64) - 32_768) - 16_384
    mixed = n * np.uint32(2_654_435_761)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(2_246_822_519)
    noise = (mixed >> np.uint32(20)).astype(np.int64) - 2_048
    noise[: size // 2] //= 16
    clip = wave // 2 + noise
    clip[-(size // _SILENT) :] = 0
    return clip.astype(np.int16)


@dataclass(frozen=True)
class SelfTest:
    """What a machine computed, compared with the exporter; true where it is the same."""

    label: str
    """Best class here."""
    expected_label: str
    mel_difference: float
    """Largest difference of a normalised log-mel value."""
    logit_difference: float
    """Largest difference of a logit."""
    mel_tolerance: float
    logit_tolerance: float

    @property
    def passed(self) -> bool:
        """The label is the same, and the differences are within their tolerances."""
        return bool(
            self.label == self.expected_label
            and self.mel_difference <= self.mel_tolerance
            and self.logit_difference <= self.logit_tolerance
        )

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return (
            f"label {self.label!r}, expected {self.expected_label!r}; largest difference of the "
            f"log-mel {self.mel_difference:.1e} (at most {self.mel_tolerance:.0e}), of the logits "
            f"{self.logit_difference:.1e} (at most {self.logit_tolerance:.0e})"
        )


def golden_vectors(mel: MelSpec, frames: int, logits_K: npt.NDArray[np.floating]) -> dict[str, Any]:
    """What a model file carries: ``frames`` of the clip, 128 values of its log-mel, its logits.

    Args:
        mel: The front end.
        frames: Mel frames of the clip.
        logits_K: (K,) answer of the file to `golden_clip`.
    """
    values = _some(log_mel(golden_clip(mel, frames), mel))
    return {"frames": frames, "mel": _encoded(values), "logits": _encoded(logits_K)}


def selftest(model: Backend) -> SelfTest:
    """Answer the clip on this machine and compare.

    Raises:
        ModelFileError: The file carries no golden vectors, or they are damaged.
    """
    info = model.info
    if info.golden is None:
        raise ModelFileError(f"{model.name} carries no golden vectors.", fix=EXPORT_AGAIN)
    frames, mel_values, logits_K = _read(info.golden, model.name, len(info.labels))
    clip = golden_clip(info.mel, frames)
    stream = Stream(model)
    stream.push(clip)
    result = stream.flush()
    assert result is not None
    on_cpu = model.kind == "cpu"
    found = _some(log_mel(clip, info.mel))
    return SelfTest(
        label=result.label,
        expected_label=info.labels[int(logits_K.argmax())],
        mel_difference=float(np.abs(found - mel_values).max()),
        logit_difference=float(np.abs(result.logits - logits_K).max()),
        mel_tolerance=MEL_TOLERANCE,
        logit_tolerance=(TOLERANCE if on_cpu else ON_GPU)[info.precision],
    )


def _some(mel_TM: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    flat = mel_TM.astype(np.float32).ravel()
    return flat[np.linspace(0, len(flat) - 1, _VALUES).astype(np.int64)]


def _encoded(values: npt.NDArray[np.floating]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _read(
    golden: Mapping[str, Any], name: str, labels: int
) -> tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    try:
        frames = golden["frames"]
        mel, logits = (
            np.frombuffer(base64.b64decode(golden[key], validate=True), "<f4")
            for key in ("mel", "logits")
        )
        sound = type(frames) is int and 1 <= frames <= 1 << 12
        sound = sound and len(mel) == _VALUES and len(logits) == labels
        if not (sound and np.isfinite(mel).all() and np.isfinite(logits).all()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ModelFileError(f"{name}: its golden vectors are damaged.", fix=EXPORT_AGAIN) from None
    return frames, mel, logits
