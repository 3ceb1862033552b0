"""What `frami-edge-listen` shows of a session's records: lines, JSON Lines or a live view."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import Any, Final, TypeAlias

Record: TypeAlias = "dict[str, Any]"
"""One object of ``--json``; the runtime's README lists the fields of each ``type``."""

METER_FLOOR_DB: Final = -60.0


def printable(text: str) -> str:
    """The text without control characters: a label must not control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _bar(share: float, width: int, mark: str) -> str:
    return mark * round(width * min(1.0, max(0.0, share)))


class _Plain:
    """Results and events as lines on stdout, everything else on stderr."""

    def __init__(self, *, quiet: bool = False, flush: bool = True) -> None:
        self._quiet, self._flush = quiet, flush
        self._lost_s = 0.0
        self._next_loss_s = 0.0  # overloaded machines must not fill a log: a line per ten seconds

    def show(self, record: Record) -> None:
        kind = record["type"]
        if kind in ("event", "gap", "warning") or not self._quiet:
            getattr(self, f"show_{kind}")(record)

    def show_start(self, start: Record) -> None:
        self.note(
            f"{start['model']}: {len(start['labels'])} classes, {start['model_rate']} Hz, "
            f"on {start['backend']} ({start['backend_reason']})"
        )
        mode = f"half of the weight on the last {start['forget_s']} s,"
        if start["window_s"] is not None:
            mode = f"windows of {start['window_s']:.2f} s"
        source = f"{start['source']} at {start['sample_rate']} Hz"
        self.note(f"listening to {source}, {mode} every {start['hop_s']:.2f} s")
        for note in start["notes"]:
            self.note(f"note: {note}")

    def show_result(self, result: Record) -> None:
        meter = _bar(1 - result["level_db"] / METER_FLOOR_DB, 12, "#")
        top = "  ".join(f"{name} {p:.2f}" for name, p in result["top"].items())
        self.output(f"{result['t1']:9.2f} s  {result['level_db']:6.1f} dB [{meter:.<12}]  {top}")

    def show_event(self, event: Record) -> None:
        label, t0, t1 = event["label"], event["t0"], event["t1"]
        score = f"{event['score']:.2f}" + ("  (audio was lost)" if event["gap"] else "")
        if event["kind"] == "start":
            self.output(f"{event['at']:9.2f} s  >> {label} began at {t0:.2f} s, {score}")
        elif event["kind"] == "end":
            span = f"{t0:.2f}-{t1:.2f} s, {t1 - t0:.2f} s"
            self.output(f"{event['at']:9.2f} s  << {label} {span}, best {score}")

    def show_gap(self, gap: Record) -> None:
        self._lost_s += gap["lost_s"]
        if gap["t"] >= self._next_loss_s:
            self._next_loss_s = gap["t"] + 10
            self.note(f"warning: {self._lost_s:.3f} s of audio lost up to {gap['t']:.2f} s")

    def show_warning(self, warning: Record) -> None:
        self.note(f"warning: {warning['message']}")

    def show_summary(self, summary: Record) -> None:
        audio_s, busy_s, events = summary["audio_s"], summary["busy_s"], summary["events"]
        text = f"{audio_s:.1f} s of audio in {summary['wall_s']:.1f} s"
        if busy_s > 0:
            text += f" ({audio_s / busy_s:.0f} times real time in the model)"
        text += f": {summary['results']} results, {sum(events.values())} events"
        if events:
            text += f" ({', '.join(f'{name} {n}' for name, n in sorted(events.items()))})"
        if summary["warnings"]:
            text += f"; {sum(summary['warnings'].values())} warnings"
        if summary["lost"]:
            share = 100 * summary["lost_s"] / audio_s
            text += f"; lost {summary['lost_s']:.2f} s ({share:.1f} %) in {summary['gaps']} gaps"
        self.note(text + ("; interrupted" if summary["reason"] == "interrupted" else ""))

    def output(self, line: str) -> None:
        print(printable(line), flush=self._flush)

    def note(self, line: str) -> None:
        if self._flush:  # keeps the order where both streams are one terminal
            sys.stdout.flush()
        print(printable(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal."""


class _JsonLines(_Plain):
    """One JSON object per line on stdout."""

    def show(self, record: Record) -> None:
        if not (self._quiet and record["type"] == "result"):
            rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}
            print(json.dumps(rounded, allow_nan=False), flush=self._flush)


class _Live(_Plain):
    """A rich display of level and top classes, drawn at most ten times per second.

    Everything else scrolls above it and stays.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        # Imported here: rich is an extra, and takes longer than everything else at the start.
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._lines = ["waiting for the first result"]
        self._live = Live(
            console=Console(highlight=False),
            refresh_per_second=10,
            get_renderable=lambda: Text("\n".join(self._lines), no_wrap=True, overflow="ellipsis"),
            transient=True,
        )
        self._live.start()

    def show_result(self, result: Record) -> None:
        level_db, top = result["level_db"], result["top"]
        meter = _bar(1 - level_db / METER_FLOOR_DB, 40, "█")
        width = max(map(len, top))
        scores = [f"{name:{width}}  {p:.2f}  {_bar(p, 40, '━')}" for name, p in top.items()]
        lines = [f"{result['t1']:9.2f} s  {level_db:6.1f} dB  {meter}", *scores]
        self._lines = [printable(line) for line in lines]

    def output(self, line: str) -> None:
        self._live.console.print(self._text(printable(line)))

    def note(self, line: str) -> None:
        self.output(line)

    def close(self) -> None:
        self._live.stop()


def choose_display(options: argparse.Namespace, continuous: bool) -> _Plain:
    """JSON Lines where asked for, live on a terminal with rich, else plain lines.

    Args:
        options: ``json``, ``plain`` and ``quiet``.
        continuous: The source has no end of its own, so that each line is flushed.
    """
    terminal = sys.stdout.isatty()
    if terminal and not (options.json or options.plain or options.quiet):
        with suppress(ImportError):
            return _Live()
    display = _JsonLines if options.json else _Plain
    return display(quiet=options.quiet, flush=terminal or continuous)
