"""What a model says about itself, as facts: front end, classes, geometry, origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from frami_edge.describing.description import Fact, Section, listed, short
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import ModelInfo


def mel_text(spec: MelSpec) -> str:
    """A front end in one line."""
    where = "centred" if spec.center else "not centred"
    norm = "" if spec.norm == "none" else f", {spec.norm} norm"
    scaled = "per band" if isinstance(spec.mean, tuple) else f"{spec.mean:.3g} ± {spec.std:.3g}"
    return (
        f"{spec.n_mels} {spec.mel_scale} bands{norm} of {spec.f_min:g} to {spec.f_high:g} Hz; "
        f"window {spec.win_length} in FFT {spec.n_fft}, hop {spec.hop_length} "
        f"({1000 * spec.hop_s:g} ms), {where}; {spec.log} of "
        f"{'power' if spec.power == 2 else 'magnitude'}; normalised by {scaled}"
    )


def heard_facts(labels: tuple[str, ...], spec: MelSpec) -> tuple[Fact, ...]:
    """Classes and front end."""
    return (
        Fact("classes", list(labels), f"{len(labels)}: {listed(labels)}"),
        Fact("sample_rate", spec.sample_rate, f"{spec.sample_rate} Hz"),
        Fact("mel", spec.to_dict(), mel_text(spec)),
        Fact("mel_sha256", spec.digest),
    )


def geometry_facts(spec: MelSpec, field: int, stride: int, right: int) -> tuple[Fact, ...]:
    """How far a frame looks, how often one comes, and how late.

    The delay of a trunk frame behind the sound at its centre: the mel frames after it, and half the
    FFT of the last of them. It is the algorithm's own; computing and buffering come on top.
    """
    hop_ms = 1000 * spec.hop_s
    delay_ms = right * hop_ms + 500 * spec.n_fft / spec.sample_rate
    return (
        Fact("receptive_field", field, f"{field} mel frames, {field * hop_ms:g} ms"),
        Fact("stride", stride, f"{stride} mel frames, {stride * hop_ms:g} ms"),
        Fact("delay_ms", delay_ms, f"{delay_ms:g} ms behind the sound, by look-ahead alone"),
    )


def info_sections(info: ModelInfo) -> tuple[Section, ...]:
    """Everything in a `ModelInfo`."""
    left, right = info.context.left, info.context.right
    answers = Section(
        "hears",
        (
            *heard_facts(info.labels, info.mel),
            *geometry_facts(info.mel, info.receptive_field, info.stride, right),
            Fact("context", [left, right], f"{left} mel frames before a clip, {right} after it"),
            Fact(
                "pooling",
                {"kind": info.pooling.kind, "eps": info.pooling.eps, "channels": info.channels},
                f"mean and deviation of {info.channels} channels, eps {info.pooling.eps:g}",
            ),
        ),
    )
    origin = Section(
        "origin",
        (
            Fact("precision", info.precision),
            Fact("quantisation", _plain(info.quantisation), _mapping(info.quantisation)),
            Fact("calibration", _plain(info.calibration), _mapping(info.calibration)),
            Fact("student_sha256", info.student_sha256),
            Fact("teacher_sha256", info.teacher_sha256),
            Fact("licence", info.licence or None),
            Fact("created", info.created or None),
            Fact("versions", dict(info.versions), _mapping(info.versions)),
        ),
    )
    return answers, origin


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(values)


def _mapping(values: Mapping[str, Any] | None) -> str | None:
    if not values:
        return None
    return "; ".join(
        f"{key} {short(value) if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    )
