"""What `frami-edge-listen` and `frami-edge listen` share: from a source to a display."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import INT16_SCALE, AudioFile, Channel
from frami_edge_runtime.capture import Microphone, PcmPipe
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, FramiEdgeError, StreamError
from frami_edge_runtime.events import Event, EventDetector, EventSpec
from frami_edge_runtime.stream import Result

# --- What a listening program tells its display

Reason = Literal["end", "duration", "once", "interrupted"]


@dataclass(frozen=True)
class Start:
    """Known before the first audio."""

    model: str
    labels: tuple[str, ...]
    model_rate: int
    """Hz."""
    backend: str
    backend_reason: str
    source: str
    sample_rate: int
    """Hz, of the source."""
    window_s: float | None
    forget_s: float | None
    hop_s: float
    events: dict[str, Any]
    """The `EventSpec`, as given."""
    notes: tuple[str, ...]
    version: str

    @property
    def mode(self) -> str:
        """How results are made, for people."""
        if self.window_s is None:
            return f"half of the weight on the last {self.forget_s:g} s, every {self.hop_s:.2f} s"
        return f"windows of {self.window_s:.2f} s every {self.hop_s:.2f} s"

    def to_dict(self) -> dict[str, Any]:
        """As a record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Heard:
    """A result with its level."""

    t0: float
    t1: float
    level_db: float
    """RMS since the result before, in dB of full scale."""
    top: tuple[tuple[str, float], ...]
    """Labels and scores, best first."""
    gap: int
    """Samples lost since the result before."""

    def to_dict(self) -> dict[str, Any]:
        """As a record: the best one has its own fields."""
        label, score = self.top[0]
        return {
            "t0": self.t0,
            "t1": self.t1,
            "label": label,
            "score": round(score, 6),
            "top": {name: round(value, 6) for name, value in self.top},
            "level_db": round(self.level_db, 1),
            "gap": self.gap,
        }


@dataclass(frozen=True)
class Gap:
    """Samples that were lost."""

    t: float
    """Where, in seconds of the sample clock."""
    lost: int
    """Samples."""
    lost_s: float

    def to_dict(self) -> dict[str, Any]:
        """As a record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Summary:
    """What it came to."""

    reason: Reason
    """Why it ended."""
    audio_s: float
    """By the sample clock, with what was lost."""
    results: int
    events: dict[str, int]
    """Events that began, by label."""
    lost: int
    """Samples."""
    lost_s: float
    gaps: int
    wall_s: float
    busy_s: float
    """Within the model and its stream."""
    max_lag_s: float
    """The most audio that ever waited for the model; 0 for files."""

    def to_dict(self) -> dict[str, Any]:
        """As a record."""
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """For people."""
        counted = ", ".join(f"{printable(name)} {n}" for name, n in sorted(self.events.items()))
        text = f"{self.audio_s:.1f} s heard in {self.wall_s:.1f} s"
        if self.busy_s > 0:
            text += f" ({self.audio_s / self.busy_s:.0f} times real time in the model)"
        text += f": {self.results} results, {sum(self.events.values())} events"
        text += f" ({counted})" if counted else ""
        if self.lost:
            share = 100 * self.lost_s / self.audio_s
            text += f"; lost {self.lost_s:.2f} s ({share:.1f} %) in {self.gaps} gaps"
        return text + ("; interrupted" if self.reason == "interrupted" else "")


def printable(text: str) -> str:
    """Without control characters: a model file must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


# --- What can be asked of a listening program, the same from both command lines

DEFAULT_WINDOW_S: Final = 1.0
MICROPHONE: Final = "mic"
STDIN: Final = "-"
MOST_CLASSES_SHOWN: Final = 100


