"""`frami-edge-listen`: run a model on a microphone, a file or a pipe; print results and events."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from frami_edge_runtime import __version__
from frami_edge_runtime.audio import INT16_SCALE, AudioFile
from frami_edge_runtime.capture import Microphone, PcmPipe
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, FramiEdgeError
from frami_edge_runtime.events import Event, EventDetector, EventSpec
from frami_edge_runtime.stream import Result

Source: TypeAlias = "AudioFile | PcmPipe | Microphone"
Record: TypeAlias = "dict[str, Any]"
"""One line of ``--json``; the runtime's README lists the fields of each ``type``."""

DEFAULT_WINDOW_S: Final = 1.0
MICROPHONE: Final = "mic"
STDIN: Final = "-"
METER_FLOOR_DB: Final = -60.0
_LEVEL_BLOCK_S: Final = 0.01
_LEVEL_SPAN_S: Final = 20.0
"""Levels kept beyond a window; the longest block of a source is shorter."""
_MOST_LEVEL_BLOCKS: Final = 4096
_QUIETEST_DB: Final = -120.0
_LOSSES_EVERY_S: Final = 10.0
_EXAMPLES: Final = """examples:
  {prog} student.onnx
  {prog} student.onnx street.wav --on 0.7 --min-on 0.5
  {prog} student.onnx mic --device plughw:1 --json --quiet | my-logger
  ffmpeg -i rtsp://cam -f s16le -ac 1 -ar 16000 - | {prog} student.onnx - --rate 16000

exit codes: 0 done, also after Ctrl-C; 1 a known error; 2 wrong usage
"""


