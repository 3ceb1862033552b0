"""Events in long recordings: false alarms per hour, hit rate and latency.

Shape legend: N samples or windows, M mel bands, K classes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.errors import ConfigError, DataError
from frami_edge.frontend import resample
from frami_edge.opening import OpenedModel, predict
from frami_edge.progress import Progress, ProgressCallback
from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.stream import Result, scores_of
from frami_edge_runtime.thresholds import HOP_S, WINDOW_S

TOLERANCE_S: Final = 0.5
"""An event this far from a sound still belongs to it."""
SHIFTS: Final = np.linspace(-6, 8, 29)
"""Of all thresholds in log-odds, for the detection error trade-off."""


@dataclass(frozen=True)
class Sound:
    """A labelled sound in a recording, seconds from its start."""

    onset: float
    offset: float
    label: str


@dataclass(frozen=True)
class EventScore:
    """Events of one model in long recordings, compared with the sounds that are in them.

    Attributes:
        hours: Audio.
        sounds: Labelled sounds of the model's classes.
        hits: Those that an event of their label overlaps.
        false_alarms: Events that overlap no sound of their label.
        latency_s: Median time from the onset of a sound to the audio that started its event.
        curve: (false alarms per hour, hit rate) as all thresholds rise, in `SHIFTS`.
    """

    hours: float
    sounds: int
    hits: int
    false_alarms: int
    latency_s: float | None = None
    curve: tuple[tuple[float, float | None], ...] = ()

    @property
    def false_alarms_per_hour(self) -> float:
        """False alarms of all labels together."""
        return self.false_alarms / self.hours

    @property
    def hit_rate(self) -> float | None:
        """Share of the sounds that were found; None where there are none."""
        return self.hits / self.sounds if self.sounds else None

    def at_hit_rate(self, wanted: float) -> float | None:
        """False alarms per hour at the highest thresholds that still find this share."""
        rates = [false for false, hit in self.curve if hit is not None and hit >= wanted]
        return min(rates, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rates = {
            "false_alarms_per_hour": self.false_alarms_per_hour,
            "hit_rate": self.hit_rate,
        }
        return {**asdict(self), **rates}


def read_sounds(path: Path) -> dict[str, list[Sound]]:
    """Labelled sounds by file name, from a CSV with the columns file, onset, offset and label.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    found: dict[str, list[Sound]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                sound = Sound(float(row["onset"]), float(row["offset"]), row["label"])
                found.setdefault(Path(row["file"]).name, []).append(sound)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"Cannot read the labels {path}: {error}.",
            fix="Write a CSV with the header file,onset,offset,label; times in seconds.",
        ) from None
    return found


def window_results(model: OpenedModel, samples: npt.NDArray[np.float32], rate: int) -> list[Result]:
    """Results of windows of 1 s, 0.25 s apart: of the stream, or of a checkpoint window by window.

    Args:
        model: A streaming file, a student or a teacher.
        samples: (N,) mono in [-1, 1].
        rate: Hz; other rates than the model's are resampled.

    Raises:
        ConfigError: The model takes whole clips only.
    """
    if rate != model.mel.sample_rate:
        samples = resample(torch.from_numpy(samples), rate, model.mel.sample_rate).numpy()
        rate = model.mel.sample_rate
    if model.classifier is not None:
        stream = model.classifier.stream(window_s=WINDOW_S, hop_s=HOP_S)
        step = 10 * rate
        parts = [stream.push(samples[i : i + step]) for i in range(0, len(samples), step)]
        return [result for part in parts for result in part]
    if model.network is None:
        raise ConfigError(
            f"{model.path} does not stream.", fix="Use a checkpoint, or the streaming file."
        )
    output = model.network.output
    mel_MT = torch.from_numpy(log_mel(samples, model.mel)).T
    width, hop_s = round(WINDOW_S / model.mel.hop_s), model.mel.hop_s
    starts = range(0, mel_MT.shape[1] - width + 1, round(HOP_S / hop_s))
    logits_NK = predict(model.network.model, [mel_MT[:, i : i + width] for i in starts]).numpy()
    results = []
    for start, z_K in zip(starts, logits_NK, strict=True):
        scores_K, index = scores_of(z_K, output), int(z_K.argmax())
        t0, best = start * hop_s, float(scores_K[index])
        t1, label = t0 + width * hop_s, model.labels[index]
        results.append(Result(label, index, best, scores_K, z_K, model.labels, t0, t1))
    return results


def score_events(
    model: OpenedModel,
    recordings: Iterable[tuple[npt.NDArray[np.float32], int, Sequence[Sound]]],
    spec: EventSpec,
    progress: ProgressCallback | None = None,
) -> EventScore:
    """Events of a model in long recordings.

    Args:
        model: A streaming file, a student or a teacher.
        recordings: Samples, sample rate and labelled sounds of each; sounds of other labels than
            the model's are background.
        spec: Settings of the events.
        progress: Called after each recording.

    Raises:
        ConfigError: The model takes whole clips only.
        DataError: There is no audio.
    """
    heard, seconds = [], 0.0
    for samples, rate, sounds in recordings:
        seconds += len(samples) / rate
        own = [sound for sound in sounds if sound.label in model.labels]
        heard.append((window_results(model, samples, rate), own))
        if progress:
            progress(Progress("recordings", len(heard), None))
    if not seconds:
        raise DataError("There is no audio.", fix="Give --stream files with samples.")
    total = sum(len(sounds) for _, sounds in heard)

    def count(shift: float) -> tuple[int, int, list[float]]:
        hits, false_alarms, latencies = 0, 0, list[float]()
        rules = spec.rules(model.labels)
        moved = {label: {"on": _moved(rule.on, shift)} for label, rule in rules.items()}
        shifted = replace(spec, overrides=moved) if shift else spec
        for results, sounds in heard:
            detector = EventDetector(shifted, model.labels)
            events = [event for result in results for event in detector.push(result)]
            events += detector.finish()
            started = {(e.label, e.t0): e.at for e in events if e.kind == "start"}
            found: dict[Sound, float] = {}
            for event in (e for e in events if e.kind == "end"):
                mine = [
                    s
                    for s in sounds
                    if s.label == event.label
                    and event.t0 < s.offset + TOLERANCE_S
                    and event.t1 > s.onset - TOLERANCE_S
                ]
                false_alarms += not mine
                for sound in mine:
                    found.setdefault(sound, started[event.label, event.t0] - sound.onset)
            hits += len(found)
            latencies += found.values()
        return hits, false_alarms, latencies

    hits, false_alarms, latencies = count(0.0)
    hours, curve = seconds / 3600, []
    for shift in SHIFTS:
        more_hits, more_false, _ = count(float(shift))
        curve.append((more_false / hours, more_hits / total if total else None))
    latency_s = float(np.median(latencies)) if latencies else None
    return EventScore(hours, total, hits, false_alarms, latency_s, tuple(curve))


def _moved(threshold: float, shift: float) -> float:
    """A threshold moved by so much in log-odds."""
    odds = threshold / max(1e-9, 1 - threshold) * np.exp(shift)
    return float(np.clip(odds / (1 + odds), 1e-6, 1 - 1e-7))