@dataclass(frozen=True)
class ListenOptions:
    """Checked as far as that is possible before the model and the source are open.

    Raises:
        StreamError: Options that contradict each other, or do not belong to this source.
    """

    model: str
    """Path of the model file."""
    source: str = MICROPHONE
    """``mic``, ``-`` for raw PCM on standard input, or the path of an audio file."""
    window_s: float | None = None
    """Without this and ``forget_s``: `DEFAULT_WINDOW_S`."""
    hop_s: float | None = None
    forget_s: float | None = None
    events: Mapping[str, Any] = field(default_factory=dict)
    """What was given for the `EventSpec`; see `spec`."""
    top: int = 3
    """Classes shown with each result."""
    backend: str = "auto"
    device: str | None = None
    """Of the microphone."""
    rate: int | None = None
    """Hz, of standard input or wanted of the microphone; None: the model's, for the microphone."""
    encoding: str | None = None
    """Of standard input; None: s16le."""
    channels: int | None = None
    """Of standard input; None: 1."""
    channel: str = "mix"
    """``mix``, or the number of one, counted from 1; of files and standard input."""
    ring_s: float = 10.0
    """Audio that the microphone may be ahead of the model before samples are dropped."""
    duration_s: float | None = None
    """Stop after so much audio."""
    once: bool = False
    """Stop when the first event starts."""
    json: bool = False
    plain: bool = False
    quiet: bool = False
    """Events only: no results, no notes."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if not 1 <= self.top <= MOST_CLASSES_SHOWN:
            raise StreamError(
                f"Cannot show the top {self.top} classes.", fix=f"Use 1 to {MOST_CLASSES_SHOWN}."
            )
        if self.duration_s is not None and not 0 < self.duration_s < float("inf"):
            raise StreamError(
                f"Cannot listen for {self.duration_s} s.", fix="Use a time above 0 s, or leave it."
            )
        for option, seconds in (
            ("--window", self.window_s),
            ("--forget", self.forget_s),
            ("--hop", self.hop_s),
        ):
            if seconds is not None and not 0 < seconds < float("inf"):
                raise StreamError(
                    f"{option} must be a number of seconds above 0, not {seconds:g}.",
                    fix="Give one, or leave it out.",
                )
        if self.window_s is not None and self.forget_s is not None:
            raise StreamError(
                "--window and --forget exclude each other.",
                fix="A window forgets all at once, --forget gradually: choose one.",
            )
        if self.channel != "mix" and not (self.channel.isdecimal() and int(self.channel) >= 1):
            raise StreamError(
                f"There is no channel {self.channel!r}.", fix="Use mix, or a number from 1 on."
            )
        for option, given, kinds in (
            ("--device", self.device is not None, (MICROPHONE,)),
            ("--rate", self.rate is not None, (MICROPHONE, STDIN)),
            ("--format", self.encoding is not None, (STDIN,)),
            ("--channels", self.channels is not None, (STDIN,)),
        ):
            if given and self.kind not in kinds:
                where = " and ".join("the microphone" if k == "mic" else "`-`" for k in kinds)
                raise StreamError(
                    f"{option} is for {where}, and the source is {self.source}.",
                    fix=f"Leave {option} out; the source says that itself.",
                )
        if self.channel != "mix" and self.kind == MICROPHONE:
            raise StreamError(
                "--channel is for files and `-`; the microphone is opened with one channel.",
                fix="Leave --channel out, or choose another --device.",
            )
        if self.kind == STDIN and self.rate is None:
            raise StreamError(
                "Raw samples on standard input do not say their rate.",
                fix="Add --rate, the -ar of ffmpeg, for example --rate 16000.",
            )

        self.spec  # noqa: B018 - its checks

    @property
    def spec(self) -> EventSpec:
        """`EventSpec` of what was given; ``min_on_s`` is half of the window where it was not.

        Where one sound gives way to another a few windows hold both, and name neither: half a
        window leaves those out.
        """
        half = (self.window or self.forget_s or 0.0) / 2
        if self.duration_s is not None:
            half = min(half, self.duration_s)
        return EventSpec(**{"min_on_s": half, **self.events})

    @property
    def kind(self) -> str:
        """``mic``, ``-`` or ``file``."""
        return self.source if self.source in (MICROPHONE, STDIN) else "file"

    @property
    def window(self) -> float | None:
        """`window_s`, or its default where there is no `forget_s`."""
        return DEFAULT_WINDOW_S if self.window_s is self.forget_s is None else self.window_s


# --- How loud it was, by the sample clock, in bounded memory

BLOCK_S: Final = 0.01
MOST_BLOCKS: Final = 4096
QUIETEST_DB: Final = -120.0


class LevelMeter:
    """Mean power of any latest stretch, to within one block at each end.

    Args:
        sample_rate: Hz.
        span_s: How far back can be asked; blocks are 10 ms, longer for very long spans.
    """

    def __init__(self, sample_rate: int, span_s: float) -> None:
        """Allocate."""
        seconds = max(BLOCK_S, span_s / MOST_BLOCKS)
        self._block = max(1, round(seconds * sample_rate))
        self._rate = sample_rate
        size = math.ceil(span_s * sample_rate / self._block) + 2
        self._energy = np.zeros(size)
        self._count = np.zeros(size)
        self._clock = 0

    def push(self, samples: npt.NDArray[Any]) -> None:
        """Take (N,) int16 or float samples with full scale at 32768 or 1."""
        most = (len(self._energy) - 1) * self._block
        for begin in range(0, len(samples), most):
            self._add(samples[begin : begin + most])

    def _add(self, samples: npt.NDArray[Any]) -> None:
        index, used = divmod(self._clock, self._block)
        x = samples.astype(np.float64)
        if samples.dtype.kind == "i":
            x *= float(INT16_SCALE)
        starts = np.arange(-used, len(x), self._block)
        starts[0] = 0
        at = (index + np.arange(len(starts))) % len(self._energy)
        fresh = at[1:] if used else at
        self._energy[fresh] = self._count[fresh] = 0
        self._energy[at] += np.add.reduceat(x * x, starts)
        self._count[at] += np.diff(starts, append=len(x))
        self._clock += len(x)

    def lose(self, samples: int) -> None:
        """Let time pass unheard."""
        first, last = self._clock // self._block, (self._clock + samples) // self._block
        for index in range(max(first + 1, last - len(self._energy) + 1), last + 1):
            self._energy[index % len(self._energy)] = self._count[index % len(self._energy)] = 0
        self._clock += samples

    def level_db(self, t0: float, t1: float) -> float:
        """RMS of what was heard from ``t0`` to ``t1`` s, in dB of full scale, -120 at least.

        A full-scale sine has -3 dB. What is farther back than the span is left out.
        """
        newest = self._clock // self._block
        first = max(int(t0 * self._rate / self._block), newest - len(self._energy) + 1)
        last = min(math.ceil(t1 * self._rate / self._block), newest + 1)
        at = np.arange(first, max(first, last)) % len(self._energy)
        count = self._count[at].sum()
        power = self._energy[at].sum() / count if count else 0.0
        return max(QUIETEST_DB, 10 * math.log10(power) if power > 0 else QUIETEST_DB)


# --- What a listening program prints: plain lines, or JSON Lines

_BAR: Final = 12
_BAR_FLOOR_DB: Final = -60.0
_LOSSES_EVERY_S: Final = 10.0


class Display(Protocol):
    """Takes what happens, in its order."""

    def start(self, start: Start) -> None:
        """Before the first audio."""

    def heard(self, heard: Heard) -> None:
        """A result."""

    def event(self, event: Event) -> None:
        """A start, update or end."""

    def gap(self, gap: Gap) -> None:
        """Samples were lost."""

    def warn(self, text: str) -> None:
        """Something the user must know."""

    def finish(self, summary: Summary) -> None:
        """After the last audio."""

    def close(self) -> None:
        """Whatever happened."""


class Plain:
    """Results and events on stdout, everything else on stderr."""

    def __init__(self, *, quiet: bool, flush: bool) -> None:
        """`quiet` leaves events and warnings."""
        self._quiet, self._flush = quiet, flush
        self._losses = Losses()

    def start(self, start: Start) -> None:
        """Two lines on stderr."""
        if not self._quiet:
            self._say(
                f"{start.model}: {len(start.labels)} classes, {start.model_rate} Hz, on "
                f"{start.backend} ({start.backend_reason})"
            )
            self._say(f"listening to {start.source} at {start.sample_rate} Hz, {start.mode}")
        for note in start.notes:
            self._say(f"note: {note}")

    def heard(self, heard: Heard) -> None:
        """One line."""
        if not self._quiet:
            top = "  ".join(f"{printable(label)} {score:.2f}" for label, score in heard.top)
            self._print(f"{heard.t1:9.2f} s  {heard.level_db:6.1f} dB {bar(heard.level_db)}  {top}")

    def event(self, event: Event) -> None:
        """One line for a start and one for an end."""
        if line := event_line(event):
            self._print(line)

    def gap(self, gap: Gap) -> None:
        """On stderr, but not each of many."""
        if line := self._losses.add(gap):
            self._say(f"warning: {line}")

    def warn(self, text: str) -> None:
        """On stderr."""
        self._say(f"warning: {text}")

    def finish(self, summary: Summary) -> None:
        """On stderr."""
        if not self._quiet:
            self._say(summary.sentence())

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, line: str) -> None:
        print(line, flush=self._flush)

    def _say(self, line: str) -> None:
        # In its place between the lines of stdout, where both go to one terminal.
        if self._flush:
            sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)


class JsonLines:
    """One JSON object a line on stdout; the records are those of the runtime's README."""

    def __init__(self, *, quiet: bool, flush: bool) -> None:
        """`quiet` leaves the results out."""
        self._quiet, self._flush = quiet, flush

    def start(self, start: Start) -> None:
        """``{"type": "start", ...}``."""
        self._print("start", start.to_dict())

    def heard(self, heard: Heard) -> None:
        """``{"type": "result", ...}``."""
        if not self._quiet:
            self._print("result", heard.to_dict())

    def event(self, event: Event) -> None:
        """``{"type": "event", ...}``."""
        fields = {name: getattr(event, name) for name in Event.__dataclass_fields__}
        self._print("event", fields)

    def gap(self, gap: Gap) -> None:
        """``{"type": "gap", ...}``."""
        self._print("gap", gap.to_dict())

    def warn(self, text: str) -> None:
        """``{"type": "warning", ...}``."""
        self._print("warning", {"message": text})

    def finish(self, summary: Summary) -> None:
        """``{"type": "summary", ...}``."""
        self._print("summary", summary.to_dict())

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, kind: str, fields: dict[str, Any]) -> None:
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}
        print(json.dumps({"type": kind, **rounded}, allow_nan=False), flush=self._flush)