class LevelMeter:
    """Mean level of any recent stretch, to within one block of 10 ms at each end.

    Args:
        sample_rate: Hz.
        span_s: Seconds that can be looked back; very long spans have longer blocks.
    """

    def __init__(self, sample_rate: int, span_s: float) -> None:
        self._rate = sample_rate
        block_s = max(_LEVEL_BLOCK_S, span_s / _MOST_LEVEL_BLOCKS)
        self._block = max(1, round(block_s * sample_rate))  # samples
        self._blocks = math.ceil(span_s * sample_rate / self._block) + 2
        self._sums = np.zeros((2, 1))  # energy and number of samples of each kept block
        self._clock = 0  # samples

    def push(self, samples: npt.NDArray[Any]) -> None:
        """Take (N,) samples: int16 with full scale 32768, or float with full scale 1."""
        most = (self._blocks - 1) * self._block
        for begin in range(0, len(samples), most):
            x = samples[begin : begin + most].astype(np.float64)
            if samples.dtype.kind == "i":
                x *= float(INT16_SCALE)
            at = (self._clock % self._block + np.arange(len(x))) // self._block
            first = self._clock // self._block
            self.lose(len(x))
            last = self._clock // self._block
            size = last - first + 1
            self._sums[0, -size:] += np.bincount(at, x * x, minlength=size)
            self._sums[1, -size:] += np.bincount(at, minlength=size)

    def lose(self, samples: int) -> None:
        """Advance the clock over lost samples."""
        before = self._clock // self._block
        self._clock += samples
        fresh = min(self._clock // self._block - before, self._blocks)
        self._sums = np.hstack([self._sums, np.zeros((2, fresh))])[:, -self._blocks :]

    def level_db(self, t0: float, t1: float) -> float:
        """RMS level from ``t0`` to ``t1`` seconds in dB of full scale, at least -120.

        A full-scale sine has -3 dB. Lost samples and everything older than the span are left out.
        """
        oldest = self._clock // self._block + 1 - self._sums.shape[1]
        first = max(0, int(t0 * self._rate / self._block) - oldest)
        last = max(first, math.ceil(t1 * self._rate / self._block) - oldest)
        energy, count = self._sums[:, first:last].sum(axis=1).tolist()
        return max(_QUIETEST_DB, 10 * math.log10(energy / count)) if energy else _QUIETEST_DB


def _printable(text: str) -> str:
    """The text without control characters: a label must not control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _event_line(event: Record) -> str | None:
    """A start or an end for people; None for an update."""
    label, lost = _printable(event["label"]), "  (audio was lost)" if event["gap"] else ""
    t0, t1, score = event["t0"], event["t1"], event["score"]
    if event["kind"] == "start":
        return f"{event['at']:9.2f} s  >> {label} began at {t0:.2f} s, {score:.2f}{lost}"
    if event["kind"] == "end":
        span = f"{t0:.2f}-{t1:.2f} s, {t1 - t0:.2f} s"
        return f"{event['at']:9.2f} s  << {label} {span}, best {score:.2f}{lost}"
    return None


def _summary_line(summary: Record) -> str:
    """The summary as one sentence."""
    audio_s, events = summary["audio_s"], summary["events"]
    text = f"{audio_s:.1f} s of audio in {summary['wall_s']:.1f} s"
    if summary["busy_s"] > 0:
        text += f" ({audio_s / summary['busy_s']:.0f} times real time in the model)"
    text += f": {summary['results']} results, {sum(events.values())} events"
    if events:
        text += f" ({', '.join(f'{_printable(name)} {n}' for name, n in sorted(events.items()))})"
    if summary["lost"]:
        share = 100 * summary["lost_s"] / audio_s
        text += f"; lost {summary['lost_s']:.2f} s ({share:.1f} %) in {summary['gaps']} gaps"
    return text + ("; interrupted" if summary["reason"] == "interrupted" else "")


def _filled(level_db: float, width: int) -> int:
    """Filled characters of a level meter from -60 to 0 dB of full scale."""
    return round(width * min(1.0, max(0.0, 1 - level_db / METER_FLOOR_DB)))


class _Plain:
    """Results and events as lines on stdout, everything else on stderr."""

    def __init__(self, *, quiet: bool = False, flush: bool = True) -> None:
        self._quiet, self._flush = quiet, flush
        self._lost_s, self._gaps, self._next_loss = 0.0, 0, 0.0

    def show(self, record: Record) -> None:
        kind = record["type"]
        if kind == "event":
            if line := _event_line(record):
                self.output(line)
        elif kind == "gap":
            self._show_gap(record)
        elif kind == "warning":
            self.note(f"warning: {record['message']}")
        elif not self._quiet:
            getattr(self, f"show_{kind}")(record)

    def show_start(self, start: Record) -> None:
        self.note(
            f"{start['model']}: {len(start['labels'])} classes, {start['model_rate']} Hz, on "
            f"{start['backend']} ({start['backend_reason']})"
        )
        self.note(f"listening to {start['source']} at {start['sample_rate']} Hz, {_mode(start)}")
        for note in start["notes"]:
            self.note(f"note: {note}")

    def show_result(self, result: Record) -> None:
        level_db, filled = result["level_db"], _filled(result["level_db"], 12)
        top = "  ".join(
            f"{_printable(label)} {score:.2f}" for label, score in result["top"].items()
        )
        bar = f"[{'#' * filled:.<12}]"
        self.output(f"{result['t1']:9.2f} s  {level_db:6.1f} dB {bar}  {top}")

    def show_summary(self, summary: Record) -> None:
        self.note(_summary_line(summary))

    def output(self, line: str) -> None:
        print(line, flush=self._flush)

    def note(self, line: str) -> None:
        if self._flush:  # keeps the order where both streams are one terminal
            sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass

    def _show_gap(self, gap: Record) -> None:
        """One line for all gaps of ten seconds: an overloaded machine must not fill a log."""
        self._lost_s += gap["lost_s"]
        self._gaps += 1
        if gap["t"] < self._next_loss:
            return
        gaps = f"in {self._gaps} gaps up to" if self._gaps > 1 else "at"
        self.note(f"warning: {self._lost_s:.3f} s of audio were lost {gaps} {gap['t']:.2f} s")
        self._lost_s, self._gaps, self._next_loss = 0.0, 0, gap["t"] + _LOSSES_EVERY_S


class _JsonLines(_Plain):
    """One JSON object per line on stdout."""

    def show(self, record: Record) -> None:
        if not (self._quiet and record["type"] == "result"):
            rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}
            self.output(json.dumps(rounded, allow_nan=False))


class _Live(_Plain):
    """A rich display of level, top classes and open events, drawn at most ten times per second.

    Events and warnings scroll above it and stay.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        # Imported here: rich is an extra, and takes longer than everything else at the start.
        from rich.console import Console, Group
        from rich.live import Live as RichLive
        from rich.table import Table
        from rich.text import Text

        self._group, self._table, self._text = Group, Table, Text
        self._heading = ""
        self._result: Record | None = None
        self._open: dict[str, float] = {}  # label to start in seconds
        self._live = RichLive(
            console=Console(highlight=False),
            refresh_per_second=10,
            get_renderable=self._draw,
            transient=True,
        )

    def show_start(self, start: Record) -> None:
        self._heading = (
            f"{_printable(start['model'])} on {start['backend']}, {_mode(start)}, from "
            f"{_printable(start['source'])} at {start['sample_rate']} Hz"
        )
        self._live.start()
        for note in start["notes"]:
            self.note(f"note: {note}")

    def show(self, record: Record) -> None:
        if record["type"] == "event":
            self._open[record["label"]] = record["t0"]
            if record["kind"] == "end":
                del self._open[record["label"]]
        super().show(record)

    def show_result(self, result: Record) -> None:
        self._result = result

    def show_summary(self, summary: Record) -> None:
        self.close()
        print(_summary_line(summary), file=sys.stderr)

    def output(self, line: str) -> None:
        self._live.console.print(self._text(line))

    def note(self, line: str) -> None:
        self.output(line)

    def close(self) -> None:
        """Restore the terminal."""
        self._live.stop()

    def _draw(self) -> Any:
        heading = self._text(self._heading, style="dim", no_wrap=True, overflow="ellipsis")
        result = self._result
        if result is None:
            return self._group(heading, self._text("waiting for the first result"))
        level = self._text(f"{result['t1']:9.2f} s  {result['level_db']:6.1f} dB  ")
        style = "red" if result["level_db"] > -6 else "green"
        level.append("█" * _filled(result["level_db"], 40), style=style)
        grid = self._table.grid(padding=(0, 2))
        for label, score in result["top"].items():
            name = self._text(_printable(label), style="bold" if label in self._open else "")
            grid.add_row(name, f"{score:.2f}", self._text("━" * round(40 * score), style="cyan"))
        now = "  ".join(f"{_printable(label)} since {t0:.1f} s" for label, t0 in self._open.items())
        return self._group(heading, level, grid, self._text(now, style="bold yellow"))


def _mode(start: Record) -> str:
    """How results are made, for people."""
    if start["window_s"] is None:
        return (
            f"half of the weight on the last {start['forget_s']:g} s, every {start['hop_s']:.2f} s"
        )
    return f"windows of {start['window_s']:.2f} s every {start['hop_s']:.2f} s"


class _Stop:
    """Handles SIGINT and SIGTERM: only a waiting read is interrupted, never a step of the model."""

    def __init__(self) -> None:
        self._wanted = self._waiting = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._wanted or self._waiting:  # a second signal also interrupts a step that hangs
            raise KeyboardInterrupt
        self._wanted = True

    def read(self, source: Source) -> tuple[npt.NDArray[Any], int] | None:
        self._waiting = True
        try:
            if self._wanted:
                raise KeyboardInterrupt
            return source.read()
        finally:
            self._waiting = False


class _Session:
    """One model on one source.

    Raises:
        AudioError: The rate needs soxr, which is not installed.
        StreamError: The options contradict each other or the model.
    """

    def __init__(self, classifier: Classifier, source: Source, options: argparse.Namespace) -> None:
        self._classifier, self._source, self._options = classifier, source, options
        self._rate = source.sample_rate
        forget_s = options.forget_s
        window_s = options.window_s or (None if forget_s else DEFAULT_WINDOW_S)
        self._stream = classifier.stream(self._rate, window_s, forget_s, options.hop_s)
        # Where one sound gives way to another, a few windows contain both and may name neither:
        # half a window as the shortest event leaves those out.
        half_s = min((window_s or forget_s) / 2, options.duration_s or math.inf)
        given = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(EventSpec)}
        settings = {name: value for name, value in given.items() if value is not None}
        self._spec = EventSpec(**{"min_on_s": half_s, **settings})
        self._detector = EventDetector(self._spec, classifier.labels, forget_s=forget_s)
        self._look_back_s = self._stream.window_s or 2 * forget_s
        self._meter = LevelMeter(self._rate, self._look_back_s + _LEVEL_SPAN_S)
        self._limit = None
        if options.duration_s is not None:
            self._limit = round(options.duration_s * self._rate)
        self._clock = self._lost = self._gaps = self._results = 0
        self._shown_to = 0.0  # seconds
        self._started: Counter[str] = Counter()

    def run(self, display: _Plain, stop: _Stop) -> None:
        """Read, push and show until the source, the limit or a signal ends it."""
        started = time.perf_counter()
        display.show(self._start_record())
        reason = self._listen(display, stop)
        if reason != "once":
            last = self._stream.flush()
            if last is not None:
                self._take(last, display)
            elif reason == "end" and self._clock == 0:
                raise AudioError(
                    f"{self._source.name} holds no samples.", fix="Give a source with audio."
                )
            self._show_events(self._detector.finish(), display)
        max_lag_s = 0.0
        if isinstance(self._source, Microphone):
            max_lag_s = self._source.stats.max_lag_s
        display.show(
            {
                "type": "summary",
                "reason": reason,
                "audio_s": self._clock / self._rate,
                "results": self._results,
                "events": dict(self._started),
                "lost": self._lost,
                "lost_s": self._lost / self._rate,
                "gaps": self._gaps,
                "wall_s": time.perf_counter() - started,
                "busy_s": self._stream.stats.busy_s,
                "max_lag_s": max_lag_s,
            }
        )

    def _listen(self, display: _Plain, stop: _Stop) -> str:
        while self._limit is None or self._clock < self._limit:
            try:
                block = stop.read(self._source)
            except KeyboardInterrupt:
                return "interrupted"
            if block is None:
                return "end"
            samples, lost = block
            if lost:
                self._lose(lost, display)
            if self._limit is not None:
                samples = samples[: max(0, self._limit - self._clock)]
            self._clock += len(samples)
            self._meter.push(samples)
            for result in self._stream.push(samples):
                self._take(result, display)
                if self._options.once and self._started:
                    return "once"
            if isinstance(self._source, Microphone) and (warning := self._source.warning()):
                display.show({"type": "warning", "message": warning})
        return "duration"

    def _lose(self, lost: int, display: _Plain) -> None:
        for result in self._stream.gap(lost):
            self._take(result, display)
        t = self._clock / self._rate
        display.show({"type": "gap", "t": t, "lost": lost, "lost_s": lost / self._rate})
        self._meter.lose(lost)
        self._clock += lost
        self._lost += lost
        self._gaps += 1

    def _take(self, result: Result, display: _Plain) -> None:
        self._results += 1
        best_K = np.argsort(-result.scores, kind="stable")[: self._options.top]
        top = {result.labels[i]: round(float(result.scores[i]), 6) for i in best_K}
        label = result.labels[best_K[0]]
        display.show(
            {
                "type": "result",
                "t0": result.t0,
                "t1": result.t1,
                "label": label,
                "score": top[label],
                "top": top,
                "level_db": round(self._meter.level_db(self._shown_to, result.t1), 1),
                "gap": result.gap,
            }
        )
        self._shown_to = result.t1
        level_db = None
        if self._spec.min_level_db is not None:
            begin = max(result.t0, result.t1 - self._look_back_s)
            level_db = self._meter.level_db(begin, result.t1)
        self._show_events(self._detector.push(result, level_db=level_db), display)

    def _show_events(self, events: list[Event], display: _Plain) -> None:
        for event in events:
            self._started[event.label] += event.kind == "start"
            display.show({"type": "event", **dataclasses.asdict(event)})

    def _start_record(self) -> Record:
        info, notes = self._classifier.info, []
        if self._source.device_note:
            notes.append(self._source.device_note)
        if self._rate != info.mel.sample_rate:
            notes.append(f"resampled from {self._rate} Hz to {info.mel.sample_rate} Hz")
        return {
            "type": "start",
            "model": Path(self._options.model).name,
            "labels": info.labels,
            "model_rate": info.mel.sample_rate,
            "backend": self._classifier.backend,
            "backend_reason": self._classifier.backend_reason,
            "source": self._source.name,
            "sample_rate": self._rate,
            "window_s": self._stream.window_s,
            "forget_s": self._options.forget_s,
            "hop_s": self._stream.hop_s,
            "events": dataclasses.asdict(self._spec),
            "notes": notes,
            "version": __version__,
        }


