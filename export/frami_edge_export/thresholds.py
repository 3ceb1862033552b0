"""Thresholds of an export, without recordings: from clips of each class and from audio of none.

Shape legend: B windows, N clips, S samples, M mel bands, T mel frames, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from frami_edge_export.calibration import classify_mels
from frami_edge_export.parity import Array
from frami_edge_runtime.backends import Backend, OrtModel
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.stream import scores_of
from frami_edge_runtime.thresholds import (
    HOP_S,
    MIN_LABEL_HIT_RATE,
    NEVER,
    WINDOW_S,
    Thresholds,
    choose,
    decision_scores,
    energy,
    hit_deciles,
    log_odds,
    peaks,
)

SOUND_SHARE: Final = 0.1
"""Share of an hour of background in which unknown sounds are heard; the rest is quiet."""
STEADY_S: Final = 20.0
MARGIN: Final = 0.7
"""Log-odds between the largest score of steady noise and the least threshold."""
SURE: Final = 0.99
"""A label for which steady noise scores more is reported."""
LOWER: Final = "--on-at-most of frami-edge listen lowers that threshold."
NONE: Final = f"none starts an event. {LOWER}"
QUIET_DBFS: Final = -80.0
REJECT_QUANTILES: Final = (0.02, 0.1, 0.2)
"""Energies of sounds of the classes that are tried as `Thresholds.reject`."""
JUDGED_AT: Final = 0.9
"""Hit rate at which they are compared."""


@dataclass(frozen=True)
class ThresholdClips:
    """Synthetic clips that set thresholds.

    Attributes:
        sounds: (N, S) float32 held-out clips of no class in particular, at the model's rate.
        mels: (N, 1, M, T) normalised log-mels of sounds of the classes; None where there are none.
        targets: (N, K) bool: the classes of each of them.
    """

    sounds: Array
    mels: Array | None = None
    targets: npt.NDArray[np.bool_] | None = None


def steady_sounds(
    rate: int, seconds: float = STEADY_S, seed: int = 0
) -> Iterator[tuple[str, Array]]:
    """Names and samples of input that is no event: silence, steady noise, hum, DC, clipping."""
    n, rng = round(rate * seconds), np.random.default_rng(seed)
    t = np.arange(n) / rate
    frequencies = np.maximum(np.fft.rfftfreq(n, 1 / rate), 20.0)

    def noise(slope: float) -> npt.NDArray[np.float64]:
        x = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * frequencies ** (slope / 2), n)
        return np.asarray(x / np.sqrt(np.mean(x * x)))

    def hum(hz: float) -> npt.NDArray[np.float64]:
        return np.asarray(sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 8)))

    sounds = {"digital silence": np.zeros(n)}
    for name, slope in (("white", 0.0), ("pink", -1.0), ("brown", -2.0)):
        for level_db in (-70, -50, -30, -12):
            sounds[f"{name} noise at {level_db} dB"] = noise(slope) * 10 ** (level_db / 20)
    floor = 1e-4 * rng.standard_normal(n)
    for hz in (50, 60):
        for level_db in (-50, -20):
            sounds[f"{hz} Hz hum at {level_db} dB"] = hum(hz) * 10 ** (level_db / 20) + floor
    sounds["DC"] = np.full(n, 0.3)
    sounds["DC with noise"] = 0.5 + 10 * floor
    sounds["clipped noise"] = 3 * rng.standard_normal(n)
    sounds["clipped sine"] = 5 * np.sin(2 * np.pi * 440 * t)
    for name, x in sounds.items():
        yield name, np.clip(x, -1, 1).astype(np.float32)


def window_logits(
    model: Backend,
    samples: npt.NDArray[np.floating],
    window_s: float = WINDOW_S,
    *,
    filling: bool = False,
) -> Array:
    """(B, K) logits of windows `HOP_S` apart: those of a stream, without its latency.

    Args:
        model: The network.
        samples: (S,).
        window_s: Seconds.
        filling: Begin with the first, shorter windows of a new stream.
    """
    info = model.info
    hop = max(1, math.floor(HOP_S / info.frame_s + 0.5))
    width = hop * max(1, math.floor(window_s / (hop * info.frame_s) + 0.5))
    mel_TM = log_mel(samples, info.mel)
    around = ((0, 0), (info.context.left, info.context.right))
    x_MT = np.pad(mel_TM.T, around, constant_values=info.context.value).astype(np.float32)
    frames_CT = model.frames(np.ascontiguousarray(x_MT[None, None]))[0].astype(np.float64)
    sums = np.stack([frames_CT, frames_CT**2]).cumsum(axis=2)
    sums = np.pad(sums, ((0, 0), (0, 0), (1, 0)))
    ends = np.arange(hop if filling else width, frames_CT.shape[1] + 1, hop)
    lengths = np.minimum(width, ends)
    if not len(ends):
        return np.zeros((0, len(info.labels)), np.float32)
    mean_CB, square_CB = (sums[..., ends] - sums[..., ends - lengths]) / lengths
    std_CB = np.sqrt(np.maximum(square_CB - mean_CB**2, 0) + info.pooling.eps)
    return model.logits(np.concatenate([mean_CB, std_CB]).T.astype(np.float32))


def find_thresholds(
    model: bytes, clips: ThresholdClips, target: float
) -> tuple[Thresholds, list[str]]:
    """Thresholds for a streaming model file, and notes for its users.

    Args:
        model: The file.
        clips: What they are set from.
        target: False alarms per hour.
    """
    backend = OrtModel(model)
    info = backend.info
    rate, labels = info.mel.sample_rate, info.labels
    sounds = [window_logits(backend, x) for x in _minutes(clips.sounds, rate)]
    steady = {n: window_logits(backend, x, filling=True) for n, x in steady_sounds(rate)}
    positives = None
    if clips.mels is not None and clips.targets is not None and len(clips.mels):
        positives = classify_mels(model, _in_a_window(clips.mels, backend))

    def hits(reject: float | None) -> list[list[float]]:
        if positives is None or clips.targets is None:
            return []
        y_NK = log_odds(decision(positives, reject))
        return hit_deciles([y_NK[clips.targets[:, k], k] for k in range(len(labels))])

    def decision(logits: Array, reject: float | None) -> npt.NDArray[np.float64]:
        return decision_scores(scores_of(logits, info.output), logits, reject)

    def background(reject: float | None) -> npt.NDArray[np.float64]:
        return np.concatenate([peaks(decision(z, reject)) for z in sounds])

    reject = None
    if positives is not None and info.output == "softmax":
        # Of no rejection and some energies, the one with the fewest false alarms at one hit rate.
        tried = [None, *np.quantile(energy(positives), REJECT_QUANTILES).round(3).tolist()]

        def cost(reject: float | None) -> float:
            limits_K = np.array(hits(reject))[:, round(10 * (1 - JUDGED_AT))]
            return float((background(reject) >= limits_K).mean())

        reject = min(tried, key=cost)
    top = {name: peaks(decision(z, reject)).max(axis=0) for name, z in steady.items()}
    names, tops = list(top), np.stack(list(top.values()))
    floor = 0.0 if info.output == "softmax" else log_odds(np.array(0.1)).item()
    least = np.maximum(tops.max(axis=0) + MARGIN, floor)
    hours = clips.sounds.size / rate / 3600 / SOUND_SHARE
    found = choose(
        background(reject),
        hours,
        target=target,
        least=least.tolist(),
        hits=hits(reject),
        reject=reject,
        background=f"synthetic background with unknown sounds {SOUND_SHARE:.0%} of the time",
    )
    loudest_K = tops.argmax(axis=0)
    notes = []
    for k, label in enumerate(labels):
        loudest, score = names[loudest_K[k]], 1 / (1 + np.exp(-tops[loudest_K[k], k]))
        if found.on[k] == NEVER:
            notes.append(f"{label}: {loudest} scores {score:.4f}, and no sound scores more: {NONE}")
        elif found.hits and found.hit_rates[k] < MIN_LABEL_HIT_RATE:
            notes.append(
                f"{label}: only {found.hit_rates[k]:.0%} of its sounds are expected to start an "
                f"event, because {loudest} must not. {LOWER}"
            )
        elif score > SURE:
            notes.append(
                f"{label}: {loudest} scores {score:.4f}, so only surer sounds start its events."
            )
    if found.false_alarms_per_hour > 1.05 * target:
        notes.append(
            f"{found.false_alarms_per_hour:.2g} false alarms per hour are expected, not "
            f"{target:g}: higher thresholds would miss most sounds. Tune to the device's own "
            "background (frami-edge tune), or distil longer."
        )
    return found, notes


def _minutes(sounds_NS: Array, rate: int) -> Iterable[Array]:
    """Clips one after the other, about a minute at a time: bounds memory."""
    step = max(1, 60 * rate // sounds_NS.shape[1])
    return (sounds_NS[i : i + step].reshape(-1) for i in range(0, len(sounds_NS), step))


def _in_a_window(mels_N1MT: Array, model: Backend) -> list[Array]:
    """(M, T) each: clips shorter than a window in the middle of a quiet one, as a stream has it."""
    mel = model.info.mel
    length = mels_N1MT.shape[3]
    missing = max(0, round(WINDOW_S / mel.hop_s) - length)
    noise = np.random.default_rng(0).standard_normal(
        mel.n_fft + (length + missing) * mel.hop_length
    )
    quiet_MT = log_mel((10 ** (QUIET_DBFS / 20) * noise).astype(np.float32), mel).T
    low, high = mel.floor[:, None], mel.ceiling[:, None]
    before, after = quiet_MT[:, : missing // 2], quiet_MT[:, : missing - missing // 2]
    return [np.concatenate([before, np.clip(m, low, high), after], axis=1) for m in mels_N1MT[:, 0]]
