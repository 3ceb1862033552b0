"""The loop: read, push, detect, show; the same for a file, a pipe and a microphone."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.capture import Microphone, PcmPipe
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.events import Event, EventDetector
from frami_edge_runtime.listen.displays import Display, JsonLines, Plain
from frami_edge_runtime.listen.level import LevelMeter
from frami_edge_runtime.listen.live import live_display
from frami_edge_runtime.listen.options import MICROPHONE, STDIN, ListenOptions
from frami_edge_runtime.listen.records import Gap, Heard, Reason, Start, Summary
from frami_edge_runtime.listen.stopping import Stop
from frami_edge_runtime.result import Result
from frami_edge_runtime.wavfile import AudioFile, Channel

_LEVEL_SPAN_S = 20.0
"""Levels that are kept beyond a window; the longest block of a source is shorter."""


class Source(Protocol):
    """`AudioFile`, `PcmPipe` or `Microphone`."""

    name: str
    device_note: str
    sample_rate: int

    def read(self) -> tuple[npt.NDArray[Any], int] | None:
        """Samples and how many were lost right before them; None at the end."""

    def close(self) -> None:
        """Free it."""


def run(options: ListenOptions) -> Summary:
    """Listen until the source ends, or it was asked to stop; print as the options say.

    Raises:
        FramiEdgeError: The model, the source or the options cannot be used.
    """
    stop = Stop()
    with stop.on_signals():
        classifier = Classifier(options.model, options.backend)
        source = open_source(options, classifier.info.mel.sample_rate)
        display: Display | None = None
        try:
            session = Session(classifier, source, options)
            display = choose_display(options)
            return session.run(display, stop)
        finally:
            if display is not None:
                display.close()
            source.close()
            classifier.close()


def open_source(options: ListenOptions, model_rate: int) -> Source:
    """What ``options.source`` names.

    Raises:
        AudioError: It cannot be opened.
    """
    channel: Channel = "mix" if options.channel == "mix" else int(options.channel)
    if options.kind == MICROPHONE:
        return Microphone(options.rate or model_rate, options.device, seconds=options.ring_s)
    if options.kind == STDIN:
        assert options.rate is not None  # checked by the options
        return PcmPipe(
            sys.stdin.buffer,
            options.rate,
            options.encoding or "s16le",
            channels=options.channels or 1,
            channel=channel,
        )
    return AudioFile(options.source, channel)


def choose_display(options: ListenOptions) -> Display:
    """JSON Lines if asked for; live on a terminal that has rich; else plain lines."""
    flush = options.kind != "file" or sys.stdout.isatty()
    if options.json:
        return JsonLines(quiet=options.quiet, flush=flush)
    if not options.plain and not options.quiet and sys.stdout.isatty():
        live = live_display()
        if live is not None:
            return live
    return Plain(quiet=options.quiet, flush=flush)


class Session:
    """One model listening to one source.

    Raises:
        AudioError: The rate needs soxr, which is not installed.
        StreamError: The options can never give an event.
    """

    def __init__(self, classifier: Classifier, source: Source, options: ListenOptions) -> None:
        """Open the stream and the detector."""
        self._classifier, self._source, self._options = classifier, source, options
        self._spec = options.spec
        self._rate = source.sample_rate
        self._stream = classifier.stream(
            self._rate, options.window, options.forget_s, options.hop_s
        )
        hop_s = self._stream.hop_s
        self._spec.check_reach(hop_s=hop_s, length_s=options.duration_s)
        assert hop_s is not None  # or check_reach would have refused
        self._hop_s = hop_s
        self._detector = EventDetector(self._spec, classifier.labels, forget_s=options.forget_s)
        self._look_back_s = self._stream.window_s or 2 * (options.forget_s or 0)
        self._meter = LevelMeter(self._rate, self._look_back_s + _LEVEL_SPAN_S)
        self._clock = self._lost = self._gaps = self._results = 0
        self._shown_to = 0.0
        self._began: Counter[str] = Counter()

    def run(self, display: Display, stop: Stop) -> Summary:
        """Until the end, whatever it is."""
        begun = time.perf_counter()
        display.start(self._start())
        reason = self._listen(display, stop)
        if reason != "once":
            self._end(display, reason)
        stats = self._stream.stats
        summary = Summary(
            reason=reason,
            audio_s=self._clock / self._rate,
            results=self._results,
            events=dict(self._began),
            lost=self._lost,
            lost_s=self._lost / self._rate,
            gaps=self._gaps,
            wall_s=time.perf_counter() - begun,
            busy_s=stats.busy_s,
            max_lag_s=self._source.stats.max_lag_s if isinstance(self._source, Microphone) else 0.0,
        )
        display.finish(summary)
        return summary

    def _listen(self, display: Display, stop: Stop) -> Reason:
        limit = None
        if self._options.duration_s is not None:
            limit = round(self._options.duration_s * self._rate)
        while limit is None or self._clock < limit:
            try:
                with stop.waiting():
                    block = self._source.read()
            except KeyboardInterrupt:
                return "interrupted"
            if block is None:
                return "end"
            samples, lost = block
            if lost:
                self._lose(lost, display)
            if limit is not None:
                samples = samples[: max(0, limit - self._clock)]
            self._clock += len(samples)
            self._meter.push(samples)
            for result in self._stream.push(samples):
                self._take(result, display)
                if self._options.once and self._began:
                    return "once"
            if isinstance(self._source, Microphone) and (warning := self._source.warning()):
                display.warn(warning)
        return "duration"

    def _lose(self, lost: int, display: Display) -> None:
        for result in self._stream.gap(lost):
            self._take(result, display)
        display.gap(Gap(self._clock / self._rate, lost, lost / self._rate))
        self._meter.lose(lost)
        self._clock += lost
        self._lost += lost
        self._gaps += 1

    def _end(self, display: Display, reason: Reason) -> None:
        last = self._stream.flush()
        if last is None and reason == "end" and self._clock == 0:
            raise AudioError(
                f"{self._source.name} holds no samples.", fix="Give one with audio in it."
            )
        if last is not None:
            self._take(last, display)
        self._tell(self._detector.finish(), display)

    def _take(self, result: Result, display: Display) -> None:
        self._results += 1
        best_K = np.argsort(-result.scores, kind="stable")[: self._options.top]
        display.heard(
            Heard(
                result.t0,
                result.t1,
                self._meter.level_db(self._shown_to, result.t1),
                tuple((result.labels[i], float(result.scores[i])) for i in best_K),
                result.gap,
            )
        )
        self._shown_to = result.t1
        level_db = None
        if self._spec.min_level_db is not None:
            looked_back_to = max(result.t0, result.t1 - self._look_back_s)
            level_db = self._meter.level_db(looked_back_to, result.t1)
        self._tell(self._detector.push(result, level_db=level_db), display)

    def _tell(self, events: list[Event], display: Display) -> None:
        for event in events:
            self._began[event.label] += event.kind == "start"
            display.event(event)

    def _start(self) -> Start:
        # Imported here: the package's __init__ imports much, and this is in its middle.
        from frami_edge_runtime import __version__

        options, info = self._options, self._classifier.info
        notes = [self._source.device_note] if self._source.device_note else []
        if self._rate != info.mel.sample_rate:
            notes.append(f"resampled from {self._rate} Hz to {info.mel.sample_rate} Hz")
        return Start(
            model=Path(options.model).name,
            labels=info.labels,
            model_rate=info.mel.sample_rate,
            backend=self._classifier.backend,
            backend_reason=self._classifier.backend_reason,
            source=self._source.name,
            sample_rate=self._rate,
            window_s=self._stream.window_s,
            forget_s=options.forget_s,
            hop_s=self._hop_s,
            events=dataclasses.asdict(self._spec),
            notes=tuple(notes),
            version=__version__,
        )
