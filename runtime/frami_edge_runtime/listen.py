"""`frami-edge-listen`: run a model on a microphone, a file or a pipe; print results and events.

A session yields *records*, the dictionaries that ``--json`` prints; the runtime's README lists the
fields of each ``type``.
"""

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
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from frami_edge_runtime import __version__
from frami_edge_runtime.audio import AudioFile, ByteStream
from frami_edge_runtime.capture import DRIVERS, Microphone, PcmPipe
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.display import Record, choose_display, printable
from frami_edge_runtime.errors import AudioError, FramiEdgeError
from frami_edge_runtime.events import Event, EventDetector, EventSpec
from frami_edge_runtime.monitor import INT16_SCALE, STALLED_S
from frami_edge_runtime.state import check_place, write_whole
from frami_edge_runtime.stream import Result
from frami_edge_runtime.thresholds import (
    HOP_S,
    WINDOW_S,
    Thresholds,
    background_scores,
    tuned,
    with_thresholds,
)

Source: TypeAlias = "AudioFile | PcmPipe | Microphone"

MICROPHONE: Final = "mic"
STDIN: Final = "-"
QUIETEST_DB: Final = -120.0
WARN_SHARE: Final = 0.1  # BirdNET-Go's rule: a tenth lost over five minutes is worth a warning
WARN_OVER_S: Final = 300.0
LEVEL_BLOCK_S: Final = 0.01
LEVEL_SPAN_S: Final = 20.0  # kept beyond a window; the longest block of a source is shorter
MOST_LEVEL_BLOCKS: Final = 4096
_EXAMPLES: Final = """examples:
  {prog} student.onnx
  {prog} student.onnx street.wav --on 0.7 --min-on 0.5
  {prog} student.onnx mic --device plughw:1 --json --quiet | my-logger
  ffmpeg -i rtsp://cam -f s16le -ac 1 -ar 16000 - | {prog} student.onnx - --rate 16000

exit codes: 0 done, also after Ctrl-C; 1 a known error; 2 wrong usage; 3 the self-test failed
"""


