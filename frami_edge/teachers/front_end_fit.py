"""Whether a front end can be a teacher's: how far its BatchNorms are from those of its training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError
from frami_edge.frontend import LogMel
from frami_edge.losses import BatchNormStatistics, live_batch_norms
from frami_edge.models import ResNetTeacher, TeacherLike
from frami_edge.sources.procedural import measured, procedural_audio, samples_for
from frami_edge.teachers.opening import read_mel
from frami_edge.yaml_config import presets
from frami_edge_runtime.melspec import MelSpec

if TYPE_CHECKING:
    from frami_edge.checkpoint import Teacher

log = logging.getLogger("frami_edge")

WRONG_FRONT_END = 200.0
"""Relative BatchNorm error on procedural clips: 237 without mean and std, 314 with dB for ln, below
1 with all but one of the right front ends that were tried (7.9), and below 1 with subtler mistakes
too (docs/LOG.md)."""
DOUBTFUL_FRONT_END = 1.0
"""Above it the front end may be another one."""


def check_front_end(teacher: Teacher) -> None:
    """Refuse a foreign teacher whose front end cannot be its own; warn where it may not be.

    Raises:
        TeacherError: Its BatchNorms meet values that are far from those of its training.
    """
    error = front_end_error(teacher.model, teacher.mel)
    if error <= DOUBTFUL_FRONT_END:
        return
    sentence = wrong_front_end(error, front_ends_like(teacher.model, teacher.mel))
    if error <= WRONG_FRONT_END:
        log.warning(sentence)
        return
    raise TeacherError(
        sentence,
        fix="Check --mel against the training code: a missing mean and std, or dB for ln, does "
        "this. `frami-edge inspect` compares more front ends.",
    )


def wrong_front_end(error: float, ranking: Mapping[str, float]) -> str:
    """What such an error means, with the first of `front_ends_like`."""
    match = "does not" if error > WRONG_FRONT_END else "may not"
    nearest = ", ".join(f"{name} ({found:.3g})" for name, found in list(ranking.items())[:3])
    return (
        f"The mel front end {match} match the teacher: on procedural clips the inputs of its "
        f"BatchNorms are {error:.3g} away from those of its training (usual: below 1). Of front "
        f"ends like it, these come nearest: {nearest}; all below 1 are possible."
    )


@torch.no_grad()
def front_end_error(model: TeacherLike, mel: MelSpec, audio_BN: Tensor | None = None) -> float:
    """Relative BatchNorm error on procedural clips of about 1 s; 0 where it cannot be measured.

    `audio_BN` are these clips at the rate of `mel`, where several front ends get the same ones.
    """
    assert isinstance(model, nn.Module)
    if isinstance(model, ResNetTeacher) or model.takes == "audio" or not live_batch_norms(model):
        return 0.0
    statistics = BatchNormStatistics(model)
    device = next(model.parameters()).device
    if audio_BN is None:
        audio_BN = front_end_audio(mel)
    with statistics:
        model.hidden(LogMel(mel)(audio_BN)[:, None].to(device))
    return float(statistics.loss())


def front_ends_like(model: TeacherLike, mel: MelSpec) -> dict[str, float]:
    """`front_end_error` of a front end, of what people confuse it with, and of fitting presets.

    The least error comes first. It separates coarse mistakes only: a wrong sample rate, Slaney for
    HTK or magnitude for energy stay within the spread of right front ends. Mean and std of
    procedural audio, which fit its clips by construction, are tried where nothing else fits.
    """
    changes: dict[str, tuple[Any, ...]] = {
        "log": ("ln", "log10", "db"),
        "log_eps": (1e-10, 1e-6, 1e-3),
        "mel_scale": ("htk", "slaney"),
        "power": (1.0, 2.0),
    }
    found = {"as given": mel, "without mean and std": mel.replace(mean=0.0, std=1.0)}
    found |= {f"{key}: {v}": mel.replace(**{key: v}) for key in changes for v in changes[key]}
    found |= {name: read_mel(name) for name in presets() if name.startswith("mel/")}
    audio, errors = front_end_audio(mel), dict[MelSpec, tuple[float, str]]()
    for name, other in found.items():
        if other.n_mels == mel.n_mels and other not in errors:
            same = audio if other.sample_rate == mel.sample_rate else None
            errors[other] = front_end_error(model, other, same), name
    if min(errors.values())[0] > DOUBTFUL_FRONT_END:
        likely = measured(mel.replace(mean=0.0, std=1.0))
        name = f"with mean {likely.mean:.3g} and std {likely.std:.3g}"
        errors[likely] = front_end_error(model, likely, audio), name
    return {name: error for error, name in sorted(errors.values())}


def front_end_audio(mel: MelSpec) -> Tensor:
    """(48, N) procedural clips of about 1 s for `front_end_error`."""
    samples = samples_for(mel, max(16, round(1 / mel.hop_s)))
    return procedural_audio(mel.sample_rate, 48, samples, 0)
