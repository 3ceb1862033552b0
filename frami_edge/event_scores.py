"""Events in long recordings: false alarms per hour, hit rate and latency.

Shape legend: N samples or windows, M mel bands, K classes.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from frami_edge import plots
from frami_edge.data.clips import audio_below, readable
from frami_edge.errors import AudioError, ConfigError, DataError
from frami_edge.evaluation import as_selected, check_teacher
from frami_edge.frontend import resample
from frami_edge.io import atomic_write_bytes, nfc
from frami_edge.opening import OpenedModel, open_model
from frami_edge.progress import Progress, ProgressCallback
from frami_edge.tables import Table, percent
from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.monitor import INT16_SCALE
from frami_edge_runtime.state import check_place
from frami_edge_runtime.stream import Result, scores_of
from frami_edge_runtime.thresholds import (
    HOP_S,
    MIN_ON_S,
    NEVER,
    WINDOW_S,
    Thresholds,
    background_scores,
    log_odds,
    tuned,
    with_thresholds,
)

log = logging.getLogger("frami_edge")

T = TypeVar("T")

TOLERANCE_S: Final = 0.5
"""An event this far from a sound still belongs to it."""
STEP: Final = 0.5
"""Between points of the detection error trade-off, in log-odds of thresholds."""
LOWEST, RAISED_BY = -6.0, 8.0
"""How low the last ceiling is, and how far thresholds rise."""


@dataclass(frozen=True)
class Sound:
    """A labelled sound in a recording, seconds from its start."""

    onset: float
    offset: float
    label: str


class Point(NamedTuple):
    """One point of the detection error trade-off."""

    false_alarms_per_hour: float
    hit_rate: float | None
    highest: float
    """The highest threshold of all labels: where it is below the model's own, a ceiling, as of
    `frami-edge listen --on-at-most`; above, all are raised by the same log-odds."""


@dataclass(frozen=True)
class EventScore:
    """Events of one model in long recordings, compared with the sounds that are in them.

    Attributes:
        hours: Audio.
        sounds: Labelled sounds of the model's classes.
        hits: Those that an event of their label overlaps.
        false_alarms: Events that overlap no sound of their label.
        latency_s: Median time from the onset of a sound to the audio that started its event.
        curve: The detection error trade-off, from low thresholds to high ones: up to the model's
            own, those above a ceiling are lowered to it; from there on, all rise together. So it
            goes through what the model does, and ends as one threshold for all labels: lowering
            all together would flood a model whose labels have very different ones.
    """

    hours: float
    sounds: int
    hits: int
    false_alarms: int
    latency_s: float | None = None
    curve: tuple[Point, ...] = ()

    @property
    def false_alarms_per_hour(self) -> float:
        """False alarms of all labels together."""
        return self.false_alarms / self.hours

    @property
    def hit_rate(self) -> float | None:
        """Share of the sounds that were found; None where there are none."""
        return self.hits / self.sounds if self.sounds else None

    def at_hit_rate(self, wanted: float) -> Point | None:
        """The highest thresholds that find this share; None where none do.

        Not the fewest false alarms: an event that never ends is none, and finds everything.
        """
        found = [p for p in self.curve if p.hit_rate is not None and p.hit_rate >= wanted]
        return found[-1] if found else None

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
        DataError: It cannot be read, lacks a column, or a sound ends before it starts.
    """
    found: dict[str, list[Sound]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, restval="")
            for row in rows:
                sound = Sound(float(row["onset"]), float(row["offset"]), nfc(row["label"]))
                if not 0 <= sound.onset < sound.offset < float("inf"):
                    raise ValueError(f"line {rows.line_num} ends before it starts")
                found.setdefault(nfc(Path(row["file"]).name), []).append(sound)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, KeyError):
            reason = f"the column {error} is missing"
        raise DataError(
            f"Cannot read the labels {path}: {reason}.",
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
    # A teacher that takes audio gets windows of samples, any other network those of log-mels.
    x = samples if model.takes_audio else log_mel(samples, model.mel).T
    step_s = 1 / rate if model.takes_audio else model.mel.hop_s
    width = round(WINDOW_S / step_s)
    starts = range(0, x.shape[-1] - width + 1, round(HOP_S / step_s))
    if not starts:
        return []
    windows = [np.ascontiguousarray(x[..., i : i + width]) for i in starts]
    if model.takes_audio:
        logits_NK = model.logits_of_audio((window, rate) for window in windows).numpy()
    else:
        logits_NK = model.logits(windows).numpy()
    results = []
    for start, z_K in zip(starts, logits_NK, strict=True):
        scores_K, index = scores_of(z_K, model.output), int(z_K.argmax())
        t0, best = start * step_s, float(scores_K[index])
        t1, label = t0 + width * step_s, model.labels[index]
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
    spelled = {nfc(label): label for label in model.labels}
    for samples, rate, sounds in recordings:
        seconds += len(samples) / rate
        labelled = [(spelled.get(nfc(sound.label)), sound) for sound in sounds]
        own = [replace(sound, label=label) for label, sound in labelled if label]
        heard.append((window_results(model, samples, rate), own))
        if progress:
            progress(Progress("recordings", len(heard), None))
    if not seconds:
        raise DataError("There is no audio.", fix="Give --stream files with samples.")
    total = sum(len(sounds) for _, sounds in heard)

    def count(changed: EventSpec) -> tuple[int, int, list[float]]:
        hits, false_alarms, latencies = 0, 0, list[float]()
        for results, sounds in heard:
            detector = EventDetector(changed, model.labels)
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

    hits, false_alarms, latencies = count(spec)
    hours, curve = seconds / 3600, []
    rules = spec.rules(model.labels)
    given = {label: float(log_odds(np.array(rule.on))) for label, rule in rules.items()}
    highest, surest = max(given.values()), float(log_odds(np.array(NEVER)))
    ceilings = np.arange(highest, LOWEST, -STEP)[::-1]
    moves = [{label: min(x, ceiling) for label, x in given.items()} for ceiling in ceilings]
    raised = np.arange(STEP, RAISED_BY + STEP, STEP)
    moves += [{label: x + by for label, x in given.items()} for by in raised]
    for move in moves:
        on = {label: NEVER if x >= surest else 1 / (1 + math.exp(-x)) for label, x in move.items()}
        moved = replace(spec, overrides={label: {"on": value} for label, value in on.items()})
        more_hits, more_false, _ = count(moved)
        hit_rate = more_hits / total if total else None
        curve.append(Point(more_false / hours, hit_rate, max(on.values())))
    latency_s = float(np.median(latencies)) if latencies else None
    return EventScore(hours, total, hits, false_alarms, latency_s, tuple(curve))


@dataclass(frozen=True)
class StreamEvaluation:
    """Events of a model, and of its teacher, in the same recordings."""

    model: EventScore
    teacher: EventScore | None = None
    left_out: tuple[str, ...] = ()
    """Recordings that cannot be used."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        theirs = self.teacher.to_dict() if self.teacher else None
        return {"model": self.model.to_dict(), "teacher": theirs, "left_out": list(self.left_out)}

    def tables(self) -> list[Table]:
        """One row per model, at its own thresholds; then false alarms at equal hit rates."""
        rows = {"model": self.model} | ({"teacher": self.teacher} if self.teacher else {})
        summary = Table(
            f"Events in {self.model.hours:.2f} h",
            ("", "false alarms per hour", "hit rate", "sounds", "latency, s"),
            [
                (name, e.false_alarms_per_hour, percent(e.hit_rate), e.sounds, e.latency_s)
                for name, e in rows.items()
            ],
            "Each with its own thresholds; a teacher's start at 0.5."
            + f" {len(self.left_out)} recordings were left out." * bool(self.left_out),
        )
        wanted = [rate for rate in (0.5, 0.7, 0.8, 0.9, 0.95) if self.model.sounds]
        points = {name: [e.at_hit_rate(rate) for rate in wanted] for name, e in rows.items()}
        trade = Table(
            "False alarms per hour at a hit rate",
            ["", *(f"{100 * rate:.0f} %" for rate in wanted)],
            [
                *(
                    (name, *(p and p.false_alarms_per_hour for p in row))
                    for name, row in points.items()
                ),
                ("highest threshold", *(p and p.highest for p in points["model"])),
            ],
            "From the model's own thresholds, those above a ceiling fall to it (frami-edge listen "
            "--on-at-most), or all rise by the same log-odds.",
        )
        return [summary, trade] if wanted else [summary]


def evaluate_stream(
    model: Path,
    audio: Sequence[Path],
    *,
    labels: Path | None = None,
    teacher: Path | None = None,
    picture: Path | None = None,
    progress: ProgressCallback | None = None,
) -> StreamEvaluation:
    """Score a model's events in long recordings, with the settings of `frami-edge listen`.

    Args:
        model: A streaming file or a checkpoint.
        audio: Files, or folders of them.
        labels: CSV of the sounds in them, see `read_sounds`; without it every event is a false
            alarm.
        teacher: Its teacher, to compare with.
        picture: PNG file of the detection error trade-off; needs sounds.
        progress: Called after each recording.

    Raises:
        CheckpointError: `teacher` is not the model's.
        ConfigError: The model takes whole clips only.
        DataError: There is no audio, none that can be used, or the labels cannot be read or do not
            belong to it.
        OutputError: `picture` cannot be written.
    """
    if picture:
        check_place(picture)
    sounds = read_sounds(labels) if labels else {}
    files = audio_files(audio)
    names = [nfc(file.name) for file in files]
    if doubled := [name for name in names if name in sounds and names.count(name) > 1]:
        raise DataError(
            f"Labels go by file name, and {doubled[0]} is there twice.", fix="Rename one of them."
        )
    opened = open_model(model)
    reference = as_selected(opened, open_model(teacher)) if teacher else None
    if reference:
        check_teacher(opened, reference)
    own = {nfc(label) for label in opened.labels}
    if labels and not any(s.label in own for name in names for s in sounds.get(name, ())):
        log.warning(
            "No line of %s has the name of a recording and a label of the model (such as %s): "
            "every event counts as a false alarm.",
            labels, ", ".join(opened.labels[:3]),
        )  # fmt: skip

    left_out: dict[Path, str] = {}
    late: set[Path] = set()

    def read(path: Path) -> tuple[npt.NDArray[np.float32], int, Sequence[Sound]]:
        samples, rate = read_recording(path)
        inside, length_s = sounds.get(nfc(path.name), []), len(samples) / rate
        beyond = sum(sound.onset >= length_s for sound in inside)
        if beyond and path not in late:
            late.add(path)
            log.warning(
                "%d of the %d sounds labelled in %s begin after its end, at %.1f s: they cannot be "
                "found. Labels are in seconds.",
                beyond, len(inside), path.name, length_s,
            )  # fmt: skip
        return samples, rate, inside

    def score(judged: OpenedModel) -> EventScore:
        settings: dict[str, Any] = {"min_on_s": MIN_ON_S}
        info = judged.info
        spec = EventSpec.for_model(info, **settings) if info else EventSpec(**settings)
        recordings = (heard for _, heard in usable(files, read, left_out))
        return score_events(judged, recordings, spec, progress)

    scores = score(opened), score(reference) if reference else None
    found = StreamEvaluation(*scores, tuple(map(str, left_out)))
    curves = {
        name: [(p.false_alarms_per_hour, p.hit_rate) for p in e.curve if p.hit_rate is not None]
        for name, e in (("model", found.model), ("teacher", found.teacher))
        if e is not None and e.sounds
    }
    if picture and curves:
        plots.detection_error(picture, curves, f"{model.name}, {found.model.hours:.2f} h")
    elif picture:
        log.warning("There is no picture: it shows missed sounds, and no sound is labelled.")
    return found


def usable(
    files: Sequence[Path], read: Callable[[Path], T], left_out: dict[Path, str]
) -> Iterator[tuple[Path, T]]:
    """What ``read`` gives of each file. Where it cannot, a warning, and the reason in ``left_out``.

    Raises:
        AudioError: The only file cannot be used.
        DataError: No file can be used.
    """
    for path in files:
        try:
            found = read(path)
        except AudioError as error:
            if len(files) == 1:
                raise
            if path not in left_out:
                log.warning("%s It is left out.", readable(error.message))
            left_out[path] = error.message
            continue
        yield path, found
    if len(left_out) == len(files):
        raise DataError(
            f"None of the {len(files)} recordings can be used.",
            fix="The warnings above say why; give other files.",
        )


def read_recording(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Mono samples in [-1, 1] and sample rate of a recording of any length.

    Raises:
        AudioError: It cannot be read.
    """
    with closing(AudioFile(path)) as file:
        parts = [np.zeros(0, np.float32)]
        for samples, _ in iter(file.read, None):
            scale = INT16_SCALE if samples.dtype.kind == "i" else np.float32(1)
            parts.append(samples.astype(np.float32) * scale)
        return np.concatenate(parts), file.sample_rate


def audio_files(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and all audio files below the folders.

    Raises:
        DataError: There are none, or a path is wrong.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise DataError(f"There is no file or folder {path}.", fix="Check the path.")
        found += audio_below(path) if path.is_dir() else [path]
    if not found:
        raise DataError(
            f"There is no audio in {', '.join(map(str, paths))}.",
            fix="Give audio files, or folders that hold some.",
        )
    return found


def tune(
    model: Path, audio: Sequence[Path], out: Path, *, false_alarms_per_hour: float | None = None
) -> tuple[Thresholds, list[str]]:
    """Write a streaming model file with thresholds for a background; nothing else changes.

    Args:
        model: The ``.onnx`` file.
        audio: Recordings of the place, without the sounds that the model shall find; or folders.
        out: The new file.
        false_alarms_per_hour: Target; None for the one that the file was exported with.

    Returns:
        The thresholds, and the recordings that cannot be used.

    Raises:
        DataError: There is no audio, or none that can be used.
        ModelFileError: The model is no streaming ONNX file, or there is too little audio.
        OutputError: `out` cannot be written.
    """
    check_place(out)
    classifier = Classifier(model)
    old = Thresholds.of(classifier.info)
    reject = old.reject if old else None
    left_out: dict[Path, str] = {}

    def heard(path: Path) -> list[npt.NDArray[np.float64]]:
        with closing(AudioFile(path)) as file:
            stream = classifier.stream(file.sample_rate, WINDOW_S, hop_s=HOP_S)
            return background_scores(stream, iter(file.read, None), reject)

    scores = [rows for _, found in usable(audio_files(audio), heard, left_out) for rows in found]
    found = tuned(old, scores, len(classifier.labels), false_alarms_per_hour)
    atomic_write_bytes(out, with_thresholds(model.read_bytes(), found))
    return found, [*map(str, left_out)]
