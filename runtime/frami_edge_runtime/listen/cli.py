"""`frami-edge-listen`: listen with a model; argparse only, so that it starts fast."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.events import EventSpec
from frami_edge_runtime.listen.options import DEFAULT_WINDOW_S, ListenOptions
from frami_edge_runtime.listen.program import run

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
