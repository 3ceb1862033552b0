"""What can be asked of a listening program, the same from both command lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from frami_edge_runtime.errors import StreamError
from frami_edge_runtime.events import EventSpec

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