class Losses:
    """Sums gaps up, so that a machine that does not keep up does not fill a log."""

    def __init__(self) -> None:
        """Nothing lost yet."""
        self._lost_s = 0.0
        self._gaps = 0
        self._quiet_until = -1.0

    def add(self, gap: Gap) -> str | None:
        """A sentence about all since the last one; None within `_LOSSES_EVERY_S` of it."""
        self._lost_s += gap.lost_s
        self._gaps += 1
        if gap.t < self._quiet_until:
            return None
        self._quiet_until = gap.t + _LOSSES_EVERY_S
        line = f"{self._lost_s:.3f} s of audio were lost at {gap.t:.2f} s"
        if self._gaps > 1:
            line = (
                f"{self._lost_s:.3f} s of audio were lost in {self._gaps} gaps up to {gap.t:.2f} s"
            )
        self._lost_s, self._gaps = 0.0, 0
        return line


def event_line(event: Event) -> str | None:
    """A start or an end for people; None for an update."""
    label, lost = printable(event.label), "  (audio was lost)" if event.gap else ""
    if event.kind == "start":
        return f"{event.at:9.2f} s  >> {label} began at {event.t0:.2f} s, {event.score:.2f}{lost}"
    if event.kind == "end":
        return (
            f"{event.at:9.2f} s  << {label} {event.t0:.2f}-{event.t1:.2f} s, "
            f"{event.duration_s:.2f} s, best {event.score:.2f}{lost}"
        )
    return None


