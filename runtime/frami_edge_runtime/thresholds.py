"""When events start and end: thresholds per label for a stated rate of false alarms.

A model file carries them. An export sets them from synthetic clips of every class and from audio of
no class, both made by formula; `tuned` adapts them to a recording of the user's own background.

Scores are compared as *log-odds* ln(y / (1 - y)), in which the largest scores of background audio
fall off about exponentially: so a rate far below what was observed can be extrapolated (peaks over
a threshold; Coles, *An Introduction to Statistical Modeling of Extreme Values*, 2001, chapter 4).
The budget of false alarms is divided among labels so that the expected hit rate is largest.

Shape legend: K classes, N results, P peaks.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.modelfile import EXPORT_AGAIN, THRESHOLDS_KEY, ModelInfo, metadata_entry
from frami_edge_runtime.stream import Stream

Array = npt.NDArray[np.float64]

WINDOW_S: Final = 1.0
HOP_S: Final = 0.25
MIN_ON_S: Final = 0.5
"""The defaults of `frami-edge-listen`, for which thresholds are set."""
TARGET: Final = 0.2
"""False alarms per hour."""
MIN_HIT_RATE: Final = 0.5
"""A model that finds fewer is of no use: then the target gives way, and the file says so."""
MIN_LABEL_HIT_RATE: Final = 0.25
"""The same for a single label."""
PEAK_S: Final = 5.0
"""Scores above a threshold within so many seconds are one false alarm."""
_TAIL: Final = 30  # largest peaks of a label, from which the exponential tail is estimated
_LEAST_DECAY: Final = 0.2
_HIGHEST: Final = math.log(0.9995 / 0.0005)  # thresholds beyond it would depend on rounding
_SUREST: Final = 15.0  # beyond it, float32 scores are too coarse for a threshold
NEVER: Final = 1.0
"""Threshold of a label that no sound may start, because steady noise scores as high as any."""
_HIGHEST_BLIND: Final = math.log(0.95 / 0.05)  # where nothing is known about hits
_OFF: Final = 0.15  # as in silero-vad


def log_odds(scores: npt.NDArray[np.floating]) -> Array:
    """ln(y / (1 - y)) of scores in 0..1, within +-16: float32 cannot tell more apart."""
    y = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(y) - np.log1p(-y))


def energy(logits: npt.NDArray[np.floating]) -> Array:
    """Ln Σ exp(logits) over the last axis; large for sounds like those that a model was made for.

    Source: W. Liu et al., *Energy-based Out-of-distribution Detection*, NeurIPS 2020.
    """
    z = logits.astype(np.float64)
    top = z.max(axis=-1)
    return np.asarray(top + np.log(np.exp(z - top[..., None]).sum(axis=-1)))


def decision_scores(
    scores: npt.NDArray[np.floating], logits: npt.NDArray[np.floating], reject: float | None
) -> Array:
    """Scores (..., K) as events use them: times sigmoid(energy - ``reject``), if there is one."""
    y = scores.astype(np.float64)
    if reject is None:
        return y
    return np.asarray(y / (1 + np.exp(np.clip(reject - energy(logits), -50, 50)))[..., None])


@dataclass(frozen=True)
class Thresholds:
    """When events of each label start and end, and what that is expected to cost.

    Raises:
        ModelFileError: Lengths differ, or a number is out of range.
    """

    on: tuple[float, ...]
    """(K,) scores at which events start; `NEVER` for none."""
    off: tuple[float, ...]
    """(K,) scores below which they end."""
    reject: float | None = None
    """Energy at which scores count half; see `decision_scores`. None: no rejection."""
    target: float = TARGET
    """False alarms per hour that were asked for."""
    false_alarms_per_hour: float = 0.0
    """Expected, of all labels together."""
    hit_rate: float | None = None
    """Expected share of sounds of the labels that start an event; None where not known."""
    background: str = ""
    """The audio behind ``false_alarms_per_hour``."""
    least: tuple[float, ...] = ()
    """(K,) log-odds that thresholds must keep, or steady noise would start events."""
    hits: tuple[tuple[float, ...], ...] = ()
    """(K, 11) deciles of the log-odds that sounds of each label reach; empty where not known."""

    def __post_init__(self) -> None:
        try:
            k = len(self.on)
            for name in ("on", "off", "least"):
                object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
            object.__setattr__(self, "hits", tuple(tuple(map(float, row)) for row in self.hits))
            sound = k > 0 and len(self.off) == k
            pairs = zip(self.on, self.off, strict=True)
            sound = sound and all(0 < off <= on <= NEVER for on, off in pairs)
            sound = sound and len(self.least) in (0, k) and len(self.hits) in (0, k)
            sound = sound and all(len(row) == 11 for row in self.hits)
            numbers = [self.target, self.false_alarms_per_hour, self.reject or 0.0, *self.least]
            numbers += [self.hit_rate or 0.0, *(x for row in self.hits for x in row)]
            sound = sound and all(math.isfinite(x) for x in numbers)
        except (TypeError, ValueError):
            sound = False
        if not sound or not isinstance(self.background, str):
            raise ModelFileError("The thresholds of the model are damaged.", fix=EXPORT_AGAIN)

    @classmethod
    def of(cls, info: ModelInfo) -> Thresholds | None:
        """The thresholds of a model file; None where it has none.

        Raises:
            ModelFileError: They are damaged.
        """
        if info.thresholds is None:
            return None
        names = {f.name for f in dataclasses.fields(cls)}
        found = {key: value for key, value in info.thresholds.items() if key in names}
        thresholds = cls(**{"on": (), "off": (), **found})
        if len(thresholds.on) != len(info.labels):
            raise ModelFileError("The thresholds of the model are damaged.", fix=EXPORT_AGAIN)
        return thresholds

    @property
    def hit_rates(self) -> tuple[float, ...]:
        """(K,) expected share of each label's sounds that start an event; empty: not known."""
        shares, on_K = np.linspace(0, 1, 11), log_odds(np.array(self.on))
        return tuple(
            0.0 if on == NEVER else round(1 - float(np.interp(at, row, shares)), 3)
            for on, at, row in zip(self.on, on_K, self.hits, strict=False)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    def __str__(self) -> str:
        hits = "not known" if self.hit_rate is None else f"{100 * self.hit_rate:.0f} %"
        return (
            f"{self.false_alarms_per_hour:.2g} false alarms per hour expected (target "
            f"{self.target:g}; {self.background}), expected hit rate {hits}"
        )


def peaks(scores_NK: npt.NDArray[np.floating], hop_s: float = HOP_S) -> Array:
    """Largest log-odds that last for the shortest event, in each `PEAK_S` of results: (P, K).

    Args:
        scores_NK: Consecutive results of a stream, ``hop_s`` apart.
        hop_s: Seconds between them.
    """
    lasting = max(1, math.ceil(MIN_ON_S / hop_s - 1e-9))
    y_NK = log_odds(scores_NK)
    if len(y_NK) >= lasting:
        windows = np.lib.stride_tricks.sliding_window_view(y_NK, lasting, axis=0)
        y_NK = windows.min(axis=-1)
    step = max(1, round(PEAK_S / hop_s))
    starts = np.arange(0, len(y_NK), step)
    return np.asarray(np.maximum.reduceat(y_NK, starts, axis=0)) if len(starts) else y_NK


def hit_deciles(log_odds_by_label: Sequence[npt.NDArray[np.floating]]) -> list[list[float]]:
    """(K, 11) deciles for `Thresholds.hits`; a label with few values takes those of all."""
    everything = np.concatenate([*log_odds_by_label])
    rows = [x if len(x) >= 10 else everything for x in log_odds_by_label]
    return [np.quantile(x, np.linspace(0, 1, 11)).round(2).tolist() for x in rows]


def choose(
    peaks_PK: Array,
    hours: float,
    *,
    target: float = TARGET,
    least: Sequence[float],
    hits: Sequence[Sequence[float]] = (),
    reject: float | None = None,
    background: str = "",
) -> Thresholds:
    """Thresholds with the largest expected hit rate at the target.

    For each label k a threshold t_k, with false alarms f_k(t) per hour and hit rate h_k(t), such
    that Σ f_k(t_k) + λ (1 - h_k(t_k)) is least; λ is found by bisection.

    Args:
        peaks_PK: `peaks` of background audio.
        hours: That the peaks stand for.
        target: False alarms per hour, all labels together.
        least: (K,) log-odds that no threshold is below.
        hits: `hit_deciles`, where known.
        reject: See `Thresholds.reject`; the peaks already contain it.
        background: Describes the audio.
    """
    # 17 is beyond what `log_odds` gives.
    least_K = np.where(np.array(least) > _SUREST, 17.0, least)
    top_K = np.maximum(least_K, _HIGHEST if hits else _HIGHEST_BLIND)
    grid = np.unique([*np.linspace(min(0.0, *least_K), max(top_K), 400), *least_K, *top_K])
    rows = np.arange(len(least))
    false_KG = np.stack([_rate(peaks_PK[:, k], grid, hours) for k in rows])
    false_KG[(grid < least_K[:, None]) | (grid > top_K[:, None])] = np.inf
    hit_KG = np.ones_like(false_KG)
    if hits:
        hit_KG = np.stack([1 - np.interp(grid, row, np.linspace(0, 1, 11)) for row in hits])
    # No label is given up for the others, unless steady noise demands it.
    usable_KG = np.logical_and(np.isfinite(false_KG), hit_KG >= MIN_LABEL_HIT_RATE)
    false_KG[~usable_KG & usable_KG.any(axis=1, keepdims=True)] = np.inf

    def at(exponent: float) -> tuple[npt.NDArray[np.int64], float, float]:
        """Indices into the grid, false alarms and hit rate for a weight of the hits."""
        index_K = (false_KG - 10**exponent * hit_KG).argmin(axis=1)
        return index_K, float(false_KG[rows, index_K].sum()), float(hit_KG[rows, index_K].mean())

    if hits:
        low, high = -8.0, 8.0
        for _ in range(40):
            middle = (low + high) / 2
            _, rate, hit = at(middle)
            low, high = (low, middle) if rate > target and hit > MIN_HIT_RATE else (middle, high)
        index_K, rate, hit = at(low)
    else:  # every label gets the same part of the budget
        index_K = np.argmax(false_KG <= target / len(least), axis=1)
        never_K = ~(false_KG <= target / len(least)).any(axis=1)
        index_K[never_K] = np.searchsorted(grid, top_K[never_K])
        rate, hit = float(false_KG[rows, index_K].sum()), 0.0
    on = [NEVER if x > _SUREST else round(1 / (1 + math.exp(-x)), 7) for x in grid[index_K]]
    return Thresholds(
        on=tuple(on),
        off=tuple(round(min(x, max(x - _OFF, 0.01)), 6) for x in on),
        reject=reject,
        target=target,
        false_alarms_per_hour=float(f"{rate:.3g}"),
        hit_rate=round(hit, 3) if hits else None,
        background=background,
        least=tuple(round(float(x), 2) for x in least),
        hits=tuple(tuple(row) for row in hits),
    )


def _rate(peaks_P: Array, grid: Array, hours: float) -> Array:
    """Peaks per hour at or above each log-odds: counted, and exponential beyond the largest few."""
    ordered = np.sort(peaks_P)
    counted = (len(ordered) - np.searchsorted(ordered, grid)).astype(np.float64)
    n = min(_TAIL, len(ordered) // 4)
    if n >= 3:
        start = ordered[-n]
        decay = max(_LEAST_DECAY, float((ordered[-n:] - start).mean()))
        counted = np.where(grid > start, n * np.exp(-(grid - start) / decay), counted)
    return counted / hours


def background_scores(
    stream: Stream, blocks: Iterable[tuple[npt.NDArray[Any], int]], reject: float | None
) -> list[Array]:
    """`decision_scores` (N, K) of each unbroken stretch of a background.

    Args:
        stream: A new stream with windows of `WINDOW_S`, `HOP_S` apart.
        blocks: Samples, and how many were lost before them.
        reject: See `decision_scores`.
    """
    found: list[list[Array]] = [[]]
    for samples, lost in blocks:
        if lost:
            stream.gap(lost, keep_pooling=False)
            found.append([])
        found[-1] += [decision_scores(r.scores, r.logits, reject) for r in stream.push(samples)]
    return [np.stack(rows) for rows in found if rows]


def tuned(
    old: Thresholds | None,
    scores: Sequence[npt.NDArray[np.floating]],
    labels: int,
    target: float | None = None,
) -> Thresholds:
    """Thresholds for a user's own background, without labels.

    What steady noise needs stays as it was, and so does what is known about hits.

    Args:
        old: The file's thresholds, whose ``reject`` the scores contain.
        scores: (N, K) `decision_scores` of each recording.
        labels: K.
        target: False alarms per hour; None: as before.

    Raises:
        ModelFileError: There is too little background.
    """
    found = [peaks(some_NK) for some_NK in scores if len(some_NK)]
    hours = sum(len(some) for some in scores) * HOP_S / 3600
    if not found or hours * 3600 < PEAK_S:
        raise ModelFileError(
            f"{hours * 3600:.0f} s of background are too little to tune to.",
            fix="Record at least a few minutes, better an hour.",
        )
    return choose(
        np.concatenate(found),
        hours,
        target=target or (old.target if old else TARGET),
        least=old.least if old and old.least else [0.0] * labels,
        hits=old.hits if old else (),
        reject=old.reject if old else None,
        background=f"tuned on {hours:.2g} h of the user's background",
    )


def with_thresholds(model: bytes, thresholds: Thresholds) -> bytes:
    """An ONNX model file with other thresholds; needs no ``onnx`` package.

    Raises:
        ModelFileError: It is an engine.
    """
    if model.startswith(b"ftrt"):
        raise ModelFileError(
            "The thresholds of an engine cannot be changed.",
            fix="Tune the ONNX file that it was built from, and build the engine again.",
        )
    text = json.dumps(thresholds.to_dict(), separators=(",", ":"))
    return metadata_entry(model, THRESHOLDS_KEY, text)