def run(options: argparse.Namespace) -> None:
    """Listen until the source ends or a signal comes; print as the options ask.

    Raises:
        FramiEdgeError: The model, the source or the options cannot be used.
    """
    stop = _Stop()
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Classifier(options.model, options.backend) as classifier:
            source = open_source(options, classifier.info.mel.sample_rate)
            with closing(source):
                session = _Session(classifier, source, options)
                with closing(_choose_display(options)) as display:
                    session.run(display, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_source(options: argparse.Namespace, model_rate: int) -> Source:
    """The microphone, the pipe or the file that ``options.source`` names.

    Raises:
        AudioError: It cannot be opened.
    """
    if options.source == MICROPHONE:
        return Microphone(options.rate or model_rate, options.device, seconds=options.ring_s)
    if options.source != STDIN:
        return AudioFile(options.source, options.channel)
    return PcmPipe(
        sys.stdin.buffer,
        options.rate,
        options.encoding or "s16le",
        channels=options.channels or 1,
        channel=options.channel,
    )


def _choose_display(options: argparse.Namespace) -> _Plain:
    """JSON Lines where asked for, live on a terminal with rich, else plain lines."""
    terminal = sys.stdout.isatty()
    if terminal and not (options.json or options.plain or options.quiet):
        try:
            return _Live()
        except ImportError:
            pass
    flush = options.source in (MICROPHONE, STDIN) or terminal
    kind = _JsonLines if options.json else _Plain
    return kind(quiet=options.quiet, flush=flush)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _channel(text: str) -> int | str:
    if text != "mix" and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither mix nor a number from 1")
    return text if text == "mix" else int(text)


def _label(text: str) -> str:
    return text


# Group, then (option, attribute, type, metavar, help). The defaults of events are `EventSpec`'s.
_OPTIONS: Final[dict[str, tuple[tuple[str, str, Any, str, str], ...]]] = {
    "results": (
        ("--window", "window_s", _positive, "S", "length of the sliding window (default 1)"),
        ("--forget", "forget_s", _positive, "S", "half-life, instead of a window"),
        ("--hop", "hop_s", _positive, "S", "time between results (default: window / 4, max. 0.5)"),
        ("--top", "top", int, "K", "number of classes shown per result (default 3)"),
        ("--backend", "backend", str, "NAME", "auto, cpu, cuda, tensorrt-ep or tensorrt"),
    ),
    "events": (
        ("--on", "on", float, "P", "score at which an event starts (default 0.5)"),
        ("--off", "off", float, "P", "score below which it ends (default: --on less 0.15)"),
        ("--min-on", "min_on_s", float, "S", "time above --on that starts it (default: window/2)"),
        ("--min-off", "min_off_s", float, "S", "time below --off that ends an event (default 0)"),
        ("--merge-gap", "merge_gap_s", float, "S", "join events less than this apart (default 0)"),
        ("--cooldown", "cooldown_s", float, "S", "ignore a label this long after its event"),
        ("--smooth", "smooth_s", float, "S", "half-life of an average over the scores"),
        ("--update", "update_s", float, "S", "time between updates of an event (default 1)"),
        ("--min-level", "min_level_db", float, "DB", "ignore windows quieter than this, as -55"),
        ("--watch", "watch", _label, "LABEL", "only this label; repeatable"),
        ("--ignore", "ignore", _label, "LABEL", "not this label; repeatable"),
    ),
    "source": (
        ("--device", "device", str, "NAME", "sounddevice name or number, or ALSA PCM"),
        ("--rate", "rate", int, "HZ", "rate of raw PCM, or wanted rate of the microphone"),
        ("--format", "encoding", str, "F", "raw PCM: s16le (default), s32le or f32le"),
        ("--channels", "channels", int, "N", "raw PCM: number of interleaved channels (default 1)"),
        ("--channel", "channel", _channel, "N", "use one channel, from 1, instead of the average"),
        ("--ring", "ring_s", _positive, "S", "audio that may wait for the model (default 10)"),
    ),
    "output": (("--duration", "duration_s", _positive, "S", "stop after this much audio"),),
}
_FLAGS: Final = {
    "--json": "JSON Lines: start, result, event, gap, warning, summary",
    "--plain": "plain lines, also on a terminal",
    "--quiet": "events only, no results or notes",
    "--once": "stop when the first event starts",
}


def make_parser(prog: str = "frami-edge-listen") -> argparse.ArgumentParser:
    """The options of `frami-edge-listen` and `frami-edge listen`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s MODEL [SOURCE] [options]",
        description="Listen with an exported model: level, top classes and events. Files are\n"
        "processed as fast as possible in bounded memory; Ctrl-C ends with a summary.",
        epilog=_EXAMPLES.format(prog=prog),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100),
        allow_abbrev=False,
    )
    parser.set_defaults(top=3, backend="auto", channel="mix", ring_s=10.0)
    parser.add_argument("model", metavar="MODEL", help="the .onnx or .engine file of an export")
    source = "an audio file, - for raw PCM on standard input, or mic (default)"
    parser.add_argument("source", metavar="SOURCE", nargs="?", default=MICROPHONE, help=source)
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for option, dest, kind, metavar, text in options:
            action = "append" if kind is _label else "store"
            settings: dict[str, Any] = {"dest": dest, "type": kind, "metavar": metavar}
            group.add_argument(option, action=action, help=text, **settings)
    for flag, text in _FLAGS.items():
        names = (flag, "-q") if flag == "--quiet" else (flag,)
        group.add_argument(*names, action="store_true", help=text)
    group.add_argument("--version", action="version", version=f"{prog} {__version__}")
    return parser


def parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The checked options; wrong usage exits with code 2."""
    parser = make_parser(prog)
    options = parser.parse_intermixed_args(arguments)  # SOURCE may follow options
    kind = options.source if options.source in (MICROPHONE, STDIN) else "a file"
    for option, given, kinds in (
        ("--device", options.device, (MICROPHONE,)),
        ("--rate", options.rate, (MICROPHONE, STDIN)),
        ("--format", options.encoding, (STDIN,)),
        ("--channels", options.channels, (STDIN,)),
        ("--channel", options.channel != "mix", ("a file", STDIN)),
    ):
        if given and kind not in kinds:
            parser.error(f"{option} is for {' and '.join(kinds)}, and the source is {kind}")
    if kind == STDIN and options.rate is None:
        parser.error("raw samples do not state their rate: add --rate, the -ar of ffmpeg")
    if not 1 <= options.top <= 100:
        parser.error("--top must be in 1..100")
    if options.window_s and options.forget_s:
        parser.error("--window and --forget exclude each other")
    if options.duration_s and (options.min_on_s or 0) > options.duration_s:
        parser.error("--min-on is longer than --duration: no event could start")
    return options


def main(arguments: Sequence[str] | None = None, prog: str = "frami-edge-listen") -> int:
    """The console entry point.

    Args:
        arguments: Command line; None for `sys.argv`.
        prog: Name in help and errors.

    Returns:
        The exit code; argparse itself exits with 2.
    """
    options = parse(arguments, prog)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell (`>&-`) or a service manager
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A label that the terminal's encoding lacks must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        run(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # the reader of the pipe (`| head`) has gone
        _discard_stdout()
        return 1
    if os.environ.get("FRAMI_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    message = f"Internal error: {type(error).__name__}: {error}"
    fix = "Run it again with FRAMI_DEBUG=1, and report it."
    if isinstance(error, FramiEdgeError):
        message, fix = error.message, error.fix
    elif isinstance(error, OSError):  # sources and models name their own: a full disk is left
        _discard_stdout()
        message = f"The output could not be written: {error.strerror}."
        fix = "Free some space, or send it elsewhere."
    print(f"error: {message}", file=sys.stderr)
    if fix:
        print(f"fix: {fix}", file=sys.stderr)
    return error.exit_code if isinstance(error, FramiEdgeError) else 1


def _discard_stdout() -> None:
    """Keep the flush at exit from failing again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