def bar(level_db: float) -> str:
    """A level meter from -60 to 0 dB of full scale."""
    filled = round(_BAR * min(1.0, max(0.0, 1 - level_db / _BAR_FLOOR_DB)))
    return f"[{'#' * filled}{'.' * (_BAR - filled)}]"


# --- The live display: a level meter, the top classes and the latest events, on a terminal

_FRAMES_A_SECOND: Final = 10
_LIVE_BAR: Final = 40
_FLOOR_DB: Final = -60.0
_LOUD_DB: Final = -6.0


def live_display() -> LiveDisplay | None:
    """The live display, or None where rich is not installed."""
    try:
        # Imported here: it is an extra, and costs more time than everything else at the start.
        live: Any = importlib.import_module("rich.live")
        table: Any = importlib.import_module("rich.table")
        text: Any = importlib.import_module("rich.text")
        console: Any = importlib.import_module("rich.console")
    except ImportError:
        return None
    return LiveDisplay(live, table, text, console)


class LiveDisplay:
    """Drawn at most ten times a second; events and warnings stay above it when it ends."""

    def __init__(self, live: Any, table: Any, text: Any, console: Any) -> None:
        """Begin to draw."""
        self._table, self._text, self._group = table.Table, text.Text, console.Group
        self._heading = ""
        self._heard: Heard | None = None
        self._open: dict[str, float] = {}
        self._losses = Losses()
        self._module, self._console = live, console
        self._live: Any = None

    def start(self, start: Start) -> None:
        """Draw from now on."""
        self._heading = (
            f"{printable(start.model)} on {start.backend}, {start.mode}, from "
            f"{printable(start.source)} at {start.sample_rate} Hz"
        )
        self._live = self._module.Live(
            console=self._console.Console(highlight=False),
            refresh_per_second=_FRAMES_A_SECOND,
            get_renderable=self._draw,
            transient=True,
        )
        self._live.start()
        for note in start.notes:
            self._print(f"note: {note}")

    def heard(self, heard: Heard) -> None:
        """Shown at the next drawing."""
        self._heard = heard

    def event(self, event: Event) -> None:
        """Starts and ends scroll by above; what goes on is shown below."""
        if event.kind == "end":
            self._open.pop(event.label, None)
        else:
            self._open[event.label] = event.t0
        if line := event_line(event):
            self._print(line)

    def gap(self, gap: Gap) -> None:
        """A line above."""
        if line := self._losses.add(gap):
            self._print(f"warning: {line}")

    def warn(self, text: str) -> None:
        """A line above."""
        self._print(f"warning: {text}")

    def finish(self, summary: Summary) -> None:
        """Draw no more; the summary stays."""
        self.close()
        print(summary.sentence(), file=sys.stderr)

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()

    def _print(self, line: str) -> None:
        self._live.console.print(self._text(line))

    def _draw(self) -> Any:
        heading = self._text(self._heading, style="dim", no_wrap=True, overflow="ellipsis")
        heard = self._heard
        if heard is None:
            return self._group(heading, self._text("waiting for the first result"))
        share = min(1.0, max(0.0, 1 - heard.level_db / _FLOOR_DB))
        level = self._text(f"{heard.t1:9.2f} s  {heard.level_db:6.1f} dB  ")
        style = "red" if heard.level_db > _LOUD_DB else "green"
        level.append("█" * round(_LIVE_BAR * share), style=style)
        grid = self._table.grid(padding=(0, 2))
        for label, score in heard.top:
            name = self._text(printable(label), style="bold" if label in self._open else "")
            grid.add_row(
                name, f"{score:.2f}", self._text("━" * round(_LIVE_BAR * score), style="cyan")
            )
        going_on = "  ".join(
            f"{printable(label)} since {t0:.1f} s" for label, t0 in self._open.items()
        )
        return self._group(heading, level, grid, self._text(going_on, style="bold yellow"))