class LevelMeter:
    """Mean level of any recent stretch, to within one block of 10 ms at each end.

    Args:
        sample_rate: Hz.
        span_s: Seconds that can be looked back; very long spans have longer blocks.
    """

    def __init__(self, sample_rate: int, span_s: float) -> None:
        self._rate = sample_rate
        block_s = max(LEVEL_BLOCK_S, span_s / MOST_LEVEL_BLOCKS)
        self._block = round(block_s * sample_rate)  # samples
        self._blocks = math.ceil(span_s * sample_rate / self._block) + 2
        self._sums = np.zeros((3, 1))  # energy, sum and number of samples of each kept block
        self._clock = 0  # samples

    def push(self, samples: npt.NDArray[Any]) -> None:
        """Take (N,) samples: int16 with full scale 32768, or float with full scale 1."""
        x = samples.astype(np.float64)
        if samples.dtype.kind == "i":
            x *= float(INT16_SCALE)
        at = (self._clock + np.arange(len(x) + 1)) // self._block - self._clock // self._block
        self._clock += len(x)
        size = int(at[-1]) + 1  # the last block may still be empty
        weights = (x * x, x, None)
        fresh = np.stack([np.bincount(at[:-1], w, size) for w in weights]).astype(np.float64)
        fresh[:, 0] += self._sums[:, -1]
        self._sums = np.hstack([self._sums[:, :-1], fresh])[:, -self._blocks :]

    def lose(self, samples: int) -> None:
        """Advance the clock over lost samples."""
        before = self._clock // self._block
        self._clock += samples
        fresh = min(self._clock // self._block - before, self._blocks)
        self._sums = np.hstack([self._sums, np.zeros((3, fresh))])[:, -self._blocks :]

    def level_db(self, t0: float, t1: float) -> float:
        """RMS level from ``t0`` to ``t1`` seconds in dB of full scale, at least -120.

        A full-scale sine has -3 dB. A constant offset, lost samples and everything older than the
        span are left out.
        """
        oldest = self._clock // self._block + 1 - self._sums.shape[1]
        first = max(0, int(t0 * self._rate / self._block) - oldest)
        last = max(first, math.ceil(t1 * self._rate / self._block) - oldest)
        energy, total, count = self._sums[:, first:last].sum(axis=1).tolist()
        power = energy / count - (total / count) ** 2 if count else 0.0
        return 10 * math.log10(max(power, 10 ** (QUIETEST_DB / 10)))


class _Stop:
    """Handles SIGINT and SIGTERM: only a waiting read is interrupted, never a step of the model."""

    def __init__(self) -> None:
        self._wanted = self._waiting = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._wanted or self._waiting:  # a second signal also interrupts a step that hangs
            raise KeyboardInterrupt
        self._wanted = True

    def wait(self, read: Callable[[], Any]) -> Any:
        """Call a function that may wait for input."""
        self._waiting = True
        try:
            if self._wanted:
                raise KeyboardInterrupt
            return read()
        finally:
            self._waiting = False


class _Session:
    """One model on one source; its records from the start to the summary.

    Raises:
        AudioError: The rate needs soxr, which is not installed, or there are no samples.
        StreamError: The options contradict each other or the model.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: Source,
        options: argparse.Namespace,
        *,
        also_warn: Sequence[Any] = (),
    ) -> None:
        self._classifier, self._source, self._options = classifier, source, options
        self._warners = (source, *also_warn)
        self._rate = rate = source.sample_rate
        forget_s = options.forget_s
        window_s = options.window_s or (None if forget_s else WINDOW_S)
        self._stream = classifier.stream(rate, window_s, forget_s, options.hop_s, options.gate_db)
        given = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(EventSpec)}
        settings = {name: value for name, value in given.items() if value is not None}
        if options.on_at_most is not None:
            settings["on_at_most"] = options.on_at_most
        # Where one sound gives way to another, a few windows contain both and may name neither:
        # half a window as the shortest event leaves those out.
        shortest = {"min_on_s": (window_s or forget_s) / 2}
        self._spec = EventSpec.for_model(classifier.info, **{**shortest, **settings})
        self._detector = EventDetector(self._spec, classifier.labels, forget_s=forget_s)
        self._look_back_s = self._stream.window_s or 2 * forget_s
        self._meter = LevelMeter(rate, self._look_back_s + LEVEL_SPAN_S)
        # In samples:
        self._limit = round(options.duration_s * rate) if options.duration_s else sys.maxsize
        self._clock = self._lost = 0
        self._wall_s: float | None = None  # wall clock less sample clock; None for a file
        self._reviewed = (0, 0)  # clock and lost at the last review of the losses
        self._gaps = self._results = 0
        self._shown_to = 0.0  # seconds
        self._started: Counter[str] = Counter()
        self._warned: Counter[str] = Counter()
        read = source.read
        if isinstance(source, Microphone):
            read = partial(source.read, timeout=options.stall_s or STALLED_S)
        self._read = read

    def records(self, stop: _Stop) -> Iterator[Record]:
        started = time.perf_counter()
        yield self._start_record()
        reason = yield from self._listen(stop)
        if reason != "once":
            if (last := self._stream.flush()) is not None:
                yield from self._take(last)
            elif reason == "end" and self._clock == 0:
                fix = "Give a source with audio."
                raise AudioError(f"{self._source.name} holds no samples.", fix=fix)
            yield from self._show(self._detector.finish())
        yield from self._warn()
        stats = self._source.stats
        yield {
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
            "max_lag_s": stats.max_lag_s,
            "warnings": dict(self._warned),
            "clipped": stats.clipped,
            "dead_s": stats.dead_s,
            "stalled_s": stats.stalled_s,
            "clock_steps": stats.clock_steps,
        }

    def _start_record(self) -> Record:
        info = self._classifier.info
        notes = [self._source.device_note] if self._source.device_note else []
        if self._rate != info.mel.sample_rate:
            notes.append(f"resampled from {self._rate} Hz to {info.mel.sample_rate} Hz")
        return {
            "type": "start",
            "model": Path(self._options.model).name,
            "sha256": self._classifier.model.sha256,
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

    def _listen(self, stop: _Stop) -> Generator[Record, None, str]:
        """Read and push; return why it ended."""
        while self._clock < self._limit:
            try:
                block = stop.wait(self._read)
            except KeyboardInterrupt:
                return "interrupted"
            yield from self._warn()
            if block is None:
                return "end"
            samples, lost = block
            if len(samples) == 0:  # a pipe has nothing yet
                continue
            if lost:
                yield from self._lose(lost)
            samples = samples[: max(0, self._limit - self._clock)]
            self._clock += len(samples)
            self._read_wall_clock()
            self._meter.push(samples)
            for result in self._stream.push(samples):
                yield from self._take(result)
                if self._options.once and self._started:
                    return "once"
            yield from self._review_losses()
        return "duration"

    def _read_wall_clock(self) -> None:
        """Anew with every block: a sample clock drifts, and a wall clock may be set."""
        if self._source.live:
            waited_s = self._source.stats.lag_s
            self._wall_s = time.time() - waited_s - self._clock / self._rate

    def _lose(self, lost: int) -> Iterator[Record]:
        for result in self._stream.gap(lost):
            yield from self._take(result)
        t = self._clock / self._rate
        yield {"type": "gap", "t": t, "lost": lost, "lost_s": lost / self._rate}
        self._meter.lose(lost)
        self._clock += lost
        self._lost += lost
        self._gaps += 1

    def _review_losses(self) -> Iterator[Record]:
        span, lost = self._clock - self._reviewed[0], self._lost - self._reviewed[1]
        if span >= WARN_OVER_S * self._rate:
            self._reviewed = (self._clock, self._lost)
            if lost > WARN_SHARE * span:
                yield self._warning(
                    "lost",
                    f"{100 * lost / span:.0f} % of the audio of the last {WARN_OVER_S / 60:g} "
                    "minutes was lost: this machine does not keep up.",
                )

    def _warn(self) -> Iterator[Record]:
        for warner in self._warners:
            for kind, message in warner.take_warnings():
                yield self._warning(kind, message)

    def _warning(self, kind: str, message: str) -> Record:
        self._warned[kind] += 1
        return {
            "type": "warning",
            "kind": kind,
            "t": self._clock / self._rate,
            "wall_t": time.time(),
            "message": message,
        }

    def _take(self, result: Result) -> Iterator[Record]:
        self._results += 1
        best_K = np.argsort(-result.scores, kind="stable")[: self._options.top]
        top = {result.labels[i]: round(float(result.scores[i]), 6) for i in best_K}
        label = next(iter(top))
        yield {
            "type": "result",
            "t0": result.t0,
            "t1": result.t1,
            "label": label,
            "score": top[label],
            "top": top,
            "level_db": round(self._meter.level_db(self._shown_to, result.t1), 1),
            "gap": result.gap,
            "model": result.model,
        }
        self._shown_to = result.t1
        level_db = None
        if self._spec.min_level_db is not None:
            begin = max(result.t0, result.t1 - self._look_back_s)
            level_db = self._meter.level_db(begin, result.t1)
        wall_t1 = None if self._wall_s is None else self._wall_s + result.t1
        yield from self._show(self._detector.push(result, level_db=level_db, wall_t1=wall_t1))

    def _show(self, events: list[Event]) -> Iterator[Record]:
        for event in events:
            self._started[event.label] += event.kind == "start"
            yield {"type": "event", **dataclasses.asdict(event)}


def run(options: argparse.Namespace) -> None:
    """Listen until the source ends or a signal comes; print as the options ask.

    Raises:
        FramiEdgeError: The model, the source or the options cannot be used.
    """
    stop = _Stop()
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Classifier(options.model, options.backend) as classifier:
            try:
                found = stop.wait(partial(open_source, options, classifier.info.mel.sample_rate))
            except KeyboardInterrupt:
                return  # while it waited for the first bytes: there is nothing to sum up
            with closing(found) as source, ExitStack() as stack:
                continuous = options.source in (MICROPHONE, STDIN)
                display = stack.enter_context(closing(choose_display(options, continuous)))
                publishers: list[Any] = []
                if options.mqtt:
                    # Imported here: few use it.
                    from frami_edge_runtime.mqtt import Publisher

                    publisher = Publisher(options.mqtt, options.mqtt_topic)
                    publishers = [stack.enter_context(closing(publisher))]
                session = _Session(classifier, source, options, also_warn=publishers)
                for record in session.records(stop):
                    for sink in (display, *publishers):
                        sink.show(record)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tune(options: argparse.Namespace) -> None:
    """Listen to the background and write the model with thresholds for it.

    Raises:
        FramiEdgeError: The model, the source or the place of the file cannot be used, or there was
            too little audio.
        OSError: The disk is full.
    """
    out = Path(options.out)
    check_place(out)
    with (
        Classifier(options.model, options.backend) as classifier,
        closing(open_source(options, classifier.info.mel.sample_rate)) as source,
    ):
        old = Thresholds.of(classifier.info)
        stream = classifier.stream(source.sample_rate, WINDOW_S, hop_s=HOP_S)
        limit, heard = options.tune_s * source.sample_rate, 0

        def blocks() -> Iterator[tuple[npt.NDArray[Any], int]]:
            nonlocal heard
            while heard < limit and (block := source.read()) is not None:
                heard += len(block[0])
                yield block

        scores = background_scores(stream, blocks(), old.reject if old else None)
        found = tuned(old, scores, len(classifier.labels), options.target)
    data = with_thresholds(Path(options.model).read_bytes(), found)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda file: file.write(data))
    if options.json:
        print(json.dumps({"type": "tuned", "out": options.out, **found.to_dict()}))
    else:
        print(printable(f"{options.out}: {found}"))


def check(options: argparse.Namespace) -> bool:
    """Run the model's self-test and print its figures.

    Raises:
        FramiEdgeError: The model cannot be used, or carries no golden vectors.
    """
    with Classifier(options.model, options.backend) as classifier:
        found = classifier.selftest()
    if options.json:
        figures = {"type": "selftest", "passed": found.passed, **dataclasses.asdict(found)}
        print(json.dumps(figures, allow_nan=False))
    else:
        print(printable(f"self-test {'passed' if found else 'FAILED'}: {found}"))
    return found.passed


def open_source(options: argparse.Namespace, model_rate: int) -> Source:
    """The microphone, the pipe or the file that ``options.source`` names."""
    if options.source == MICROPHONE:
        return Microphone(
            options.rate or model_rate,
            options.device,
            seconds=options.ring_s,
            driver=options.driver or "auto",
            channels=options.channels,
            channel=options.channel,
        )
    if options.source != STDIN:
        return AudioFile(options.source, options.channel, stall_s=options.stall_s)
    stream, name = ByteStream(sys.stdin.buffer), "standard input"
    if options.rate is None:
        if not stream.container():
            raise AudioError(
                "Raw samples do not state their rate.",
                fix="Add --rate, the -ar of ffmpeg, or pipe a WAV file.",
            )
        return AudioFile(stream, options.channel, name=name, stall_s=options.stall_s)
    return PcmPipe(
        stream,
        options.rate,
        options.encoding or "s16le",
        channels=options.channels or 1,
        channel=options.channel,
        name=name,
        stall_s=options.stall_s,
    )


def seconds(text: str) -> float:
    """A duration above 0; argparse names the function where it is none."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def threshold(text: str) -> tuple[str, dict[str, float | None]]:
    """A label, and its thresholds for `EventSpec.overrides`."""
    label, equals, values = text.rpartition("=")
    on, colon, off = values.partition(":")
    if not (label and equals):
        raise ValueError
    return label, {"on": float(on), "off": float(off) if colon else None}


def channel(text: str) -> int | str:
    """A number of a channel, or ``mix``."""
    return text if text == "mix" else int(text)


# Group, then (option, attribute, type, metavar, help). The defaults of events are `EventSpec`'s.
_OPTIONS: Final[dict[str, tuple[tuple[str, str, Any, str, str], ...]]] = {
    "results": (
        ("--window", "window_s", seconds, "S", "length of the sliding window (default 1)"),
        ("--forget", "forget_s", seconds, "S", "half-life, instead of a window"),
        ("--hop", "hop_s", seconds, "S", "time between results (default: window / 4, max. 0.5)"),
        ("--top", "top", int, "K", "number of classes shown per result (default 3)"),
        ("--gate", "gate_db", float, "DB", "rest while the input is steady and quieter, as -50"),
        ("--backend", "backend", str, "NAME", "auto, cpu, cuda, tensorrt-ep or tensorrt"),
    ),
    "events": (
        ("--on", "on", float, "P", "score at which an event starts (default: the model's, or 0.5)"),
        ("--off", "off", float, "P", "score below which it ends (default: --on less 0.15)"),
        ("--min-on", "min_on_s", float, "S", "time above --on that starts it (default: window/2)"),
        ("--min-off", "min_off_s", float, "S", "time below --off that ends an event (default 0)"),
        ("--merge-gap", "merge_gap_s", float, "S", "join events less than this apart (default 0)"),
        ("--cooldown", "cooldown_s", float, "S", "ignore a label this long after its event"),
        ("--smooth", "smooth_s", float, "S", "half-life of an average over the scores"),
        ("--update", "update_s", float, "S", "time between updates of an event (default 1)"),
        ("--min-level", "min_level_db", float, "DB", "ignore windows quieter than this, as -55"),
        ("--on-at-most", "on_at_most", float, "P", "lower the model's thresholds above this to it"),
        ("--threshold", "overrides", threshold, "LABEL=ON[:OFF]", "for one label; repeatable"),
        ("--watch", "watch", str, "LABEL", "only this label; repeatable"),
        ("--ignore", "ignore", str, "LABEL", "not this label; repeatable"),
    ),
    "source": (
        ("--device", "device", str, "NAME", "ALSA PCM as plughw:1, or PortAudio name or number"),
        ("--driver", "driver", str, "NAME", "auto, arecord or portaudio"),
        ("--rate", "rate", int, "HZ", "rate of raw PCM, or wanted rate of the microphone"),
        ("--format", "encoding", str, "F", "raw PCM: s16le (default), s32le or f32le"),
        ("--channels", "channels", int, "N", "channels of raw PCM, or to open of a microphone"),
        ("--channel", "channel", channel, "N", "use one channel, from 1, instead of the average"),
        ("--ring", "ring_s", seconds, "S", "audio that may wait for the model (default 10)"),
        ("--stall-timeout", "stall_s", seconds, "S", "fail if no audio comes (microphone: 5)"),
    ),
    "thresholds for this place": (
        ("--tune", "tune_s", seconds, "S", "listen to the background so long, without your sounds"),
        ("--false-alarms", "target", seconds, "N", "wanted per hour (default: the model's)"),
        ("--out", "out", str, "FILE", "the model with the new thresholds"),
    ),
    "output": (
        ("--duration", "duration_s", seconds, "S", "stop after this much audio"),
        ("--mqtt", "mqtt", str, "HOST[:PORT]", "publish events, with Home Assistant discovery"),
        ("--mqtt-topic", "mqtt_topic", str, "PREFIX", "of topics (default frami-edge/HOSTNAME)"),
    ),
}
_REPEATABLE: Final = ("--threshold", "--watch", "--ignore")
_FLAGS: Final = {
    ("--json",): "JSON Lines: start, result, event, gap, warning, summary",
    ("--plain",): "plain lines, also on a terminal",
    ("--quiet", "-q"): "events only, no results or notes",
    ("--once",): "stop when the first event starts",
    ("--selftest",): "compare this machine with the exporter's and stop; exit code 3 if it differs",
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
    source = "an audio file, - for raw PCM or a file on standard input, or mic (default)"
    parser.add_argument("source", metavar="SOURCE", nargs="?", default=MICROPHONE, help=source)
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for option, dest, kind, metavar, text in options:
            action = "append" if option in _REPEATABLE else "store"
            settings: dict[str, Any] = {"dest": dest, "type": kind, "metavar": metavar}
            group.add_argument(option, action=action, help=text, **settings)
    for names, text in _FLAGS.items():
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
        ("--driver", options.driver, (MICROPHONE,)),
        ("--rate", options.rate, (MICROPHONE, STDIN)),
        ("--format", options.encoding, (STDIN,)),
        ("--channels", options.channels, (MICROPHONE, STDIN)),
    ):
        if given is not None and kind not in kinds:
            parser.error(f"{option} is for {' and '.join(kinds)}, and the source is {kind}")
    if options.driver and options.driver not in DRIVERS:
        parser.error(f"--driver is one of {', '.join(DRIVERS)}")
    options.overrides = dict(options.overrides or ()) or None
    if options.tune_s and not options.out:
        parser.error("--tune needs --out FILE")
    if not options.tune_s and (options.out or options.target):
        parser.error("--out and --false-alarms are for --tune SECONDS")
    for option, number in (("--top", options.top), ("--channels", options.channels)):
        if number is not None and number < 1:
            parser.error(f"{option} must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None, prog: str = "frami-edge-listen") -> int:
    """The console entry point: returns the exit code; argparse itself exits with 2."""
    options = parse(arguments, prog)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A label that the terminal's encoding lacks must not end a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        passed = True
        if options.selftest:
            passed = check(options)
        elif options.tune_s:
            tune(options)
        else:
            run(options)
        sys.stdout.flush()
        return 0 if passed else 3
    except KeyboardInterrupt:
        return 130
    except FramiEdgeError as error:
        if os.environ.get("FRAMI_DEBUG", "0") not in ("", "0"):
            raise
        print(f"error: {error.message}\nfix: {error.fix}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of the output; a source or a model that fails is a FramiEdgeError
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keeps the flush at exit from failing again
        if not isinstance(error, BrokenPipeError):  # else the reader (`| head`) has gone
            what = f"The output could not be written: {error.strerror}."
            print(f"error: {what}\nfix: Free some space, or send it elsewhere.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