# --- Ctrl-C and SIGTERM end a listening program between two steps, never within one


class Stop:
    """A wish to stop. While it waits for audio it is interrupted; while it works it is asked."""

    def __init__(self) -> None:
        """Not wished yet."""
        self.wanted = False
        self._waiting = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a read that may block: a signal raises KeyboardInterrupt inside."""
        self._waiting = True
        try:
            if self.wanted:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; the old handlers come back at the end.

        Outside the main thread, where Python cannot take signals, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and not self._waiting:
            raise KeyboardInterrupt  # asked twice: a step that hangs must not hold us
        self.wanted = True
        if self._waiting:
            raise KeyboardInterrupt


# --- The loop: read, push, detect, show; the same for a file, a pipe and a microphone

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


# --- `frami-edge-listen`: listen with a model; argparse only, so that it starts fast

_EXAMPLES: Final = """examples:
  frami-edge-listen student.onnx                          the default microphone, live
  frami-edge-listen student.onnx street.wav --on 0.7 --min-on 0.5
  frami-edge-listen student.onnx mic --device plughw:1 --json --quiet | my-logger
  ffmpeg -i rtsp://cam -f s16le -ac 1 -ar 16000 - | frami-edge-listen student.onnx - --rate 16000

exit codes: 0 done, also by Ctrl-C; 1 a known error; 2 wrong usage
"""
_SPEC_FIELDS: Final = tuple(f.name for f in fields(EventSpec))


def main(arguments: Sequence[str] | None = None) -> int:
    """The console entry point.

    Args:
        arguments: Those of the command line; None for `sys.argv`.

    Returns:
        The exit code; argparse exits with 2 by itself.
    """
    # Intermixed, so that SOURCE may also stand after options.
    given = vars(parser().parse_intermixed_args(arguments))
    _open_missing_outputs()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A label or file name that the terminal's encoding lacks must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        run(ListenOptions(events=_event_settings(given), **given))
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # The reader of the pipe (`| head`) has gone; flushing at exit must not complain again.
        _forget_stdout()
        return 1
    except FramiEdgeError as error:
        _debug(error)
        print(f"error: {error.message}", file=sys.stderr)
        if error.fix:
            print(f"fix: {error.fix}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # Sources, models and states name their own troubles: what is left is a full disk under
        # `> log`, a dead terminal and the like. Flushing at exit must not complain again.
        _debug(error)
        _forget_stdout()
        print(f"error: The output could not be written: {error.strerror}.", file=sys.stderr)
        print("fix: Free some space, or send it elsewhere.", file=sys.stderr)
        return 1
    except Exception as error:
        _debug(error)
        print(f"error: Internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("fix: Run it again with FRAMI_DEBUG=1, and report it.", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All options; their names are those of `frami-edge listen`."""
    top = argparse.ArgumentParser(
        prog="frami-edge-listen",
        usage="%(prog)s MODEL [SOURCE] [options]",
        description="Listen with a model of `frami-edge export`: level, top classes and events.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("model", metavar="MODEL", help="the .onnx or .engine file")
    top.add_argument(
        "source", metavar="SOURCE", nargs="?", default="mic",
        help="an audio file of any length; - for raw PCM on standard input; mic (default)",
    )  # fmt: skip
    results = top.add_argument_group("results")
    seconds: dict[str, Any] = {"type": float, "metavar": "S"}
    add = results.add_argument
    add("--window", dest="window_s", **seconds,
        help=f"a result looks back so far (default {DEFAULT_WINDOW_S:g})")  # fmt: skip
    add("--forget", dest="forget_s", **seconds,
        help="instead of a window: weights halve in this time")  # fmt: skip
    add("--hop", dest="hop_s", **seconds,
        help="time between results (default: a quarter of the window, at most 0.5)")  # fmt: skip
    add("--top", type=int, default=3, metavar="K", help="classes shown with a result (default 3)")
    add("--backend", default="auto", help="auto, cpu, cuda, tensorrt-ep or tensorrt")
    _add_events(top.add_argument_group("events"))
    _add_source(top.add_argument_group("source"))
    output = top.add_argument_group("output")
    add = output.add_argument
    add("--json", action="store_true", help="JSON Lines: start, result, event, gap, summary")
    add("--plain", action="store_true", help="plain lines, also on a terminal")
    add("--quiet", "-q", action="store_true", help="events only, no results and notes")
    add("--once", action="store_true", help="stop when the first event begins")
    add("--duration", dest="duration_s", **seconds, help="stop after so much audio")
    add("--version", action="version", version=_version())
    return top


def _add_events(group: argparse._ArgumentGroup) -> None:
    # Left out, an option is the default of EventSpec, which is written down once.
    default = EventSpec()
    seconds: dict[str, Any] = {"type": float, "metavar": "S", "default": argparse.SUPPRESS}
    add = group.add_argument
    add("--on", type=float, metavar="P", default=argparse.SUPPRESS,
        help=f"score from which a label is on (default {default.on:g})")  # fmt: skip
    add("--off", type=float, metavar="P", default=argparse.SUPPRESS,
        help="score below which it ends (default: --on less 0.15)")  # fmt: skip
    add(
        "--min-on",
        dest="min_on_s",
        **seconds,
        help="on for so long, to begin an event (default: half of the window)",
    )
    add("--min-off", dest="min_off_s", **seconds, help="off for so long, to end it")
    add("--merge-gap", dest="merge_gap_s", **seconds, help="join events that are less apart")
    add("--cooldown", dest="cooldown_s", **seconds, help="deaf to the label after its event")
    add("--smooth", dest="smooth_s", **seconds, help="half-life of an average over the scores")
    add("--update", dest="update_s", **seconds,
        help=f"time between updates of an event (default {default.update_s:g})")  # fmt: skip
    add("--min-level", dest="min_level_db", type=float, metavar="DB", default=argparse.SUPPRESS,
        help="windows quieter than this are no event, such as -55 (dB of full scale)")  # fmt: skip
    add("--watch", action="append", metavar="LABEL", default=argparse.SUPPRESS,
        help="only this label; repeatable")  # fmt: skip
    add("--ignore", action="append", metavar="LABEL", default=argparse.SUPPRESS,
        help="not this label; repeatable")  # fmt: skip


def _add_source(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", metavar="NAME", help="microphone: sounddevice name or number, or ALSA PCM")
    add("--rate", type=int, metavar="HZ", help="of raw PCM; or wanted of the microphone")
    add("--format", dest="encoding", metavar="F", help="of raw PCM: s16le (default), s32le, f32le")
    add("--channels", type=int, metavar="N", help="of raw PCM, interleaved (default 1)")
    add("--channel", default="mix", metavar="N", help="1 is the first; mix averages (default)")
    add("--ring", dest="ring_s", type=float, default=10.0, metavar="S",
        help="audio that may wait before the oldest is dropped (default 10)")  # fmt: skip


def _event_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Take out what belongs to the events."""
    values: dict[str, Any] = {name: given.pop(name) for name in _SPEC_FIELDS if name in given}
    for name in ("watch", "ignore"):
        if name in values:
            values[name] = tuple(values[name])
    return values


def _version() -> str:
    from frami_edge_runtime import __version__

    return f"frami-edge-listen {__version__}"


def _open_missing_outputs() -> None:
    """Python has no stdout where the shell closed it (`>&-`), as some service managers do."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _forget_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _debug(error: BaseException) -> None:
    if os.environ.get("FRAMI_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)


if __name__ == "__main__":
    sys.exit(main())


# --- What `frami-edge-listen` and `frami-edge listen` share: from a source to a display

__all__ = ["ListenOptions", "run"]
